"""A run that is over stays known long after its details are forgotten: its rows are never taken a second time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.listening import Listening
from fakes.raw_collector import collectors_of
from fakes.scripted_backend import SteppedClock
from fakes.uploader_harness import ended_record, finish, frame, hello, open_spool_at, samples

from sentinel_protocol.common.endpoints import parse_address
from sentinel_protocol.wire.messages import Ack, Finished, Reject, RejectCode, Welcome
from sentinel_uploader.runs.lifecycle import Event
from sentinel_uploader.server.zmq_server import ZmqServer
from sentinel_uploader.spool import tombstones
from sentinel_uploader.spool.database import MIN_SPOOL_BYTES
from sentinel_uploader.spool.errors import SpoolFullError
from sentinel_uploader.spool.store import Spool
from sentinel_uploader.spool.tombstones import BYTES_PER_TOMBSTONE, MAX_COUNT, MIN_COUNT
from sentinel_uploader.spool.types import RunClosedError

RUN_ID = "6f6a9d8a-4a39-4d2f-9a0e-3f9f0c1f8f57"
DETAILS = {"job_name": "x" * 1500}


def open_at(directory: Path, *, max_bytes: int = MIN_SPOOL_BYTES) -> Spool:
    spool = open_spool_at(directory, SteppedClock(), max_bytes=max_bytes)
    # Hundreds of runs: nothing here is about power cuts.
    spool._database.connection.execute("PRAGMA synchronous = OFF")
    return spool


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = open_at(tmp_path / "spool")
    yield made
    made.close()


def deliver(spool: Spool, key: str, *, rows: int = 5, event: Event = Event.ACCEPTED) -> None:
    """Take a run to its end."""
    run = spool.open_run(hello(key, metadata=DETAILS), owner="")
    spool.append([frame(run, 1, rows)], [(run, finish(rows))])
    spool.update(run, Event.REGISTERED, Event.ENDED, run_id=RUN_ID, uri_prefix="s3://b/p")
    spool.close_run(run, event, delivered_rows=rows)


def deliver_many(spool: Spool, count: int, *, first: int = 0) -> None:
    """Many runs that come and go without a row."""
    for number in range(first, first + count):
        run = spool.open_run(hello(f"many-{number}", metadata=DETAILS), owner="")
        spool.close_run(run, Event.DISCARDED, run_id=RUN_ID)


def count(spool: Spool, table: str) -> int:
    ((rows,),) = spool._database.query(f"SELECT count(*) FROM {table}")
    return int(rows)


def test_collectors_of_forgotten_runs_hear_what_they_would_have_heard_before(tmp_path: Path) -> None:
    router = ZmqServer([parse_address("tcp://127.0.0.1:*", bind=True)])
    there = Listening(tmp_path / "spool", router, max_bytes=MIN_SPOOL_BYTES)
    try:
        deliver(there.spool, "accepted")
        deliver(there.spool, "stale", event=Event.CLOSED_STALE)
        deliver(there.spool, "given up", event=Event.DISCARDED)
        deliver_many(there.spool, 20)
        assert [ended_record(there.spool, key) for key in ("accepted", "stale", "given up")] == [None] * 3
        with collectors_of(there.url) as collectors:
            unheard, heir, *closed = (collectors.connect() for _ in range(4))
            unheard.say(hello("accepted", first_available_seq=3))
            assert unheard.hear(Welcome) == Welcome(6, RUN_ID)
            assert unheard.hear(Ack) == Ack(5, finish=True)
            finished = unheard.hear(Finished)
            assert (finished.run_id, finished.rows) == (RUN_ID, 5)
            heir.say(hello("accepted", epoch="second"))
            for collector, key in zip(closed, ("stale", "given up"), strict=True):
                collector.say(hello(key))
            for collector in (heir, *closed):
                refused = collector.hear(Reject)
                assert (refused.code, refused.seq) == (RejectCode.CLOSED, 5)
            # Nobody else is kept from anything.
            other = collectors.connect()
            other.say(hello("unknown"), samples(1, 3))
            assert other.hear(Welcome) == Welcome(1)
            assert other.hear(Ack) == Ack(3)
    finally:
        there.close()


def test_forgotten_runs_are_known_after_a_restart_and_to_their_own_client_alone(tmp_path: Path) -> None:
    spool = open_at(tmp_path / "spool")
    deliver(spool, "run")
    deliver_many(spool, 80)
    pages = spool._database.uncounted_pages
    spool.close()
    spool = open_at(tmp_path / "spool")
    assert spool._database.uncounted_pages == pages > 2
    with pytest.raises(RunClosedError) as closed:
        spool.open_run(hello("run", first_available_seq=4), owner="")
    assert closed.value.seq == 5
    spool.open_run(hello("run"), owner="somebody else")
    spool.close()


def test_only_the_oldest_are_forgotten_altogether(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tombstones, "MIN_COUNT", 30)
    monkeypatch.setattr(tombstones, "MAX_COUNT", 30)
    spool = open_at(tmp_path / "spool")
    deliver_many(spool, 100)
    details = count(spool, "runs")
    assert count(spool, "tombstones") == 30
    for number in range(100 - details - 30, 100):
        with pytest.raises(RunClosedError):
            spool.open_run(hello(f"many-{number}"), owner="")
    spool.open_run(hello(f"many-{100 - details - 30 - 1}"), owner="")
    # A lower limit is reached step by step.
    spool.close()
    monkeypatch.setattr(tombstones, "MIN_COUNT", 10)
    monkeypatch.setattr(tombstones, "MAX_COUNT", 10)
    spool = open_at(tmp_path / "spool")
    deliver_many(spool, 1, first=100)
    assert count(spool, "tombstones") == 10
    spool.close()


@pytest.mark.parametrize(
    ("max_bytes", "most"), [(MIN_SPOOL_BYTES, MIN_COUNT), (256 << 20, 95_325), (2 << 30, MAX_COUNT)]
)
def test_number_that_is_remembered_has_a_floor_and_a_ceiling(tmp_path: Path, max_bytes: int, most: int) -> None:
    spool = open_at(tmp_path / "spool", max_bytes=max_bytes)
    assert spool._database.query("PRAGMA max_page_count") == [((max_bytes + most * BYTES_PER_TOMBSTONE) // 4096,)]
    spool.close()


def test_smallest_spool_takes_as_many_rows_however_many_runs_have_ended(spool: Spool) -> None:
    def capacity(key: str) -> int:
        """Rows that fit in; they are given up again."""
        run = spool.open_run(hello(key), owner="")
        with contextlib.suppress(SpoolFullError):
            for first in range(1, 10_000, 5):
                spool.append([frame(run, first, first + 4)], [])
        taken = run.durable_seq
        spool.close_run(run, Event.DISCARDED)
        return taken

    # Until the share of the details is full.
    deliver_many(spool, 10)
    before = capacity("before")
    deliver_many(spool, 300, first=10)
    assert spool._database.uncounted_pages * 4096 > 20_000
    # A page holds some forty rows.
    assert abs(capacity("after") - before) <= 80
    assert spool._database.query("PRAGMA integrity_check") == [("ok",)]


def test_size_of_each_stays_below_what_is_allowed_for(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    longest = tombstones.Tombstone(2**53, 2**53, bytes(8), "r" * 64)
    pages = spool._database.uncounted_pages
    with spool._database.transaction() as connection:
        for number in range(MIN_COUNT):
            pages = spool._ended._tombstones.put(connection, f"run {number}", longest, pages=pages)
    assert MIN_COUNT * 100 < pages * 4096 < MIN_COUNT * BYTES_PER_TOMBSTONE


def test_record_that_cannot_be_read_does_not_keep_others_from_ending(
    spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    deliver(spool, "scribbled")
    with spool._database.transaction() as connection:
        connection.execute("UPDATE runs SET record = CAST(x'c1' || zeroblob(1000) AS BLOB)")
    # Whoever asks for it meanwhile hears that it is over.
    with pytest.raises(RunClosedError) as closed:
        spool.open_run(hello("scribbled"), owner="")
    assert closed.value.seq == 0
    caplog.clear()
    deliver_many(spool, 20)
    assert "cannot be read key=scribbled" in caplog.text
    with pytest.raises(RunClosedError) as closed:
        spool.open_run(hello("scribbled"), owner="")
    assert closed.value.seq == 0


def test_number_of_a_forgotten_run_is_not_given_to_another(tmp_path: Path) -> None:
    clock = SteppedClock()
    spool = open_spool_at(tmp_path / "spool", clock, max_bytes=MIN_SPOOL_BYTES)
    first, last = (spool.open_run(hello(key, metadata=DETAILS), owner="") for key in ("first", "last"))
    spool.close_run(last, Event.DISCARDED)
    clock.advance(1.0)
    spool.close_run(first, Event.DISCARDED, response={"note": "x" * 9000})
    assert spool._database.query("SELECT id FROM runs") == [(first.id,)], "the highest number is free"
    assert spool.open_run(hello("another"), owner="").id > last.id
    spool.close()


def test_run_costs_the_same_however_many_are_forgotten(spool: Spool) -> None:
    def statements() -> int:
        made: list[str] = []
        spool._database.connection.set_trace_callback(made.append)
        deliver(spool, f"run-{count(spool, 'tombstones')}")
        spool._database.connection.set_trace_callback(None)
        return len(made)

    deliver_many(spool, 50)
    few = [statements() for _ in range(50)]
    deliver_many(spool, 300, first=50)
    many = [statements() for _ in range(50)]
    # A page more is noted once in a while.
    assert (min(many), max(many)) == (min(few), max(few))
