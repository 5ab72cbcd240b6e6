"""Today's commands and those of the version before: on the wire, over one spool, over a collector's file."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from fakes.earlier_version import EarlierVersion
from fakes.process_harness import COLLECTOR, DEADLINE_S, UPLOADER, Home, busy, rows_of_file, wait_until

LAST_WITH_OLD_NAMES = "f923156ab2dc80611c70a746362d16bf8e8b3d99"
"""The last commit whose import names were `collector`, `uploader` and `protocol`."""


class Version(NamedTuple):
    collector: list[str]
    uploader: list[str]


NOW = Version([COLLECTOR], [UPLOADER])


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Version:
    earlier = EarlierVersion(tmp_path_factory.mktemp("earlier"), LAST_WITH_OLD_NAMES, ("collector", "uploader"))
    return Version(earlier.collector(), earlier.uploader())


@pytest.fixture(params=["the old one first", "the new one first"])
def versions(request: pytest.FixtureRequest, before: Version) -> tuple[Version, Version]:
    return (before, NOW) if request.param == "the old one first" else (NOW, before)


def start_uploader(home: Home, version: Version, *words: str) -> Callable[[], None]:
    """Start an uploader and return what kills it."""
    log = home.directory / "uploader.log"
    known = log.stat().st_size if log.exists() else 0
    with log.open("a", encoding="utf-8") as file:
        spool = str(home.directory / "spool")
        process = home.start(
            *version.uploader, "serve", "--bind", home.address, "--spool", spool, *words, stdout=file, stderr=file
        )
    wait_until(lambda: "uploader ready" in log.read_text(encoding="utf-8")[known:], "the uploader listens")

    def kill() -> None:
        process.kill()
        assert process.wait(DEADLINE_S) == -signal.SIGKILL

    return kill


def record(home: Home, version: Version, output: Path, *words: str) -> str:
    options = ["--connect", home.address, "--interval", "0.1", "--output", str(output)]
    done = home.run(*version.collector, *options, *words, "--", *busy(0.6, 3))
    assert done.returncode == 3, done.stderr
    return done.stderr


def assert_delivered(home: Home, output: Path) -> None:
    """One run is there, ended, with exactly the rows that its collector wrote."""
    (run,) = wait_until(home.local_runs, "the run is there")
    assert (run["state"], run["status"], run["exit_code"]) == ("finished", "failed", 3)
    assert home.local_rows(run) == rows_of_file(output)


def test_a_collector_of_one_version_is_served_by_an_uploader_of_the_other(
    home: Home, versions: tuple[Version, Version]
) -> None:
    collecting, uploading = versions
    output = home.directory / "rows.csv"
    start_uploader(home, uploading)
    said = record(home, collecting, output, "--wait", "30")
    assert "delivered to" in said
    assert_delivered(home, output)


def test_a_spool_that_one_version_wrote_is_delivered_by_the_other(
    home: Home, versions: tuple[Version, Version]
) -> None:
    earlier, later = versions
    output = home.directory / "rows.csv"
    kill = start_uploader(home, earlier, "--upload-interval", "3600")
    options = ["--connect", home.address, "--interval", "0.1", "--output", str(output), "--wait", "30"]
    process = home.start(*earlier.collector, *options, "--", "sh", "-c", "cat; exit 3", stdin=subprocess.PIPE)
    in_spool = ("--spool", str(home.directory / "spool"))
    wait_until(lambda: [run for run in home.status(*in_spool) if run["rows_waiting"] > 5], "rows are in the spool")
    kill()
    (run,) = home.local_runs()
    assert list((home.runs / run["run_id"]).glob("*.csv.gz")) == []
    start_uploader(home, later, "--upload-interval", "1")
    wait_until(lambda: list(home.runs.glob("*/0001.csv.gz")), "the earlier rows are delivered")
    _, said = process.communicate("", timeout=DEADLINE_S)
    assert process.returncode == 3, said
    assert_delivered(home, output)


def test_the_file_that_a_collector_of_one_version_left_is_sent_by_one_of_the_other(
    home: Home, versions: tuple[Version, Version]
) -> None:
    earlier, later = versions
    output = home.directory / "rows.csv"
    record(home, earlier, output)
    assert len(list((home.state / "collector").glob("*.rows"))) == 1
    start_uploader(home, NOW)
    done = home.run(*later.collector, "--connect", home.address, "--wait", "20", "--", "true")
    assert done.returncode == 0, done.stderr
    runs = wait_until(lambda: [run for run in home.local_runs() if run["exit_code"] == 3], "the left run is there")
    assert [home.local_rows(run) for run in runs] == [rows_of_file(output)]
    assert list((home.state / "collector").glob("*.rows")) == []
