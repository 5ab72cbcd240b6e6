"""The collector killed at each point of a row's way, and started again: what it recorded is what is delivered."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import pytest
from fakes.crashing import At, Plan, Point, Victim, fork_server
from fakes.process_harness import Home, rows_of_file, rows_of_objects, wait_until

from sentinel_protocol.wire.sample import CSV_HEADER
from sentinel_uploader.admin.status_reader import read_status
from sentinel_uploader.delivery.csv_batch import gzip_csv

if TYPE_CHECKING:
    from pathlib import Path

INTERVAL_S = 0.1
ROWS = 5
QUICKLY: Mapping[str, float] = {
    "sentinel_collector.delivery.send_queue:SPILL_AFTER_S": 0.25,
    "sentinel_collector.shutdown:ACKNOWLEDGE_WAIT_S": 0.5,
}


@pytest.fixture(autouse=True, scope="module")
def _forks() -> Iterator[None]:
    with fork_server():
        yield


class Scene(NamedTuple):
    """Where the collector dies, and what is there then."""

    point: Point
    uploader: str = "there"
    """`there`, `away`, or `back` once rows wait in the collector's file."""
    is_told_to_end: bool = False
    memory_rows: int = 0
    """So many of the newest rows may be in memory alone, without an acknowledgement, and go with it."""


SCENES: dict[str, Scene] = {
    "after-sample": Scene(At("after", "sentinel_collector.sampling.sampler:Sampler.sample", ROWS)),
    "after-sample-recorded": Scene(
        At("after", "sentinel_collector.reporting.csv_output:CsvOutput.write", ROWS), memory_rows=1
    ),
    "before-ack-is-taken-in": Scene(
        At("before", "sentinel_collector.delivery.uploader_client:UploaderClient._handle_ack", ROWS), memory_rows=1
    ),
    "after-ack-is-taken-in": Scene(
        At("after", "sentinel_collector.delivery.uploader_client:UploaderClient._handle_ack", ROWS), memory_rows=1
    ),
    "after-first-record": Scene(
        At("after", "sentinel_collector.delivery.overflow_file.file:OverflowFile.append_rows"), uploader="away"
    ),
    "after-spill": Scene(
        At("after", "sentinel_collector.delivery.overflow_file.file:OverflowFile.append_rows", ROWS), uploader="away"
    ),
    "after-rows-are-numbered": Scene(
        At("after", "sentinel_collector.delivery.overflow_file.file:OverflowFile.write_seq_base"),
        uploader="back",
        memory_rows=1,
    ),
    "before-file-is-emptied": Scene(
        At("before", "sentinel_collector.delivery.overflow_file.file:OverflowFile.truncate"),
        uploader="back",
        memory_rows=1,
    ),
    "after-file-is-emptied": Scene(
        At("after", "sentinel_collector.delivery.overflow_file.file:OverflowFile.truncate"),
        uploader="back",
        memory_rows=1,
    ),
    "before-finish": Scene(
        At("before", "sentinel_collector.delivery.uploader_client:UploaderClient._send_finish"),
        is_told_to_end=True,
        memory_rows=2,
    ),
    "after-finish": Scene(
        At("after", "sentinel_collector.delivery.uploader_client:UploaderClient._send_finish"),
        is_told_to_end=True,
        memory_rows=2,
    ),
    "before-answer-to-finish": Scene(
        At("before", "sentinel_collector.delivery.uploader_client:UploaderClient._handle_ack", given="finish"),
        is_told_to_end=True,
    ),
    "before-run-is-over": Scene(
        At("before", "sentinel_collector.delivery.uploader_client:UploaderClient._handle_finished"), is_told_to_end=True
    ),
    "before-file-is-removed": Scene(
        At("before", "sentinel_collector.delivery.send_queue:SendQueue.discard_file"), is_told_to_end=True
    ),
    "before-end-is-kept": Scene(
        At("before", "sentinel_collector.delivery.overflow_file.file:OverflowFile.write_finish"),
        uploader="away",
        is_told_to_end=True,
    ),
    "after-end-is-kept": Scene(
        At("after", "sentinel_collector.delivery.overflow_file.file:OverflowFile.write_finish"),
        uploader="away",
        is_told_to_end=True,
    ),
}


class Collectors:
    """One host-wide collector after the other, all for the same run key; `outputs` is what each has recorded."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self.outputs: list[Path] = []

    def start(self, point: Point | None = None, *, wait_s: int = 30) -> Victim:
        directory, number = self._home.directory, len(self.outputs) + 1
        self.outputs.append(directory / f"rows-{number}.csv")
        words = [
            "--connect",
            self._home.address,
            "--run-key",
            "key",
            "--wait",
            str(wait_s),
            "--output",
            str(self.outputs[-1]),
        ]
        return Victim(
            Plan(
                command="sentinel_collector.cli",
                words=[*words, "--wait", str(wait_s), "--output", str(self.outputs[-1])],
                environ=self._home.environ,
                log=directory / f"collector-{number}.log",
                point=point,
                mark=directory / f"mark-{number}",
                constants=QUICKLY,
            )
        )

    def rows(self, number: int = -1) -> list[str]:
        path = self.outputs[number]
        return rows_of_file(path) if path.exists() and path.stat().st_size else []


def kill(home: Home, collectors: Collectors, scene: Scene) -> None:
    if scene.uploader == "there":
        start_uploader(home)
    with collectors.start(scene.point, wait_s=0 if scene.uploader == "away" else 30) as victim:
        if scene.uploader == "back":
            spilled = home.state / "collector"
            wait_until(lambda: any(path.stat().st_size > 2000 for path in spilled.glob("*.rows")), "rows are spilled")
            start_uploader(home)
        if scene.is_told_to_end:
            wait_until(lambda: len(collectors.rows()) >= ROWS, "rows are recorded")
            victim.terminate()
        victim.assert_killed_at_its_point()
    if scene.uploader == "away":
        start_uploader(home)


def start_uploader(home: Home) -> None:
    home.start_uploader("--upload-interval", "86400", "--target", str(home.runs))


def go_on(home: Home, collectors: Collectors) -> None:
    with collectors.start() as collector:
        wait_until(lambda: len(collectors.rows()) >= ROWS, "rows are recorded")
        collector.terminate()
        assert collector.wait() == 0, collector.log()
    spool = str(home.directory / "spool")
    wait_until(lambda: all(run["state"] == "finished" for run in read_status(spool)["runs"]), "all runs are over")


def objects(home: Home) -> list[bytes]:
    """Objects of all runs in the order of their rows."""
    runs = [[(home.runs / run["run_id"] / name).read_bytes() for name in run["objects"]] for run in home.local_runs()]
    return sorted((body for bodies in runs for body in bodies), key=lambda body: rows_of_objects([body])[:1])


def as_objects(rows: Sequence[str], like: Sequence[bytes]) -> list[bytes]:
    """What an undisturbed uploader makes of these rows where it cuts them alike."""
    made = []
    for body in like:
        count = len(rows_of_objects([body]))
        lines = "".join(f"{row}\n" for row in rows[:count])
        made.append(gzip_csv(CSV_HEADER + lines.encode()))
        rows = rows[count:]
    assert not rows
    return made


@pytest.mark.parametrize("name", SCENES)
def test_rows_of_a_collector_that_was_killed_are_delivered_like_any_others(home: Home, name: str) -> None:
    scene = SCENES[name]
    collectors = Collectors(home)
    kill(home, collectors, scene)
    before = collectors.rows()
    assert before
    go_on(home, collectors)

    delivered = objects(home)
    arrived = sum(len(rows_of_objects([body])) for body in delivered)
    lost = len(before) + len(collectors.rows()) - arrived
    assert 0 <= lost <= scene.memory_rows
    recorded = [*before[: len(before) - lost], *collectors.rows()]
    assert delivered == as_objects(recorded, delivered)
    assert sorted((home.state / "collector").glob("*.rows")) == []
    assert not (home.state / "collector" / "kept").exists()
