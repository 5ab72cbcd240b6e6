"""What is left when the curtain has fallen, gathered so that it can be judged without those who played."""

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
from chaos.scenario import SWEEP, Drama
from chaos.schedule import AWAY
from chaos.traffic_recorder import Place
from sentinel_collector.delivery.overflow_file.file import OverflowFile
from sentinel_protocol.wire.sample import CSV_HEADER, csv_rows, decode_sample


@dataclass
class Told:
    """A run as the API was told of its end."""

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
class Evidence:
    """All that the checks look at. `figures` counts what they find, for the report."""

    generations: Sequence[Generation] = ()
    told: Sequence[Told] = ()
    unknown: Sequence[str] = ()
    """Names under which runs were registered that nobody has begun."""
    homes: Mapping[str, Collection[Place]] = field(default_factory=dict)
    """Where each job's collectors have greeted, by name."""
    acknowledged: dict[str, set[str]] = field(default_factory=dict)
    """Rows that an uploader has said to hold, by run key."""
    kept: set[str] = field(default_factory=set)
    """Rows that lie in collectors' own files."""
    versions: dict[str, list[bytes]] = field(default_factory=dict)
    """Every body that was stored at an address."""
    calls: Sequence[tuple[Hashable, Recorded]] = ()
    """Requests, each with what names the uploader's process that has sent it."""
    greeted_at: dict[tuple[str, str], list[float]] = field(default_factory=dict)
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


def gather(drama: Drama, expected: Sequence[str]) -> Evidence:
    """Collect the evidence of a drama that is over; raises `AssertionError` for objects that are none."""
    generations = [run for one in drama.collectors for run in one.generations]
    generations += [_fresh_generation(output) for output in drama.fresh_outputs]
    names = {generation.name for generation in generations} | {SWEEP}
    finished = [run for run in drama.api.runs.values() if run.finish is not None]
    told = [_told(drama, run) for run in finished]
    return Evidence(
        generations=generations,
        told=told,
        unknown=sorted({_name(run) for run in drama.api.runs.values()} - names),
        homes=dict(drama.witness.homes),
        acknowledged=dict(drama.witness.acknowledged),
        kept=_kept_rows(drama),
        versions={uri: drama.s3.versions(uri) for uri in drama.s3.objects()},
        calls=list(_calls(drama)),
        greeted_at=dict(drama.witness.greeted_at),
        planned=drama.saboteur.planned,
        fired=drama.saboteur.fired,
        expected=expected,
        orphans=len(drama.api.runs) - len(finished),
        excused_orphans=_excused_orphans(drama),
        figures=Counter(
            {"runs": len(finished), "objects": len(drama.s3.objects()), "moves to another uploader": drama.moves()}
        ),
    )


def _name(run: Run) -> str:
    return str(run.registration.get("job_name"))


def _told(drama: Drama, run: Run) -> Told:
    assert run.finish is not None
    uris = list(run.finish.get("data_uris", []))
    if "data_csv" in run.finish:
        text: str = run.finish["data_csv"]
        bodies: Iterable[bytes] = [gzip.compress(text.encode())]
    else:
        bodies = [body for uri in uris if (body := drama.s3.fetch(uri)) is not None]
    end = End(run.finish["run_status"], run.finish.get("exit_code"))
    continues = (run.registration.get("tags") or {}).get("continues")
    return Told(_name(run), end, rows_of_objects(bodies), uris, run.prefix, run.run_id, continues)


def _fresh_generation(output: Path) -> Generation:
    rows = rows_of_file(output) if output.exists() else []
    now = [time.monotonic()] * len(rows)
    part = Part(rows=rows, not_before=now, not_after=now)
    return Generation(output.stem, [part], [End("finished", 0)])


def _kept_rows(drama: Drama) -> set[str]:
    kept: set[str] = set()
    for state_dir in {one.state_dir for one in drama.collectors}:
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


def _calls(drama: Drama) -> Iterator[tuple[Hashable, Recorded]]:
    # A new process knows nothing of what its predecessor was waiting for, and none of what another one is.
    starts = {f"Bearer {one.token}": one.started_at for one in drama.uploaders}
    whose = {one.run_id: one.headers["authorization"] for one in drama.api.requests.of() if one.run_id is not None}
    for request in (*drama.api.requests.of(), *drama.s3.requests.of()):
        bearer = whose[request.path.split("/")[-2]] if request.call == "put" else request.headers["authorization"]
        yield (bearer, bisect_right(starts[bearer], request.at)), request


def _excused_orphans(drama: Drama) -> int:
    """How many runs may have been registered without anybody's knowing: the answer or its reader was lost."""
    unheard = sum(1 for one in drama.api.requests.of("register") if one.took_effect and one.fault is not None)
    planned = drama.saboteur.planned
    ended = sum(planned[name] for name in ("uploader killed", AWAY, "uploader told to end", "killed while it ends"))
    return unheard + ended + planned["everything told to end at once"] * len(drama.uploaders)
