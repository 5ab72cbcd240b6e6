"""What may happen to a spool, one fault a test: real processes, and then rows are counted."""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.process_harness import COLLECTOR, DEADLINE_S, UPLOADER, Home, python, rows_of_file, wait_until
from fakes.raw_collector import Collectors, RawCollector
from fakes.small_disk import SmallDisk
from fakes.sync_log import SyncLog
from fakes.uploader_harness import finish, hello, row_numbers, samples
from locations import TESTS
from rows import row

from sentinel_collector.delivery.overflow_file.format import OverflowHeader
from sentinel_collector.delivery.state_dir import open_run_file
from sentinel_collector.delivery.uploader_client import MAX_HELLO_WAIT_S
from sentinel_protocol.wire.messages import Ack, Finished, Hello, Reject, RejectCode, Welcome, encode
from sentinel_protocol.wire.sample import csv_rows, decode_sample
from sentinel_uploader.admin.status_reader import read_status
from sentinel_uploader.spool.database import PAGE_BYTES
from sentinel_uploader.spool.schema import SCHEMA_VERSION

GOLDEN = TESTS / "golden"
BACKLOG_ROWS = 6000
MINUTE_S = 60.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with SmallDisk(tmp_path / "disk") as made:
        yield made


def log_of(home: Home) -> str:
    text = (home.directory / "uploader.log").read_text(encoding="utf-8")
    assert "Traceback" not in text, text
    return text


def only_run(spool: Path) -> dict[str, Any]:
    (run,) = read_status(str(spool))["runs"]
    assert isinstance(run, dict)
    return run


def acknowledged(*runs: dict[str, Any]) -> int:
    return sum(run["rows_waiting"] + run["rows_delivered"] for run in runs)


def send(collector: RawCollector, first: int, last: int) -> None:
    collector.say(samples(first, last))
    while collector.hear_until(Ack).seq < last:
        pass


def delivered(home: Home) -> list[int]:
    """Row numbers of the only run, in the order of its objects."""
    (run,) = home.local_runs()
    return row_numbers("".join(f"{line}\n" for line in home.local_rows(run)).encode())


def ended_after(last: int, collector: RawCollector, home: Home) -> None:
    """A collector that comes back finds all its rows stored, ends the run, and each is delivered once."""
    collector.say(hello())
    assert collector.hear(Welcome).next_seq == last + 1
    collector.say(finish(last))
    collector.hear_until(Finished)
    assert delivered(home) == list(range(1, last + 1))


@pytest.mark.timeout(240)
def test_disk_that_is_full_for_a_minute_holds_up_acknowledgements_and_nothing_else(home: Home, disk: SmallDisk) -> None:
    spool, output = str(disk.mount / "spool"), home.directory / "rows.csv"

    def stored() -> int:
        done = home.run(*disk.prefix, UPLOADER, "status", "--json", "--spool", spool)
        assert done.returncode == 0, done.stderr
        (status,) = json.loads(done.stdout)
        return acknowledged(*status["runs"])

    uploader = home.start_uploader("--spool", spool, prefix=disk.prefix)
    target = home.start(*python("import time; time.sleep(300)"))
    words = ("--connect", home.address, "--interval", "0.2", "--output", str(output), "--wait", "50")
    collector = home.start(COLLECTOR, *words, "--pid", str(target.pid))
    wait_until(lambda: stored() > 3, "rows arrive")

    disk.fill()
    wait_until(lambda: "spool is full" in log_of(home), "the disk is full")
    held, taken = stored(), len(rows_of_file(output))
    until = time.monotonic() + MINUTE_S
    while (left_s := until - time.monotonic()) > 0:
        assert stored() == held < taken
        time.sleep(min(5.0, left_s))
    assert stored() == held
    # Once a minute, and this one has a little more than sixty seconds.
    assert log_of(home).count("spool is full") <= 2
    assert len(rows_of_file(output)) >= taken + 12, "the collector goes on sampling"
    assert (uploader.poll(), collector.poll()) == (None, None)

    disk.empty()
    # A collector that was refused for so long asks again after its longest pause, spread by a quarter.
    asks_again_s = 1.25 * MAX_HELLO_WAIT_S
    wait_until(
        lambda: "spool has room again" in log_of(home),
        "rows are taken again by itself",
        timeout_s=asks_again_s + DEADLINE_S,
    )
    target.kill()
    _, said = collector.communicate(timeout=DEADLINE_S)
    assert collector.returncode == 0, said
    (run,) = home.local_runs()
    assert home.local_rows(run) == rows_of_file(output)


def test_uploader_that_is_started_on_a_full_disk_says_so_in_one_line_and_loses_nothing(
    home: Home, disk: SmallDisk, collectors: Collectors
) -> None:
    spool = str(disk.mount / "spool")
    uploader = home.start_uploader("--spool", spool, prefix=disk.prefix)
    first, second = collectors.connect(), collectors.connect()
    first.say(hello())
    send(first, 1, 300)
    uploader.kill()
    uploader.wait()
    disk.fill()
    refused = home.run(*disk.prefix, UPLOADER, "--bind", home.address, "--spool", spool)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert refused.stderr.startswith(f"sentinel-uploader: no room in the spool {spool}")
    disk.empty()
    home.start_uploader("--spool", spool, prefix=disk.prefix)
    ended_after(300, second, home)


def test_spool_at_its_limit_holds_up_acknowledgements_and_its_file_shrinks_after_the_delivery(home: Home) -> None:
    spool, runs, output = home.directory / "spool", home.directory / "target", home.directory / "rows.csv"
    home.start_uploader("--spool-max", "256KiB", "--upload-interval", "0.5", "--target", str(runs))
    # What was delivered to is gone: a file is in the way of the directory.
    runs.rmdir()
    runs.write_text("in the way")
    file = home.directory / "state" / "sentinel-stream" / "collector"
    overflow = open_run_file(str(file), "day")
    greeting = encode(Hello(1, "day", "earlier", 1.0))
    overflow.write_header(
        OverflowHeader(run_key="day", incarnation="earlier", uploader_url=home.address, hello=greeting)
    )
    for first in range(1, BACKLOG_ROWS, 100):
        overflow.append_rows([row(number) for number in range(first, first + 100)], 0)
    overflow.close()
    target = home.start(*python("import time; time.sleep(120)"))
    words = ("--connect", home.address, "--interval", "0.1", "--output", str(output), "--wait", "50")
    collector = home.start(COLLECTOR, *words, "--run-key", "day", "--pid", str(target.pid))

    wait_until(lambda: "spool is full" in log_of(home), "the limit is reached")
    wait_until(lambda: only_run(spool)["last_error"], "the target is away")
    held, taken = acknowledged(only_run(spool)), len(rows_of_file(output))
    wait_until(lambda: len(rows_of_file(output)) >= taken + 10, "the collector goes on sampling")
    assert 0 < acknowledged(only_run(spool)) == held < BACKLOG_ROWS
    size = os.path.getsize(spool / "spool.db")
    assert 128 << 10 < size <= 256 << 10

    runs.unlink()
    wait_until(lambda: acknowledged(only_run(spool)) >= BACKLOG_ROWS, "all goes on by itself")
    target.kill()
    _, said = collector.communicate(timeout=DEADLINE_S)
    assert collector.returncode == 0, said
    home.runs = runs
    (run,) = home.local_runs()
    expected = [csv_rows([decode_sample(row(number))]).decode().rstrip() for number in range(1, BACKLOG_ROWS + 1)]
    assert home.local_rows(run) == expected + rows_of_file(output)
    wait_until(lambda: os.path.getsize(spool / "spool.db") < size // 2, "the file shrinks")


def test_read_only_spool_directory_is_told_in_one_line_and_used_when_it_can_be_written_again(
    home: Home, disk: SmallDisk, collectors: Collectors
) -> None:
    spool = disk.mount / "spool"
    uploader = home.start_uploader("--spool", str(spool), prefix=disk.prefix)
    first = collectors.connect()
    first.say(hello())
    send(first, 1, 5)
    uploader.kill()
    uploader.wait()

    disk.remount("ro")
    for directory in (spool, disk.mount / "other"):
        refused = home.run(*disk.prefix, UPLOADER, "--bind", home.address, "--spool", str(directory))
        assert refused.returncode == 2
        assert refused.stderr.count("\n") == 1
        assert str(directory) in refused.stderr
        assert "Read-only file system" in refused.stderr
    disk.remount("rw")
    home.start_uploader("--spool", str(spool), prefix=disk.prefix)
    ended_after(5, collectors.connect(), home)


def test_second_uploader_on_a_spool_is_refused_with_the_first_ones_name_and_disturbs_nobody(
    home: Home, collector: RawCollector
) -> None:
    uploader = home.start_uploader()
    collector.say(hello())
    send(collector, 1, 5)
    second = home.run(UPLOADER, "--bind", f"ipc://{home.runtime}/v.sock", "--spool", str(home.directory / "spool"))
    assert second.returncode == 1
    assert second.stderr == (
        f"sentinel-uploader: the spool {home.directory / 'spool'} is in use by another uploader "
        f"(process {uploader.pid})\n"
    )
    assert not (home.runtime / "v.sock").exists()
    # Nor does it take the first one's socket away.
    same = home.run(UPLOADER, "--bind", home.address, "--spool", str(home.directory / "another"))
    assert (same.returncode, same.stderr) == (
        2, f"sentinel-uploader: cannot listen at {home.address}: another uploader does already\n"
    )  # fmt: skip
    send(collector, 6, 9)
    collector.say(finish(9))
    collector.hear_until(Finished)
    assert delivered(home) == list(range(1, 10))


def test_uploader_that_cannot_listen_leaves_no_spool_behind(home: Home) -> None:
    spool = home.directory / "new"
    home.start_uploader()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for address in (home.address, f"tcp://127.0.0.1:{taken.getsockname()[1]}"):
            done = home.run(UPLOADER, "--bind", address, "--spool", str(spool))
            assert done.returncode == 2
            assert (done.stderr.count("\n"), "cannot listen" in done.stderr) == (1, True)
            assert not spool.exists()
    # A spool that was there stays as it is.
    spool.mkdir(mode=0o700)
    (spool / "spool.db").write_bytes(b"")
    home.run(UPLOADER, "--bind", home.address, "--spool", str(spool))
    assert (spool / "spool.db").read_bytes() == b""


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 // PAGE_BYTES * PAGE_BYTES + 100)


def scribbled_at_its_head(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"rubbish" * 1000)


def scribbled_in_the_middle(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(PAGE_BYTES)
        file.write(b"\xa5" * (path.stat().st_size - PAGE_BYTES))


def with_a_record_that_is_none(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE runs SET record = x'c1c1c1'")
        connection.commit()


@pytest.mark.parametrize(
    "damage", [truncated, scribbled_at_its_head, scribbled_in_the_middle, with_a_record_that_is_none]
)
def test_unreadable_spool_is_set_aside_and_the_run_goes_on_without_what_was_in_it(
    home: Home, collectors: Collectors, damage: Callable[[Path], None]
) -> None:
    path = home.directory / "spool" / "spool.db"
    uploader = home.start_uploader()
    first = collectors.connect()
    first.say(hello())
    send(first, 1, 1500)
    send(first, 1501, 3000)
    uploader.kill()
    uploader.wait()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    damage(path)
    before = path.read_bytes()

    home.start_uploader()
    aside = Path(f"{path}.unreadable-1")
    assert str(aside) in log_of(home)
    shown = home.run(UPLOADER, "status", "--spool", str(path.parent))
    assert f"could not be read; nothing of it is deleted: {aside}\n" in shown.stdout
    # Opening counts in the header's first 100 bytes.
    assert aside.read_bytes()[100:] == before[100:]
    third = collectors.connect()
    third.say(hello(first_available_seq=3001))
    assert third.hear(Welcome).next_seq == 3001
    third.say(samples(3001, 3010), finish(3010))
    third.hear_until(Finished)
    (again,) = [run for run in home.local_runs() if run["state"] == "finished"]
    assert home.local_rows(again) == csv_rows(samples(3001, 3010).samples).decode().splitlines()
    run = only_run(home.directory / "spool")
    assert (run["rows_delivered"], run["rows_missing"]) == (10, 3000)
    assert aside.read_bytes()[100:] == before[100:]


def test_spool_of_a_newer_version_is_refused_and_left_as_it_is(home: Home, collectors: Collectors) -> None:
    path = home.directory / "spool" / "spool.db"
    uploader = home.start_uploader()
    first = collectors.connect()
    first.say(hello())
    send(first, 1, 5)
    uploader.kill()
    uploader.wait()
    set_version(path, SCHEMA_VERSION + 1)
    before = path.read_bytes()

    refused = home.run(UPLOADER, "--bind", home.address, "--spool", str(path.parent))
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "newer sentinel-uploader" in refused.stderr
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*unreadable*"))

    set_version(path, SCHEMA_VERSION)
    home.start_uploader()
    ended_after(5, collectors.connect(), home)


def set_version(path: Path, version: int) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_spool_of_each_older_version_is_migrated_with_all_that_is_in_it(
    home: Home, collectors: Collectors, version: int
) -> None:
    """It holds a run that has ended, and an open one with a batch (rows 1 to 5) and rows 6 to 10."""
    spool = home.directory / "spool"
    spool.mkdir(mode=0o700)
    with contextlib.closing(sqlite3.connect(spool / "spool.db")) as connection:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript((GOLDEN / f"spool-{version}" / "spool.sql").read_text(encoding="utf-8"))
        connection.execute(f"PRAGMA user_version = {version}")
    assert [run["state"] for run in read_status(str(spool))["runs"]] == ["finished", "new"]

    home.start_uploader()
    assert f"migrated from={version} to={SCHEMA_VERSION}" in log_of(home)
    gone, there = collectors.connect(), collectors.connect()
    gone.say(hello("ended", epoch="another"))
    closed = gone.hear(Reject)
    assert (closed.code, closed.seq) == (RejectCode.CLOSED, 4)
    there.say(hello("open"))
    assert there.hear(Welcome).next_seq == 11
    there.say(samples(11, 12), finish(12))
    there.hear_until(Finished)
    assert delivered(home) == list(range(1, 13))
    (run,) = home.local_runs()
    assert run["metadata"]["job_name"] == "nightly"
    with contextlib.closing(sqlite3.connect(spool / "spool.db")) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        assert connection.execute("SELECT count(*) FROM tombstones").fetchone() == (0,)
    done = home.run(UPLOADER, "drain", "--spool", str(spool), "--timeout", "0.5")
    assert done.returncode == 0, done.stderr


def test_spool_of_an_uploader_that_is_killed_again_and_again_is_a_sound_database_with_every_row(
    home: Home, collectors: Collectors
) -> None:
    path, acked, kills = home.directory / "spool" / "spool.db", 0, 0
    for _ in range(5):
        uploader = home.start_uploader("--upload-interval", "0.1")
        collector = collectors.connect()
        collector.say(hello())
        next_seq = collector.hear(Welcome).next_seq
        # What was acknowledged is there; what was on its way may be.
        assert next_seq > acked
        collector.say(*(samples(first, first + 49) for first in range(next_seq, next_seq + 5000, 50)))
        while acked < next_seq + 1000:
            acked = max(acked, collector.hear(Ack).seq)
        uploader.kill()
        kills += uploader.wait() == -signal.SIGKILL
        with contextlib.closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert not connection.execute("SELECT run, number FROM batches WHERE body IS NULL").fetchall()
    assert kills == 5
    home.start_uploader()
    collector = collectors.connect()
    collector.say(hello())
    last = collector.hear(Welcome).next_seq - 1
    assert last >= acked
    collector.say(finish(last))
    collector.hear_until(Finished)
    assert delivered(home) == list(range(1, last + 1))


def test_what_is_acknowledged_would_survive_a_power_cut_it_was_synced_before(
    home: Home, tmp_path: Path, collector: RawCollector
) -> None:
    log = SyncLog(tmp_path)
    home.start_uploader(env=log.environ)
    collector.say(hello())
    collector.hear(Welcome)
    spool = home.directory / "spool"
    wal = str(spool / "spool.db-wal")
    for number in range(1, 11):
        before = log.paths().count(wal)
        send(collector, number, number)
        # Nothing else is going on: the run is registered once, and uploaded after a minute.
        assert log.paths().count(wal) > before
    # So were the names of the file and of its directory.
    assert {str(spool), str(spool.parent)} <= set(log.paths())
    before = log.paths().count(wal)
    collector.say(finish(10))
    assert collector.hear_until(Ack).finish
    assert log.paths().count(wal) > before
    collector.hear_until(Finished)
    assert delivered(home) == list(range(1, 11))
    (run,) = home.local_runs()
    # The object and its directory, too, before the rows left the spool.
    directory = str(home.runs / run["run_id"])
    assert directory in log.paths()
    assert any(path.startswith(f"{directory}/") for path in log.paths())
