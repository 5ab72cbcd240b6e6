"""The spool's file: durability, limits, damage, ownership."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.scripted_backend import SteppedClock
from fakes.uploader_harness import finish, frame, hello, open_spool_at

from sentinel_protocol.common.clock import SystemClock
from sentinel_protocol.common.errors import UsageError
from sentinel_uploader.spool import database, tombstones
from sentinel_uploader.spool.database import MIN_SPOOL_BYTES, PAGE_BYTES, Database
from sentinel_uploader.spool.errors import SpoolError, SpoolFullError, SpoolLockedError
from sentinel_uploader.spool.lock import SpoolLock, lock_owner_pid
from sentinel_uploader.spool.open_run import OpenRun
from sentinel_uploader.spool.schema import SCHEMA_VERSION
from sentinel_uploader.spool.store import Spool

CLOCK = SteppedClock()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "spool"
    path.mkdir(mode=0o700)
    return path


@contextlib.contextmanager
def opened(directory: Path, *, max_bytes: int = 1 << 20) -> Iterator[Database]:
    made = Database(str(directory), max_bytes=max_bytes)
    try:
        yield made
    finally:
        made.close()


def fill(made: Database, size: int, *, first: int = 0) -> None:
    with made.transaction() as connection:
        connection.executemany(
            "INSERT INTO frames (id, run, first_seq, rows, payload) VALUES (?, 1, 1, 1, ?)",
            [(first + number, bytes(1000)) for number in range(size // 1000)],
        )


def fill_up(made: Database) -> None:
    for number in range(1000):
        fill(made, 100_000, first=number * 1000)


def store_until_full(spool: Spool, run: OpenRun) -> None:
    while True:
        spool.append([frame(run, run.durable_seq + 1, run.durable_seq + 200)], [])


def test_pragmas_of_the_live_connection_survive_a_power_cut(directory: Path) -> None:
    with opened(directory) as made:
        values = {name: made.connection.execute(f"PRAGMA {name}").fetchone()[0] for name in (
            "journal_mode", "synchronous", "auto_vacuum", "max_page_count", "page_size", "user_version",
        )}  # fmt: skip
    assert values == {
        "journal_mode": "wal",
        "synchronous": 2,
        "auto_vacuum": 2,
        "max_page_count": (1 << 20) // PAGE_BYTES,
        "page_size": PAGE_BYTES,
        "user_version": SCHEMA_VERSION,
    }
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}


def test_transaction_that_fails_has_not_happened(directory: Path) -> None:
    with opened(directory) as made:
        with contextlib.suppress(KeyError), made.transaction() as connection:
            connection.execute("INSERT INTO requests (kind) VALUES ('x')")
            raise KeyError
        assert made.query("SELECT count(*) FROM requests") == [(0,)]
        assert not made.connection.in_transaction


def test_commit_that_fails_is_rolled_back_and_told_as_our_own_error(directory: Path) -> None:
    with opened(directory) as made:
        made.connection.execute("PRAGMA foreign_keys = 1")
        made.connection.execute("CREATE TABLE child (x REFERENCES requests (id) DEFERRABLE INITIALLY DEFERRED)")
        with pytest.raises(SpoolError, match="FOREIGN KEY"), made.transaction() as connection:
            connection.execute("INSERT INTO child VALUES (42)")
        assert not made.connection.in_transaction
        fill(made, 10_000)


def test_no_error_of_sqlite_escapes_from_reads_or_after_closing(directory: Path) -> None:
    with opened(directory) as made:
        with pytest.raises(SpoolError):
            made.query("SELECT nothing FROM nowhere")
        with pytest.raises(SpoolError):
            list(made.iterate("SELECT nothing FROM nowhere"))
    for use in (made.used_bytes, made.data_version, made.compact, lambda: made.query("SELECT 1")):
        with pytest.raises(SpoolError, match="closed"):
            use()
    with pytest.raises(SpoolError, match="closed"), made.transaction():
        pass


def test_file_never_grows_beyond_its_limit_and_shrinks_when_it_is_emptied(directory: Path) -> None:
    with opened(directory, max_bytes=4 << 20) as made:
        with pytest.raises(SpoolFullError, match="full"):
            fill_up(made)
        assert made.used_bytes() <= 4 << 20
        assert made.query("PRAGMA integrity_check") == [("ok",)]
        with made.transaction() as connection:
            connection.execute("DELETE FROM frames")
        while made.compact():
            pass
        files = sum(path.stat().st_size for path in directory.iterdir())
        assert files < 300 << 10
        fill(made, 100_000)


def test_wal_of_a_small_spool_stays_small(directory: Path) -> None:
    with opened(directory, max_bytes=MIN_SPOOL_BYTES) as made:
        for _ in range(200):
            fill(made, 8000)
            with made.transaction() as connection:
                connection.execute("DELETE FROM frames")
        assert (directory / "spool.db-wal").stat().st_size <= MIN_SPOOL_BYTES


def test_limit_below_the_smallest_is_wrong_use(directory: Path) -> None:
    with pytest.raises(UsageError, match="smallest"):
        Database(str(directory), max_bytes=MIN_SPOOL_BYTES - 1)


def test_limit_that_was_lowered_below_the_files_size_leaves_room_for_changes_of_state(directory: Path) -> None:
    clock = SteppedClock()
    spool = open_spool_at(directory, clock, max_bytes=4 << 20)
    run = spool.open_run(hello(), owner="")
    with pytest.raises(SpoolFullError):
        store_until_full(spool, run)
    last = run.durable_seq
    spool.close()
    spool = open_spool_at(directory, clock, max_bytes=MIN_SPOOL_BYTES)
    run = next(iter(spool._runs.values()))
    with pytest.raises(SpoolFullError):
        spool.append([frame(run, last + 1, last + 1)], [])
    spool.append([], [(run, finish(last))])
    for _ in range(50):
        spool.update(run, last_error="e" * 500, put_attempted=True)
    assert run.durable_seq == last
    with spool._database.transaction() as connection:
        connection.execute("DELETE FROM frames")
    while spool._database.compact():
        pass
    beside = tombstones.MIN_COUNT * tombstones.BYTES_PER_TOMBSTONE
    assert spool._database.query("PRAGMA max_page_count") == [((MIN_SPOOL_BYTES + beside) // PAGE_BYTES,)]
    spool.close()


def test_reader_that_stays_does_not_hold_up_the_maintenance(directory: Path) -> None:
    with opened(directory) as made:
        fill(made, 50_000)
        with contextlib.closing(database.connect(str(directory / "spool.db"))) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM frames").fetchone()
            fill(made, 50_000, first=1000)
            # A checkpoint that waited for the reader would take the ten seconds of the busy timeout, every minute.
            made.compact()
        assert made.query("PRAGMA busy_timeout") == [(10_000,)]


def spool_with_a_run(directory: Path) -> None:
    spool = Spool.open(str(directory), max_bytes=1 << 20, clock=CLOCK)
    run = spool.open_run(hello(), owner="")
    for first in range(1, 3000, 100):
        spool.append([frame(run, first, first + 99)], [])
    spool.close()


def test_each_damaged_file_that_is_set_aside_has_a_name_of_its_own(directory: Path) -> None:
    found = []
    for number in (1, 2):
        spool_with_a_run(directory)
        path = directory / "spool.db"
        with path.open("r+b") as file:
            file.write(b"rubbish" * 1000)
        found.append(path.read_bytes())
        Spool.open(str(directory), max_bytes=1 << 20, clock=CLOCK).close()
        assert len(database.quarantined_files(str(directory))) == number
    assert [Path(path).read_bytes() for path in database.quarantined_files(str(directory))] == found


def test_spool_that_cannot_be_opened_is_an_error_of_ours(directory: Path) -> None:
    (directory / "spool.db").mkdir()
    with pytest.raises(SpoolError, match="cannot open"):
        Spool.open(str(directory), max_bytes=1 << 20, clock=CLOCK)


def test_second_owner_is_refused_with_a_line_that_names_the_first(directory: Path) -> None:
    assert lock_owner_pid(str(directory)) is None
    lock = SpoolLock(str(directory), clock=CLOCK)
    assert lock_owner_pid(str(directory)) == os.getpid()
    with pytest.raises(SpoolLockedError, match=f"in use by another uploader \\(process {os.getpid()}\\): end it with"):
        SpoolLock(str(directory), clock=CLOCK)
    lock.release()
    assert lock_owner_pid(str(directory)) is None
    SpoolLock(str(directory), clock=CLOCK).release()


def test_command_that_looks_at_the_lock_does_not_keep_an_uploader_from_starting(directory: Path) -> None:
    SpoolLock(str(directory), clock=CLOCK).release()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            lock_owner_pid(str(directory))

    looker = threading.Thread(target=look)
    looker.start()
    try:
        for _ in range(50):
            SpoolLock(str(directory), clock=SystemClock()).release()
    finally:
        stop.set()
        looker.join()


def test_lock_of_a_killed_owner_is_free(directory: Path) -> None:
    code = (
        "import sys; from sentinel_uploader.spool.lock import SpoolLock;"
        "from sentinel_protocol.common.clock import SystemClock;"
        "lock = SpoolLock(sys.argv[1], clock=SystemClock()); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"held\n"
        assert lock_owner_pid(str(directory)) == owner.pid
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    SpoolLock(str(directory), clock=CLOCK).release()
