"""What has to be true when the curtain has fallen; every check returns a line for each thing that is not."""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from standins.product import rows_of_objects
from standins.sentinel_api import Run

from oracle.drama import Drama
from oracle.subjects import End, Generation, Part
from protocol.sample import CSV_HEADER

if TYPE_CHECKING:
    from standins.faults import Recorded

MEMORY_S = 2.0
"""So young a row may be in a collector's memory alone, and go with it."""
SLACK_S = 0.6
"""Between a row's time stamp and its way to the file, on a machine that does much else."""
BURST_S = 5.0
MOST_FAILURES_IN_BURST = 10
"""Exponential back-off from a second on makes about four; a success of another run may begin it anew."""
FASTEST_REPEAT_S = 0.2
_MOST_FAST_REPEATS = 2


def verdict(drama: Drama) -> list[str]:
    """Return what is wrong, nothing when every guarantee holds; adds to the drama's figures."""
    runs = [run for run in drama.api.runs.values() if run.finish is not None]
    delivered = {run.run_id: _rows(drama, run) for run in runs}
    drama.figures["objects"] = len(drama.s3.objects())
    drama.figures["runs"] = len(runs)
    drama.figures["rows delivered"] = sum(map(len, delivered.values()))
    counts = Counter(row for rows in delivered.values() for row in rows)
    drama.figures["rows doubled"] = sum(count - 1 for count in counts.values())
    drama.figures["rows lost"] = 0
    generations = [run for one in drama.collectors for run in one.generations]
    return [
        *drama.problems,
        *(problem for one in drama.collectors for problem in one.problems),
        *(problem for run in generations for problem in _generation(drama, run, delivered)),
        *_acknowledged(drama, set(counts)),
        *_only_known_runs(drama),
        *_objects(drama, runs),
        *_calls(drama),
        *_left_over(drama),
    ]  # fmt: skip


def _rows(drama: Drama, run: Run) -> list[str]:
    assert run.finish is not None
    if "data_csv" in run.finish:
        text: str = run.finish["data_csv"]
        return text.encode().removeprefix(CSV_HEADER).decode().splitlines()
    bodies = [drama.s3.fetch(uri) for uri in run.finish["data_uris"]]
    return rows_of_objects(body for body in bodies if body is not None)


def _generation(drama: Drama, generation: Generation, delivered: dict[str, list[str]]) -> Iterator[str]:
    """Compare what one run's collectors sampled with what was delivered under its name."""
    runs = [
        run
        for run in drama.api.runs.values()
        if run.finish is not None and run.registration.get("job_name") == generation.name
    ]
    # A collector that was killed while it ended may find its run closed, and goes on as another.
    runs.sort(key=lambda run: (delivered[run.run_id] or ["9"])[0])
    arrived = [row for run in runs for row in delivered[run.run_id]]
    known = set(arrived)
    sampled = [row for part in generation.parts for row in part.rows()]
    drama.figures["rows sampled"] += len(sampled)
    if arrived != [row for row in sampled if row in known]:
        invented = len(known - set(sampled))
        yield f"{generation.name}: {len(arrived)} rows delivered, {invented} of them unknown, or out of order"
    for part in generation.parts:
        lost, excusable = _lost(part, known)
        drama.figures["rows in a killed collector's memory"] += excusable
        drama.figures["rows lost"] += lost
        if lost:
            yield f"{generation.name}: {lost} rows of {part.output.name} (killed: {part.was_killed}) are lost"
    yield from _ends(generation, runs)


def _lost(part: Part, known: set[str]) -> tuple[int, int]:
    """Return how many rows are lost, and how many more went with the memory of a killed collector."""
    rows = part.rows()
    missing = [number for number, row in enumerate(rows) if row not in known]
    if not missing:
        return 0, 0
    times = [float(row.partition(",")[0]) for row in rows]
    # The last look at the age of what is in memory may have been at the row before the last one.
    horizon = times[max(0, len(times) - 2)] - MEMORY_S - SLACK_S
    is_tail = missing == list(range(missing[0], len(rows)))
    lost = (
        len(missing)
        if not part.was_killed or not is_tail
        else min(bisect_right(times, horizon), len(rows)) - missing[0]
    )
    lost = max(0, lost)
    return lost, len(missing) - lost


def _acknowledged(drama: Drama, delivered: set[str]) -> Iterator[str]:
    for run_key, rows in drama.witness.acknowledged.items():
        drama.figures["rows acknowledged"] += len(rows)
        if lost := len(rows - delivered):
            drama.figures["acknowledged rows lost"] += lost
            yield f"{run_key}: {lost} acknowledged rows are in no object"


def _ends(generation: Generation, runs: Sequence[Run]) -> Iterator[str]:
    reported = [End(run.finish["run_status"], run.finish.get("exit_code")) for run in runs if run.finish is not None]
    if not reported:
        yield f"{generation.name}: no run was finished"
    elif len(reported) > len(generation.ends):
        yield f"{generation.name}: {len(reported)} runs were finished, {len(generation.ends)} ends were begun"
    elif reported[-1] != generation.ends[-1] or not set(reported) <= set(generation.ends):
        yield f"{generation.name}: finished as {reported} instead of {generation.ends}"


def _only_known_runs(drama: Drama) -> Iterator[str]:
    """A run that was registered and never finished is one whose registration got lost on its way back."""
    orphans = sum(1 for run in drama.api.runs.values() if run.finish is None)
    unheard = [one for one in drama.api.requests.of("register") if one.took_effect and one.fault is not None]
    killed = drama.figures["uploader-kill"] + drama.figures["uploader-term"]
    drama.figures["runs orphaned"] = orphans
    if orphans > len(unheard) + killed:
        yield f"{orphans} runs were never finished, {len(unheard)} registrations got lost, {killed} uploaders ended"
    parked = [run for run in drama.home.status("--spool", str(drama.uploader.spool)) if run["state"] == "parked"]
    for run in parked:
        yield f"the run {run['run_id']} is parked: {run['last_error']}"


def _objects(drama: Drama, runs: Sequence[Run]) -> Iterator[str]:
    named = [uri for run in runs if run.finish is not None for uri in run.finish.get("data_uris", [])]
    stored = set(drama.s3.objects())
    if len(named) != len(set(named)) or set(named) != stored:
        yield f"finish names {len(named)} objects, {len(stored)} are stored: {sorted(set(named) ^ stored)[:5]}"
    for uri in stored:
        if len(set(drama.s3.versions(uri))) > 1:
            yield f"{uri} was stored with different bytes"


def _calls(drama: Drama) -> Iterator[str]:
    """No call fails again and again without a pause, and no server is asked again before it wanted to be."""
    calls: dict[tuple[object, ...], list[Recorded]] = {}
    for request in [*drama.api.requests.of(), *drama.s3.requests.of()]:
        # A new process knows nothing of what its predecessor was waiting for.
        incarnation = bisect_right(drama.uploader.started_at, request.at)
        about: object = request.run_id
        if request.call == "put":
            about = re.sub(r"/[^/]*$", "", request.path)
        elif request.call == "register":
            about = hash(request.body)
        calls.setdefault((request.call, about, incarnation), []).append(request)
    for (call, what, _), requests in calls.items():
        failed = [one.at for one in requests if one.status is None or one.status >= 400]
        drama.figures["calls failed"] += len(failed)
        fast = sum(1 for before, after in pairwise(failed) if after - before < FASTEST_REPEAT_S)
        burst = max((bisect_right(failed, at + BURST_S) - number for number, at in enumerate(failed)), default=0)
        if fast > _MOST_FAST_REPEATS or burst > MOST_FAILURES_IN_BURST:
            yield f"{call} {what}: {burst} failures in {BURST_S} s, {fast} repeated at once"
        for before, after in pairwise(requests):
            wish = before.fault.headers.get("Retry-After") if before.fault is not None else None
            if wish is not None and after.at - before.at < float(wish):
                yield f"{call} {what}: asked again after {after.at - before.at:.2f} s instead of {wish}"


def _left_over(drama: Drama) -> Iterator[str]:
    mark = str(drama.home.runtime)
    for process in psutil.process_iter():
        try:
            if process.pid != psutil.Process().pid and process.environ().get("XDG_RUNTIME_DIR") == mark:
                yield f"process {process.pid} is left over: {process.cmdline()}"
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    collector_state = drama.home.state / "collector"
    for path in [*_files(collector_state), *_files(drama.home.runtime)]:
        yield f"{path} is left over"
    for run in drama.home.status("--spool", str(drama.uploader.spool)):
        if run["rows_waiting"]:
            yield f"{run['rows_waiting']} rows of {run['run_id']} wait in the spool"


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if not path.is_dir()) if directory.exists() else []
