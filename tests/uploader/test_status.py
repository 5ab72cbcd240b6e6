"""What `status` and `show` read from a spool, whoever owns it."""

import json
import os
import re
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fakes.process_harness import COLLECTOR, UPLOADER, Home, recorder_of, wait_until
from fakes.scripted_backend import SteppedClock, away, failing, final
from fakes.uploader_harness import UploaderHarness, delivery, hello, open_spool_at

from sentinel_protocol.common.clock import SystemClock
from sentinel_protocol.common.errors import UsageError
from sentinel_protocol.common.local_uploader import spools_home
from sentinel_uploader.admin.status_reader import is_undelivered, read_status, runs_named
from sentinel_uploader.admin.status_table import describe_run, status_text
from sentinel_uploader.runs.lifecycle import Event
from sentinel_uploader.spool.lock import SpoolLock
from sentinel_uploader.spool.schema import SCHEMA_VERSION
from sentinel_uploader.telemetry.heard_file import HeardFile


@pytest.fixture
def up(tmp_path: Path) -> Iterator[UploaderHarness]:
    with delivery(tmp_path / "spool") as made:
        yield made


def shown(tmp_path: Path) -> dict[str, dict[str, object]]:
    status = read_status(str(tmp_path / "spool"))
    json.dumps(status, allow_nan=False)
    return {run["key"]: run for run in status["runs"]}


def test_every_run_is_shown_with_what_waits_and_what_went_wrong(up: UploaderHarness, tmp_path: Path) -> None:
    up.begin("done", rows=3, last=True, metadata={"job_name": "j", "tags": {"model": "small", "seed": "7"}})
    up.settle()
    up.api.script("finish", final(404))
    up.begin("parked", rows=2, last=True)
    up.settle()
    up.store.always["put"] = failing(500)
    up.begin("waiting", rows=4)
    up.advance(61.0)
    runs = shown(tmp_path)
    assert {key: run["state"] for key, run in runs.items()} == {
        "done": "finished", "parked": "parked", "waiting": "registered",
    }  # fmt: skip
    assert runs["done"]["objects"] == ["s3://bucket/runs/id-done/0001.csv.gz"]
    assert (runs["done"]["rows_delivered"], runs["done"]["exit_code"], runs["done"]["status"]) == (3, 0, "finished")
    assert "404" in str(runs["parked"]["last_error"])
    assert (runs["waiting"]["rows_waiting"], runs["waiting"]["objects_waiting"]) == (4, 1)
    assert "500" in str(runs["waiting"]["last_error"])
    text = status_text([read_status(str(tmp_path / "spool"))], now=up.clock.now())
    assert "no uploader running" in text
    assert [line.split()[:3] for line in text.splitlines()[2:]] == [
        ["id-done", "j", "finished"], ["id-parked", "-", "parked"], ["id-waiting", "-", "registered"],
    ]  # fmt: skip
    described = describe_run(runs["done"])
    assert "job_name: j" in described
    assert "tags: model small, seed 7" in described
    assert "closed_as_stale: no" in described
    # A person reads it: nothing is written as Python has it.
    assert not {"{", "}", "[", "None", "False", "True"} & set(re.findall(r"[{}\[]|\w+", described))
    assert [key for key, run in runs.items() if is_undelivered(run)] == ["parked", "waiting"]


def test_run_that_waits_behind_another_says_for_what_and_a_healthy_one_says_nothing(
    up: UploaderHarness, tmp_path: Path
) -> None:
    healthy = up.begin("healthy", rows=1)
    up.settle()
    up.api.always["register"] = away()
    up.begin("tries")
    up.settle()
    up.begin("waits")
    up.settle()
    runs = shown(tmp_path)
    assert runs["tries"]["last_error"] == "connection refused"
    assert runs["waits"]["last_error"] == "waiting for https://api.test"
    assert float(str(runs["waits"]["next_try_at"])) > up.clock.now()
    assert (runs["healthy"]["last_error"], runs["healthy"]["next_try_at"]) == ("", 0.0)
    assert healthy.record.run_id
    status = read_status(str(tmp_path / "spool"))
    text = status_text([status | {"uploader_pid": 1}], now=up.clock.now())
    assert "waiting for https://api.test: connection refused (failed 1 times, next try in" in text
    # Nobody tries while no uploader runs.
    text = status_text([status], now=up.clock.now())
    assert "waiting for https://api.test: connection refused (failed 1 times)" in text
    assert "next try in" not in text


def test_status_names_the_uploader_that_owns_the_spool(tmp_path: Path) -> None:
    open_spool_at(tmp_path / "spool", SteppedClock()).close()
    lock = SpoolLock(str(tmp_path / "spool"), clock=SystemClock())
    status = read_status(str(tmp_path / "spool"))
    assert f"uploader {status['uploader_pid']}" in status_text([status], now=0.0)
    lock.release()


def test_there_may_be_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no spool"):
        read_status(str(tmp_path))
    open_spool_at(tmp_path / "spool", SteppedClock()).close()
    assert "no runs" in status_text([read_status(str(tmp_path / "spool"))], now=0.0)


@pytest.mark.parametrize("has_header", [False, True])
def test_spool_that_was_not_finished_being_made_is_told_and_keeps_no_other_back(home: Home, has_header: bool) -> None:
    spools = Path(spools_home(home.environ))
    unfinished = spools / "unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "spool.db").touch()
    if has_header:
        # As a full disk may leave it: SQLite has written its own first page and none of ours.
        with closing(sqlite3.connect(unfinished / "spool.db")) as connection:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
    done = home.run(UPLOADER, "status", "--spool", str(unfinished))
    assert (done.returncode, f"the spool {unfinished}/spool.db is empty" in done.stderr) == (2, True), done.stderr
    done = home.run(UPLOADER, "status")
    assert (done.returncode, "no spool in" in done.stdout, "is empty" in done.stderr) == (0, True, True), done.stderr
    open_spool_at(spools / "whole", SteppedClock()).close()
    done = home.run(UPLOADER, "status")
    assert (done.returncode, f"spool {spools}/whole" in done.stdout) == (0, True), done.stderr
    done = home.run(UPLOADER, "show", "nobody")
    assert (done.returncode, "there is no run 'nobody'" in done.stderr) == (2, True), done.stderr
    # The next uploader goes on with it.
    open_spool_at(unfinished, SteppedClock()).close()
    assert read_status(str(unfinished))["runs"] == []


def test_spool_that_cannot_be_read_is_told_in_one_line(tmp_path: Path) -> None:
    spool = open_spool_at(tmp_path / "spool", SteppedClock())
    path = tmp_path / "spool" / "spool.db"
    spool._database.connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    spool.close()
    with pytest.raises(UsageError, match="schema version"):
        read_status(str(tmp_path / "spool"))
    path.write_bytes(b"rubbish" * 1000)
    with pytest.raises(UsageError, match="cannot read the spool"):
        read_status(str(tmp_path / "spool"))


def test_reading_disturbs_nobody(up: UploaderHarness, tmp_path: Path) -> None:
    run = up.begin(rows=5)
    with up.spool._database.transaction() as connection:
        connection.execute("UPDATE runs SET ended_at = 0")
        assert shown(tmp_path)["run"]["rows_waiting"] == 5
    up.add(run, 5)
    assert shown(tmp_path)["run"]["rows_waiting"] == 10


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("20231114-x", True),
        ("2023", True),
        ("202", False),
        ("the key", True),
        ("node/the key", True),
        ("", False),
    ],
)
def test_run_is_named_by_its_id_its_beginning_or_its_key(name: str, expected: bool) -> None:
    runs = [
        {"run_id": "20231114-x", "key": "the key", "client": "node"},
        {"run_id": "", "key": "other", "client": ""},
    ]
    assert runs_named(runs, name) == (runs[:1] if expected else [])


def test_rows_that_are_missing_are_shown(up: UploaderHarness, tmp_path: Path) -> None:
    run = up.begin("lossy", first_available_seq=8)
    up.add(run, 2)
    assert shown(tmp_path)["lossy"]["rows_missing"] == 7
    assert "0 (7 missing)" in status_text([read_status(str(tmp_path / "spool"))], now=0.0)
    up.spool.close_run(run, Event.DISCARDED)
    assert shown(tmp_path)["lossy"]["state"] == "discarded"


def test_silent_collector_is_late_and_an_ended_run_is_not(tmp_path: Path, up: UploaderHarness) -> None:
    up.begin("silent", rows=3, metadata={"job_name": "train"})
    up.begin("ended", rows=3, last=True)
    lock = SpoolLock(str(tmp_path / "spool"), clock=SystemClock())
    heard = HeardFile(str(tmp_path / "spool"), up.spool, up.clock, lambda: None)
    up.let_pass(5.0)
    up.add(up.begin("silent"), 1)
    heard.write()

    def at(seconds: float) -> dict[str, dict[str, object]]:
        status = read_status(str(tmp_path / "spool"), now=up.clock.now() + seconds)
        return {run["key"]: run for run in status["runs"]}

    assert at(0)["silent"]["last_heard_at"] == pytest.approx(up.clock.now(), abs=0.1)
    assert [at(seconds)["silent"]["late"] for seconds in (0, 14, 16, 900)] == [False, False, True, True]
    assert at(900)["ended"]["late"] is False
    status = read_status(str(tmp_path / "spool"), now=up.clock.now() + 60)
    text = status_text([status], now=up.clock.now() + 60)
    assert "train" in text
    assert "new, late: silent for 60 s" in text or "registered, late: silent for 60 s" in text
    # Without an uploader nobody listens.
    lock.release()
    assert at(900)["silent"]["late"] is False
    # The next uploader has not heard it yet.
    again = HeardFile(str(tmp_path / "spool"), up.spool, up.clock, lambda: None)
    again.write()
    assert at(900)["silent"]["last_heard_at"] == pytest.approx(up.clock.now(), abs=0.1)


def test_status_of_a_stopped_collector_says_late_until_it_goes_on(home: Home) -> None:
    home.start_uploader("--upload-interval", "3600")
    words = ["--connect", home.address, "--interval", "0.1", "--run-key", "k", "--job-name", "train", "--"]
    collector = home.start(COLLECTOR, *words, "sleep", "600")
    spool = ("--spool", str(home.directory / "spool"))

    def state() -> dict[str, object]:
        runs = home.status(*spool)
        return runs[0] if runs else {}

    wait_until(lambda: state().get("rows_waiting"), "the run is known")
    assert (state()["late"], state()["interval_seconds"]) == (False, 0.1)
    recorder = recorder_of(collector.pid)
    os.kill(recorder, signal.SIGSTOP)
    wait_until(lambda: state()["late"], "the silent collector is late")
    run_id = str(state()["run_id"])
    shown = home.run(UPLOADER, "status", run_id[-6:], *spool).stdout
    assert "train" in shown, shown
    assert "late: silent for" in shown
    os.kill(recorder, signal.SIGCONT)
    wait_until(lambda: not state()["late"], "it is heard again")
    collector.terminate()
    collector.communicate(timeout=60)


def test_run_of_a_client_that_is_not_on_the_list_any_more_is_revoked(tmp_path: Path, up: UploaderHarness) -> None:
    clients = ["node7"]
    heard = HeardFile(str(tmp_path / "spool"), up.spool, up.clock, lambda: clients)
    up.spool.open_run(hello("run"), owner="node7")
    heard.write()
    assert shown(tmp_path)["run"]["revoked"] is False
    clients.clear()
    heard.write()
    assert shown(tmp_path)["run"]["revoked"] is True
    assert "new, client revoked" in status_text([read_status(str(tmp_path / "spool"))], now=up.clock.now())
    clients.append("node7")
    heard.write()
    assert shown(tmp_path)["run"]["revoked"] is False
