"""A file that is delivered again when the uploader has forgotten its run's details: its rows are there once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.crashing import At, Plan, Point, Victim, fork_server
from fakes.process_harness import UPLOADER, Home, rows_of_file, wait_until
from fakes.raw_collector import collectors_of
from fakes.uploader_harness import finish, hello, samples

from sentinel_protocol.wire.messages import Finished

KEY = "left behind"
SMALLEST = "128KiB"
OTHERS = 40
"""A sixteenth of the smallest spool holds the details of two or three of them."""


@pytest.fixture(autouse=True, scope="module")
def _forks() -> Iterator[None]:
    with fork_server():
        yield


def leave_a_file(home: Home, output: Path) -> Path:
    """Be a collector that ends while no uploader is there."""
    words = ["--connect", home.address, "--run-key", KEY, "--interval", "0.1", "--output", str(output)]
    with collector(home, "first", *words, "--wait", "0", "--", "sleep", "1") as first:
        assert first.wait() == 0
        assert "samples wait in" in first.log()
    (path,) = (home.state / "collector").glob("*.rows")
    return path


def collector(home: Home, name: str, *words: str, point: Point | None = None) -> Victim:
    return Victim(
        Plan(
            command="sentinel_collector.cli",
            words=list(words),
            environ=home.environ,
            log=home.directory / f"{name}.log",
            point=point,
            mark=home.directory / "mark",
            constants={"sentinel_collector.shutdown:ACKNOWLEDGE_WAIT_S": 0.5},
        )
    )


def end_many_others(home: Home) -> None:
    with collectors_of(home.address) as collectors:
        for number in range(OTHERS):
            collector = collectors.connect()
            collector.say(hello(f"other-{number}", metadata={"job_name": "x" * 1500}), samples(1, 3), finish(3))
            collector.hear_until(Finished)


def objects_of(home: Home, key: str) -> list[list[str]]:
    """Rows of each run of this key that has finished."""
    runs = [run for run in home.local_runs() if run["run_key"] == key]
    return [home.local_rows(run) for run in runs if run["state"] == "finished"]


def test_file_that_is_delivered_again_after_many_other_runs_have_ended_is_not_a_new_run(home: Home) -> None:
    output = home.directory / "rows.csv"
    path = leave_a_file(home, output)
    sampled = rows_of_file(output)
    assert len(sampled) > 5

    home.start_uploader("--spool-max", SMALLEST, "--target", str(home.runs))
    # Another one delivers the file, and is killed when the acknowledgement of its end has come.
    point = At("before", "sentinel_collector.delivery.uploader_client:UploaderClient._handle_ack", given="finish")
    words = ("--connect", home.address, "--run-key", "deliverer", "--interval", "0.1")
    with collector(home, "deliverer", *words, point=point) as deliverer:
        deliverer.assert_killed_at_its_point()
    assert path.exists()
    wait_until(lambda: objects_of(home, KEY), "the run is delivered")
    end_many_others(home)
    known = home.status("--spool", str(home.directory / "spool"))
    assert KEY not in {run["key"] for run in known}, "the run's details are not forgotten"

    again = home.collector("--connect", home.address, "--wait", "20", "--", "true")
    assert "delivered for an earlier collector" in again.stderr
    assert not path.exists()
    drained = home.run(UPLOADER, "drain", "--spool", str(home.directory / "spool"))
    assert drained.returncode == 0, drained.stderr
    assert objects_of(home, KEY) == [sampled]
    assert len([run for run in home.local_runs() if run["run_key"] == KEY]) == 1
