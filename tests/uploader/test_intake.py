"""The conversation's far end, over real sockets on loopback."""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fakes.intake_thread import IntakeThread
from fakes.process_harness import wait_until
from fakes.raw_collector import Collectors, RawCollector, collectors_of
from fakes.scripted_backend import SteppedClock
from fakes.uploader_harness import SPOOL_BYTES, T0, finish, hello, open_spool_at, samples
from msgspec.structs import replace

from sentinel_protocol.common.endpoints import parse_address
from sentinel_protocol.wire.messages import (
    MAX_COLLECTOR_FRAME_BYTES,
    Ack,
    Finished,
    Ping,
    Reject,
    RejectCode,
    Samples,
    Welcome,
    encode,
)
from sentinel_protocol.wire.sample import Sample
from sentinel_uploader.intake.loop import MAX_BATCH_FRAMES, STALL_THRESHOLD_S, Intake
from sentinel_uploader.limits import ClientLimits
from sentinel_uploader.runs.lifecycle import Event, RunState
from sentinel_uploader.runs.schedule import Policy
from sentinel_uploader.server.zmq_server import ZmqServer
from sentinel_uploader.spool.database import MIN_SPOOL_BYTES
from sentinel_uploader.spool.open_run import OpenRun
from sentinel_uploader.spool.store import Spool
from sentinel_uploader.telemetry.counters import Counters

MOST_ROWS = ClientLimits().max_message_rows


class Watched(IntakeThread):
    """An intake without keys, with what its tests look at and do to it."""

    def __init__(self, directory: Path, *, max_bytes: int = SPOOL_BYTES) -> None:
        router = ZmqServer([parse_address("tcp://127.0.0.1:*", bind=True)])
        super().__init__(directory, router, max_bytes=max_bytes, policy=Policy(max_batch_rows=100))

    def run(self, key: str = "run") -> OpenRun:
        return next(run for run in self.spool._runs.values() if run.record.key == key)

    def rejected(self, reason: str, least: int = 1) -> None:
        wait_until(lambda: self.counters.rejected.value(reason) >= least, f"{reason} is counted")

    def end(self, run: OpenRun, event: Event = Event.ACCEPTED, **changes: Any) -> None:
        """Do what the scheduler does at a run's end."""
        if event is not Event.DISCARDED:
            ended = [Event.ENDED] if run.record.has_ended else []
            self.spool.update(run, Event.REGISTERED, *ended, run_id="id-1", uri_prefix="s3://b/p")
        self.spool.close_run(run, event, **changes)
        self.intake.notify(run)


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Watched]:
    made = Watched(tmp_path / "spool")
    yield made
    made.close()


@pytest.fixture
def collectors(there: Watched) -> Iterator[Collectors]:
    with collectors_of(there.url) as made:
        yield made


@pytest.fixture
def collector(collectors: Collectors) -> RawCollector:
    return collectors.connect()


def test_rows_are_acknowledged_and_durable_and_the_end_too(there: Watched, collector: RawCollector) -> None:
    collector.say(hello())
    assert collector.hear(Welcome) == Welcome(1)
    collector.say(samples(1, 10))
    assert collector.hear(Ack) == Ack(10)
    assert there.spool._database.query("SELECT sum(rows) FROM frames") == [(10,)]
    collector.say(samples(11, 12), finish(12))
    assert collector.hear_until(Ack).seq == 12
    wait_until(lambda: there.run().record.has_ended, "the end is stored")
    assert there.woken[-1] is there.run()


def test_end_is_told_to_the_collector_with_what_the_backend_said(there: Watched, collector: RawCollector) -> None:
    collector.say(hello(), samples(1, 3), finish(3))
    wait_until(lambda: there.spool._runs and there.run().record.has_ended, "the end is stored")
    there.end(there.run(), response={"processing": {"rows": 3}}, rows=3, batches=2)
    assert collector.hear_until(Finished) == Finished(
        "id-1", {"processing": {"rows": 3}}, ["s3://b/p/0001.csv.gz", "s3://b/p/0002.csv.gz"], 2, 3, "s3://b/p"
    )
    collector.say(Ping())
    assert collector.hear(Reject).code == RejectCode.HELLO_FIRST


def test_finish_before_the_last_row_waits_for_it(there: Watched, collector: RawCollector) -> None:
    collector.say(hello(), finish(5))
    collector.hear(Welcome)
    assert collector.hear(Ack) == Ack(0)
    collector.say(samples(1, 5))
    assert collector.hear(Ack) == Ack(5)
    assert not there.run().record.has_ended
    collector.say(finish(5))
    assert collector.hear(Ack) == Ack(5, finish=True)


def test_finish_that_is_repeated_is_acknowledged_again(there: Watched, collector: RawCollector) -> None:
    collector.say(hello())
    collector.hear(Welcome)
    collector.say(finish(0))
    assert collector.hear(Ack) == Ack(0, finish=True)
    collector.say(finish(0, 3, "failed"))
    assert collector.hear(Ack) == Ack(0, finish=True)
    stored = there.run().record.finish
    assert stored is not None
    assert stored.exit_code == 0


def test_duplicates_are_dropped_overlaps_trimmed_and_gaps_ignored(there: Watched, collector: RawCollector) -> None:
    collector.say(hello())
    collector.hear(Welcome)
    for message, acked in (
        (samples(1, 10), 10),
        (samples(1, 10), 10),
        (samples(5, 14), 14),
        (samples(16, 20), 14),
        (samples(15, 15), 15),
    ):
        collector.say(message)
        assert collector.hear(Ack) == Ack(acked)
    frames = there.spool.read_unbatched(there.run(), max_rows=1000)
    assert frames is not None
    assert (frames.first_seq, frames.last_seq) == (1, 15)
    assert there.run().unbatched_rows == 15
    assert there.counters.rows_duplicate.value() == 16
    assert there.counters.rejected.value("gap") == 1


def test_hello_comes_first(there: Watched, collector: RawCollector) -> None:
    for message in (samples(1, 2), finish(0), Ping()):
        collector.say(message)
        answer = collector.hear(Reject)
        assert (answer.code, answer.retry) == (RejectCode.HELLO_FIRST, True)
    assert there.spool._runs == {}


def test_same_collector_on_a_new_connection_goes_on_and_is_not_told_to_stop(collectors: Collectors) -> None:
    first, second = collectors.connect(), collectors.connect()
    first.say(hello(), samples(1, 5))
    first.hear(Welcome)
    first.hear(Ack)
    second.say(hello())
    assert second.hear(Welcome) == Welcome(6, last_timestamp=T0 + 5)
    second.say(samples(6, 7))
    assert second.hear(Ack) == Ack(7)
    first.say(Ping())
    assert first.hear(Reject).code == RejectCode.HELLO_FIRST


def test_newer_collector_wins_and_the_older_is_told_so(collectors: Collectors) -> None:
    older, newer = collectors.connect(), collectors.connect()
    older.say(hello(), samples(1, 5))
    older.hear(Welcome)
    older.hear(Ack)
    newer.say(hello(epoch="second"))
    assert newer.hear(Welcome).next_seq == 6
    told = older.hear(Reject)
    assert (told.code, told.seq) == (RejectCode.SUPERSEDED, 5)
    newer.say(samples(6, 6))
    assert newer.hear(Ack) == Ack(6)
    older.say(hello())
    answer = older.hear(Reject)
    assert (answer.code, answer.retry, answer.seq) == (RejectCode.SUPERSEDED, False, 5)


def test_one_connection_may_begin_another_run(there: Watched, collector: RawCollector) -> None:
    collector.say(hello("a"), samples(1, 2), hello("b"), samples(1, 3), hello("a"), samples(3, 3))
    wait_until(lambda: len(there.spool._runs) == 2 and there.run("a").durable_seq == 3, "all is stored")
    assert there.run("b").durable_seq == 3


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"version": 99}, RejectCode.UNKNOWN_VERSION),
        ({"run_key": "a\x1b[31m"}, RejectCode.NOT_ALLOWED),
        ({"interval_s": math.inf}, RejectCode.NOT_ALLOWED),
        ({"metadata": {"command": ["x" * 17_000]}}, RejectCode.TOO_BIG),
    ],
)
def test_hello_that_is_invalid_is_rejected_with_a_reason(
    there: Watched, collector: RawCollector, changes: dict[str, Any], code: RejectCode
) -> None:
    collector.say(replace(hello(), **changes))
    answer = collector.hear(Reject)
    assert answer.code == code
    assert answer.text
    assert there.spool._runs == {}


def test_metadata_that_json_cannot_carry_is_made_plain(there: Watched, collector: RawCollector) -> None:
    metadata = {"job_name": "x", "nan": math.nan, "tags": {"k": "v"}, "command": ["a", "b"], "big": 2**64 - 1}
    collector.say(hello(metadata=metadata, host={"host_storage_gb": math.inf}))
    collector.hear(Welcome)
    record = there.run().record
    assert record.metadata == metadata | {"nan": None}
    assert record.host == {"host_storage_gb": None}


def test_collector_that_missed_the_end_hears_it_when_it_comes_back(there: Watched, collectors: Collectors) -> None:
    first, second, stranger = collectors.connect(), collectors.connect(), collectors.connect()
    first.say(hello(), samples(1, 3), finish(3))
    wait_until(lambda: there.spool._runs and there.run().record.has_ended, "the end is stored")
    there.end(there.run(), response={"ok": True}, rows=3)
    first.hear_until(Finished)
    second.say(hello())
    assert second.hear(Welcome) == Welcome(4, "id-1")
    assert second.hear(Ack) == Ack(3, finish=True)
    assert second.hear(Finished).response == {"ok": True}
    stranger.say(hello(epoch="second"))
    answer = stranger.hear(Reject)
    assert (answer.code, answer.seq) == (RejectCode.CLOSED, 3)


def test_discarded_runs_collector_is_told_now_and_when_it_comes_back(there: Watched, collector: RawCollector) -> None:
    collector.say(hello(), samples(1, 3))
    collector.hear(Welcome)
    collector.hear(Ack)
    there.end(there.run(), Event.DISCARDED)
    answer = collector.hear(Reject)
    assert (answer.code, answer.seq) == (RejectCode.CLOSED, 3)
    assert RunState.DISCARDED in answer.text
    collector.say(hello())
    answer = collector.hear(Reject)
    assert (answer.code, answer.seq) == (RejectCode.CLOSED, 3)


@pytest.mark.parametrize("message", [samples(4, 5), finish(3), hello()], ids=["samples", "finish", "hello"])
def test_run_that_was_closed_as_stale_takes_nothing_more(
    there: Watched, collector: RawCollector, message: object
) -> None:
    collector.say(hello(), samples(1, 3))
    collector.hear(Welcome)
    collector.hear(Ack)
    there.spool.update(there.run(), Event.ENDED, finish=finish(3, None, "failed"), closed_as_stale=True)
    collector.say(message)
    answer = collector.hear(Reject)
    assert (answer.code, answer.seq) == (RejectCode.CLOSED, 3)


def test_run_that_ends_between_a_message_and_its_transaction_does_not_take_it(tmp_path: Path) -> None:
    class EndsJustBefore(Spool):
        """Whatever is stored, somebody has discarded the run a moment ago."""

        def append(self, frames: Any, finishes: Any) -> int:
            for run in [frame.run for frame in frames]:
                self.close_run(run, Event.DISCARDED)
            return super().append(frames, finishes)

    there = Watched(tmp_path / "spool")
    there.spool.__class__ = EndsJustBefore
    try:
        with collectors_of(there.url) as collectors:
            collector = collectors.connect()
            collector.say(hello())
            collector.hear(Welcome)
            collector.say(samples(1, 3))
            answer = collector.hear(Reject)
            assert (answer.code, answer.seq) == (RejectCode.CLOSED, 0)
        assert there.spool._database.query("SELECT count(*) FROM frames") == [(0,)]
    finally:
        there.close()
    open_spool_at(tmp_path / "spool", SteppedClock()).close()


def test_full_spool_acknowledges_nothing_and_goes_on_by_itself(tmp_path: Path) -> None:
    there = Watched(tmp_path / "spool", max_bytes=MIN_SPOOL_BYTES)
    try:
        with collectors_of(there.url) as collectors:
            collector, late = collectors.connect(), collectors.connect()
            collector.say(hello())
            collector.hear(Welcome)
            last = 0
            while True:
                collector.say(samples(last + 1, last + 50))
                answer = collector.hear_until(Ack | Reject)  # type: ignore[arg-type]  # isinstance takes unions
                if isinstance(answer, Reject):
                    break
                last += 50
            assert (answer.code, answer.retry) == (RejectCode.BUSY, True)
            assert there.run().durable_seq == last
            late.say(hello("late"))
            assert late.hear(Reject).code == RejectCode.BUSY
            # What the rows before it were too much for is still there to be said.
            collector.say(finish(last))
            assert collector.hear(Ack) == Ack(last, finish=True)

            there.end(there.run())
            late.say(hello("late"))
            late.hear(Welcome)
            late.say(samples(1, 50))
            assert late.hear(Ack) == Ack(50)
    finally:
        there.close()


def test_spool_that_cannot_be_written_is_survived(there: Watched, collector: RawCollector) -> None:
    collector.say(hello())
    collector.hear(Welcome)
    there.spool._database.connection.execute("PRAGMA query_only = 1")
    collector.say(samples(1, 5))
    assert collector.hear(Reject).code == RejectCode.BUSY
    collector.say(hello("another"))
    assert collector.hear(Reject).code == RejectCode.BUSY
    there.spool._database.connection.execute("PRAGMA query_only = 0")
    collector.say(hello(), samples(1, 5))
    collector.hear(Welcome)
    assert collector.hear(Ack) == Ack(5)


RUBBISH: list[tuple[bytes, ...]] = [
    (b"",),
    (b"\x00",),
    (b"\xc1" * 50,),
    (b"\x91" * 100_000,),
    (msgspec.msgpack.encode(["hello"]),),
    (msgspec.msgpack.encode(["hello", 1, "k", "i", "not a number"]),),
    (msgspec.msgpack.encode(["s", 1, [["x"]]]),),
    (msgspec.msgpack.encode(["s", 1, [[1.0] * 40]]),),
    (msgspec.msgpack.encode(["no such message"]),),
    (msgspec.msgpack.encode({"type": "hello"}),),
    (b"\x95\xa5hello\x01\xa2\xff\xfe\xa1i\x01",),
]


def test_rubbish_is_counted_and_disturbs_nobody(there: Watched, collectors: Collectors) -> None:
    vandal, other = collectors.connect(), collectors.connect()
    other.say(hello("other"))
    other.hear(Welcome)
    for number, frames in enumerate(RUBBISH, 1):
        vandal.send_frames(*frames)
        other.say(samples(number, number))
        assert other.hear(Ack) == Ack(number)
    there.rejected("bad", len(RUBBISH))
    vandal.hear_nothing_more()
    vandal.send_frames(b"two", b"frames")
    vandal.send_frames(*[b"x"] * 500)
    there.rejected("malformed", 2)
    vandal.say(hello("vandal"))
    assert vandal.hear(Welcome) == Welcome(1)


@pytest.mark.parametrize(
    "message",
    [
        Samples(1, []),
        Samples(0, [Sample(1.0)]),
        Samples(2**53, [Sample(1.0), Sample(2.0)]),
        Samples(-5, [Sample(1.0)]),
        Samples(1, [Sample(math.nan)]),
        Samples(1, [Sample(0.0)]),
        finish(0, 300),
        finish(0, 1, "finished"),
        replace(finish(0), time=1e300),
        finish(-1),
    ],
    ids=repr,
)
def test_messages_that_make_no_sense_are_counted(there: Watched, collector: RawCollector, message: object) -> None:
    collector.say(hello())
    collector.hear(Welcome)
    collector.say(message)
    there.rejected("bad")
    collector.say(samples(1, 2))
    assert collector.hear_until(Ack).seq in {0, 2}
    wait_until(lambda: there.run().durable_seq == 2, "the rows are stored")
    assert not there.run().record.has_ended


def test_frame_of_thousands_of_tiny_rows_is_refused_or_cut_into_bounded_objects(
    there: Watched, collector: RawCollector
) -> None:
    collector.say(hello())
    collector.hear(Welcome)
    collector.say(Samples(1, [Sample(float(second)) for second in range(1, MOST_ROWS + 2)]))
    answer = collector.hear(Reject)
    assert (answer.code, answer.retry) == (RejectCode.TOO_BIG, True)
    collector.say(Samples(1, [Sample(float(second)) for second in range(1, MOST_ROWS + 1)]))
    assert collector.hear(Ack) == Ack(MOST_ROWS)
    assert there.woken[-1] is there.run()


def test_message_beyond_the_size_limit_never_arrives(there: Watched, collectors: Collectors) -> None:
    vandal, other = collectors.connect(), collectors.connect()
    vandal.send_frames(bytes(MAX_COLLECTOR_FRAME_BYTES + 1))
    other.say(hello())
    other.hear(Welcome)
    assert there.counters.rejected.value("bad") == 0
    vandal.say(hello("vandal"))
    assert vandal.hear(Welcome).next_seq == 1


def test_peer_that_does_not_read_stops_nobody(there: Watched, collectors: Collectors) -> None:
    deaf, other = collectors.connect(receives=1), collectors.connect()
    deaf.say(hello("deaf"))
    other.say(hello("other"))
    other.hear(Welcome)
    for _ in range(40):
        for _ in range(MAX_BATCH_FRAMES):
            deaf.say(hello("deaf"))
        if there.counters.answers_lost.value():
            break
    wait_until(there.counters.answers_lost.value, "the lost answer is counted")
    other.say(samples(1, 1))
    assert other.hear(Ack) == Ack(1)


def test_defect_in_one_group_does_not_deafen_the_uploader(
    there: Watched, collector: RawCollector, caplog: pytest.LogCaptureFixture
) -> None:
    class FailsOnce(Spool):
        """A store with a defect, for one call."""

        failures = 0

        def append(self, frames: Any, finishes: Any) -> int:
            if not self.failures:
                self.failures = 1
                raise RuntimeError("a defect")
            return super().append(frames, finishes)

    collector.say(hello())
    collector.hear(Welcome)
    there.spool.__class__ = FailsOnce
    collector.say(samples(1, 3))
    wait_until(lambda: "intake failed unexpectedly" in caplog.text, "the defect is logged")
    collector.say(samples(1, 3))
    assert collector.hear(Ack) == Ack(3)


@pytest.fixture
def still(tmp_path: Path) -> Iterator[Intake]:
    """An intake without a thread and without peers."""
    clock = SteppedClock()
    spool = open_spool_at(tmp_path / "spool", clock)
    router = ZmqServer([])
    yield Intake(server=router, spool=spool, clock=clock, wake_run=lambda _: None, policy=Policy(), counters=Counters())
    router.close()
    spool.close()


def test_silence_counts_from_when_a_suspended_uploader_listens_again(still: Intake) -> None:
    clock = still._clock
    assert isinstance(clock, SteppedClock)
    began = clock.monotonic()
    clock.advance(1.0)
    still.poll_once(0.0)
    assert (still.receiving_since, still.last_loop_at) == (began, began + 1.0)
    clock.advance(STALL_THRESHOLD_S + 0.1)
    still.poll_once(0.0)
    assert still.receiving_since == still.last_loop_at == clock.monotonic()


def test_suspension_in_the_middle_of_a_group_is_noticed_before_anybody_can_look(tmp_path: Path) -> None:
    clock = SteppedClock()
    spool = open_spool_at(tmp_path / "spool", clock)

    class SuspendsAtTheEnd(Intake):
        """The process sleeps while it tells collectors of their runs."""

        def _send_notifications(self) -> None:
            clock.advance(3600.0)
            super()._send_notifications()

    router = ZmqServer([])
    intake = SuspendsAtTheEnd(
        server=router, spool=spool, clock=clock, wake_run=lambda _: None, policy=Policy(), counters=Counters()
    )
    intake.poll_once(0.0)
    assert intake.receiving_since == intake.last_loop_at == clock.monotonic()
    router.close()
    spool.close()


def _was_heard_at(there: Watched, now: float) -> bool:
    return there.run().last_seen_at == now


def test_every_message_counts_as_a_sign_of_life(there: Watched, collector: RawCollector) -> None:
    collector.say(hello())
    collector.hear(Welcome)
    for message in (Ping(), samples(1, 1), finish(9)):
        there.clock.advance(1.0)
        now = there.clock.monotonic()
        collector.say(message)
        wait_until(partial(_was_heard_at, there, now), "the run was heard")


def test_frames_are_stored_as_they_came(there: Watched, collector: RawCollector) -> None:
    collector.say(hello())
    collector.hear(Welcome)
    collector.say(samples(1, 3))
    collector.hear(Ack)
    assert there.spool._database.query("SELECT payload FROM frames") == [(encode(samples(1, 3)),)]
