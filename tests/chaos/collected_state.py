"""The state at the end of a scenario, collected so that it can be checked without the processes."""

import gzip
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fakes.faults import Recorded
from fakes.process_harness import rows_of_file, rows_of_objects
from fakes.sentinel_api import Run

from chaos.record import End, Generation, Part
from chaos.scenario import SWEEP, Scenario
from chaos.schedule import AWAY
from chaos.traffic_recorder import Place
from sentinel_collector.delivery.overflow_file.file import OverflowFile
from sentinel_protocol.wire.sample import CSV_HEADER, csv_rows, decode_sample


@dataclass
class Told:
    """A run as `finish` described it to the API."""

    name: str
    """The name of its generation, as registered."""
    end: End
    rows: list[str]
    uris: list[str] = field(default_factory=list)
    prefix: str = ""
    run_id: str = ""
    continues: str | None = None
    """The run before it at another uploader, by its id or its key."""


@dataclass
class CollectedState:
    """All that the checks look at. `figures` counts what they find, for the report."""

    generations: Sequence[Generation] = ()
    told: Sequence[Told] = ()
    unknown: Sequence[str] = ()
    """Names under which runs were registered that were never begun."""
    homes: Mapping[str, Collection[Place]] = field(default_factory=dict)
    """The uploaders to which each job's collectors said `Hello`, by name."""
    acknowledged: dict[str, set[str]] = field(default_factory=dict)
    """Rows that an uploader has said to hold, by run key."""
    kept: set[str] = field(default_factory=set)
    """Rows that lie in collectors' own files."""
    versions: dict[str, list[bytes]] = field(default_factory=dict)
    """Every body that was stored at an address."""
    calls: Sequence[tuple[Hashable, Recorded]] = ()
    """Requests, each with what names the uploader's process that has sent it."""
    hello_times: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    planned: Counter[str] = field(default_factory=Counter)
    fired: Counter[str] = field(default_factory=Counter)
    expected: Sequence[str] = ()
    """Disturbances that must have fired."""
    orphans: int = 0
    excused_orphans: int = 0
    figures: Counter[str] = field(default_factory=Counter)

    def has_moved(self, name: str) -> bool:
        """Whether a job's run may have been left in parts: at more than one uploader, or at one that it came back to.

        Who came back from one that never heard of it has greeted at a single place, and says that it continues.
        """
        places = {place.port for place in self.homes.get(name, ())}
        return len(places) > 1 or any(told.name == name and told.continues for told in self.told)


def gather(scenario: Scenario, expected: Sequence[str]) -> CollectedState:
    """Collect the state of a scenario that is over; raises `AssertionError` for objects that are none."""
    generations = [run for one in scenario.collectors for run in one.generations]
    generations += [_fresh_generation(output) for output in scenario.fresh_outputs]
    names = {generation.name for generation in generations} | {SWEEP}
    finished = [run for run in scenario.api.runs.values() if run.finish is not None]
    told = [_told(scenario, run) for run in finished]
    return CollectedState(
        generations=generations,
        told=told,
        unknown=sorted({_name(run) for run in scenario.api.runs.values()} - names),
        homes=dict(scenario.recorder.homes),
        acknowledged=dict(scenario.recorder.acknowledged),
        kept=_kept_rows(scenario),
        versions={uri: scenario.s3.versions(uri) for uri in scenario.s3.objects()},
        calls=list(_calls(scenario)),
        hello_times=dict(scenario.recorder.hello_times),
        planned=scenario.injector.planned,
        fired=scenario.injector.fired,
        expected=expected,
        orphans=len(scenario.api.runs) - len(finished),
        excused_orphans=_excused_orphans(scenario),
        figures=Counter(
            {
                "runs": len(finished),
                "objects": len(scenario.s3.objects()),
                "moves to another uploader": scenario.moves(),
            }
        ),
    )


def _name(run: Run) -> str:
    return str(run.registration.get("job_name"))


def _told(scenario: Scenario, run: Run) -> Told:
    assert run.finish is not None
    uris = list(run.finish.get("data_uris", []))
    if "data_csv" in run.finish:
        text: str = run.finish["data_csv"]
        bodies: Iterable[bytes] = [gzip.compress(text.encode())]
    else:
        bodies = [body for uri in uris if (body := scenario.s3.fetch(uri)) is not None]
    end = End(run.finish["run_status"], run.finish.get("exit_code"))
    continues = (run.registration.get("tags") or {}).get("continues")
    return Told(_name(run), end, rows_of_objects(bodies), uris, run.prefix, run.run_id, continues)


def _fresh_generation(output: Path) -> Generation:
    rows = rows_of_file(output) if output.exists() else []
    now = [time.monotonic()] * len(rows)
    part = Part(rows=rows, not_before=now, not_after=now)
    return Generation(output.stem, [part], [End("finished", 0)])


def _kept_rows(scenario: Scenario) -> set[str]:
    kept: set[str] = set()
    for state_dir in {one.state_dir for one in scenario.collectors}:
        for path in state_dir.glob("kept/*.csv"):
            kept.update(rows_of_file(path))
        for path in state_dir.glob("*.rows"):
            kept.update(_spilled_rows(path))
    return kept


def _spilled_rows(path: Path) -> list[str]:
    overflow = OverflowFile.open(str(path))
    try:
        samples = [decode_sample(row) for row in overflow.rows_from(overflow.start)]
    finally:
        overflow.close()
    return csv_rows(samples).decode().removeprefix(CSV_HEADER.decode()).splitlines() if samples else []


def _calls(scenario: Scenario) -> Iterator[tuple[Hashable, Recorded]]:
    # A new process knows nothing of what its predecessor was waiting for, and none of what another one is.
    starts = {f"Bearer {one.token}": one.started_at for one in scenario.uploaders}
    whose = {one.run_id: one.headers["authorization"] for one in scenario.api.requests.of() if one.run_id is not None}
    for request in (*scenario.api.requests.of(), *scenario.s3.requests.of()):
        bearer = whose[request.path.split("/")[-2]] if request.call == "put" else request.headers["authorization"]
        yield (bearer, bisect_right(starts[bearer], request.at)), request


def _excused_orphans(scenario: Scenario) -> int:
    """How many runs may have been registered unnoticed: the answer or its reader was lost."""
    unheard = sum(1 for one in scenario.api.requests.of("register") if one.took_effect and one.fault is not None)
    planned = scenario.injector.planned
    ended = sum(planned[name] for name in ("uploader killed", AWAY, "uploader told to end", "killed while it ends"))
    return unheard + ended + planned["everything told to end at once"] * len(scenario.uploaders)
