"""The conversation's near end, against a scripted peer on a clock of the test's own, and against a real ROUTER."""

import itertools
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos.relay import Relay
from fakes.manual_clock import TurningClock
from fakes.offset_clock import OffsetClock
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import numbers, row

from sentinel_collector.delivery.overflow_file.file import OverflowFile
from sentinel_collector.delivery.overflow_file.format import OverflowHeader
from sentinel_collector.delivery.send_queue import MAX_MEMORY_ROWS, SendQueue
from sentinel_collector.delivery.transport import HALF_OPEN_S
from sentinel_collector.delivery.uploader_client import (
    CHUNK_ROWS,
    MAX_HELLO_WAIT_S,
    REJECTED_WAIT_S,
    RESEND_TIMEOUT_S,
    UNREACHABLE_WARNING_S,
    WINDOW_ROWS,
    EndReason,
    UploaderClient,
)
from sentinel_collector.delivery.zmq_client import ZmqClient
from sentinel_protocol.common.clock import SystemClock
from sentinel_protocol.common.endpoints import parse_address
from sentinel_protocol.wire.messages import (
    MAX_SEQUENCE,
    Ack,
    CollectorMessage,
    Finish,
    Finished,
    Hello,
    Ping,
    Reject,
    RejectCode,
    Samples,
    UploaderMessage,
    Welcome,
    decode_from_collector,
    encode,
)
from sentinel_protocol.wire.sample import encode_sample
from sentinel_uploader.server.zmq_server import ZmqServer

FINISH = Finish(0, 3, "failed", 1.0)


class Peer:
    """The socket, with a script at its other end."""

    def __init__(self) -> None:
        self.heard: list[CollectorMessage] = []
        self.answers: list[bytes] = []
        self.is_connected = True
        self.refuses: str | None = None
        self.reconnects = 0

    def send(self, frame: bytes) -> bool:
        if self.is_connected:
            self.heard.append(decode_from_collector(frame))
        return self.is_connected

    def receive(self) -> bytes | None:
        return self.answers.pop(0) if self.answers else None

    def poll_handshake_error(self, now: float) -> str | None:  # noqa: ARG002 -- the link's word for its socket
        refused, self.refuses = self.refuses, None
        return refused

    def reconnect(self) -> None:
        self.reconnects += 1

    def says(self, *messages: UploaderMessage) -> None:
        self.answers += [encode(message) for message in messages]

    def take(self) -> list[CollectorMessage]:
        heard, self.heard = self.heard, []
        return heard

    def take_rows(self) -> list[tuple[int, int]]:
        """What was sent since the last time: number and row; nothing else may have come."""
        found: list[tuple[int, int]] = []
        for message in self.take():
            assert isinstance(message, Samples), message
            found += enumerate(numbers([encode_sample(sample) for sample in message.samples]), message.first_seq)
        return found


class Conversation:
    def __init__(self, *, takes_new_run: bool = True) -> None:
        self.clock = TurningClock()
        self.peer = Peer()
        self.warnings: list[str] = []
        self.welcomes: list[Welcome] = []
        self.closings = 0
        self.takes_new_run = takes_new_run
        self.queue = SendQueue(
            open_file=self._no_file,
            header=lambda: OverflowHeader(run_key="key", incarnation="one", uploader_url="", hello=b""),
            warn=self.warnings.append,
        )
        self.client = UploaderClient(
            transport=self.peer,
            queue=self.queue,
            hello=lambda oldest_seq: Hello(
                1, "key", "one", 1.0, metadata={"job_name": "x"}, first_available_seq=oldest_seq
            ),
            on_welcome=self.welcomes.append,
            on_closed=self._closed,
            warn=self.warnings.append,
            clock=self.clock,
            peer="the uploader",
        )
        self.made = 0

    @staticmethod
    def _no_file() -> OverflowFile:
        raise OSError("no file is wanted here")

    def _closed(self) -> bool:
        self.closings += 1
        if self.takes_new_run:
            self.queue.start_new_run()
        return self.takes_new_run

    def is_settled(self) -> bool:
        return self.client.is_complete

    def is_welcomed(self) -> bool:
        return self.client.welcomed

    def rows(self, count: int) -> None:
        for _ in range(count):
            self.made += 1
            self.queue.append(row(self.made), self.clock.monotonic())

    def pump(self, *messages: UploaderMessage) -> None:
        self.peer.says(*messages)
        self.client.poll()

    def later(self, seconds: float) -> None:
        self.clock.wait_for(threading.Event(), seconds)
        self.client.poll()

    def welcomed(self, next_seq: int = 1) -> None:
        self.client.poll()
        self.pump(Welcome(next_seq))
        self.peer.take()


@pytest.fixture
def talk() -> Conversation:
    return Conversation()


def test_rows_follow_the_welcome_and_the_end_follows_the_last_row(talk: Conversation) -> None:
    talk.rows(2)
    talk.client.poll()
    (hello,) = talk.peer.take()
    assert isinstance(hello, Hello)
    assert hello.first_available_seq == 0
    talk.pump(Welcome(1, "run-7", 5.0))
    assert talk.peer.take_rows() == [(1, 1), (2, 2)]
    assert (talk.client.run_id, talk.client.has_answer) == ("run-7", True)
    talk.rows(1)
    talk.client.finish(FINISH)
    talk.pump(Ack(2))
    *_, end = talk.peer.take()
    assert end == Finish(3, 3, "failed", 1.0)
    assert not talk.is_settled()
    talk.pump(Ack(3, finish=True))
    assert talk.is_settled()
    finished = Finished("run-7", rows=3)
    talk.pump(finished)
    assert talk.client.finished == finished
    assert not talk.warnings


def test_greeting_is_repeated_with_growing_pauses(talk: Conversation) -> None:
    talk.client.poll()
    pauses = []
    for _ in range(8):
        before = talk.clock.time_s
        talk.peer.take()
        while not talk.peer.heard:
            talk.later(0.25)
        pauses.append(talk.clock.time_s - before)
    expected = [min(MAX_HELLO_WAIT_S, RESEND_TIMEOUT_S * 2**attempt) for attempt in range(8)]
    for pause, planned in zip(pauses, expected, strict=True):
        assert 0.75 * planned <= pause <= 1.25 * planned + 0.25


def test_silence_counts_from_the_oldest_unacknowledged_send(talk: Conversation) -> None:
    """At ten rows a second each send is a new one: it must not put off the second greeting."""
    talk.welcomed()
    began = talk.clock.time_s
    while talk.client.welcomed:
        talk.rows(1)
        talk.later(0.1)
    assert RESEND_TIMEOUT_S <= talk.clock.time_s - began <= RESEND_TIMEOUT_S + 1.5
    *_, hello = talk.peer.take()
    assert isinstance(hello, Hello)
    talk.pump(Welcome(11))
    assert talk.peer.take_rows() == [(seq, seq) for seq in range(11, talk.made + 1)]


def test_a_connection_that_is_gone_counts_as_silence_though_nothing_is_in_flight(talk: Conversation) -> None:
    talk.welcomed()
    talk.peer.is_connected = False
    talk.rows(1)
    talk.client.poll()
    assert talk.is_welcomed()
    talk.later(RESEND_TIMEOUT_S * 1.25)
    assert not talk.is_welcomed()
    talk.peer.is_connected = True
    talk.later(0.0)
    assert isinstance(talk.peer.take()[0], Hello)


def test_window_bounds_what_is_in_flight(talk: Conversation) -> None:
    talk.rows(3 * WINDOW_ROWS)
    talk.welcomed()
    assert talk.queue.sent_rows == WINDOW_ROWS
    talk.pump(Ack(100))
    rows = talk.peer.take_rows()
    assert rows[0][0] == WINDOW_ROWS + 1
    assert len(rows) == 100
    talk.client.finish(FINISH)
    heard: list[CollectorMessage] = []
    while not talk.is_settled():
        assert talk.queue.sent_rows <= WINDOW_ROWS
        seq = (talk.queue.last_seq or 0) - talk.queue.unsent_rows
        talk.pump(Ack(seq, finish=any(isinstance(message, Finish) for message in heard)))
        heard += talk.peer.take()
    assert isinstance(heard[-1], Finish)
    assert all(len(message.samples) <= CHUNK_ROWS for message in heard if isinstance(message, Samples))


def test_an_uploader_that_forgot_us_is_greeted_once_for_all_it_did_not_take(talk: Conversation) -> None:
    talk.rows(4 * CHUNK_ROWS)
    talk.welcomed()
    talk.pump(Ack(1))
    talk.pump(*[Reject(RejectCode.HELLO_FIRST, retry=True)] * 2)
    talk.pump(*[Reject(RejectCode.HELLO_FIRST, retry=True)] * 2)
    (hello,) = talk.peer.take()
    assert isinstance(hello, Hello)
    assert hello.first_available_seq == 2
    talk.pump(Welcome(2))
    assert talk.peer.take_rows()[0] == (2, 2)


def test_an_uploader_that_forgets_us_again_and_again_is_not_flooded(talk: Conversation) -> None:
    talk.rows(1)
    for _ in range(100):
        talk.pump(Reject(RejectCode.HELLO_FIRST), Welcome(1), Reject(RejectCode.HELLO_FIRST))
    assert sum(isinstance(message, Hello) for message in talk.peer.take()) <= 2


def test_superseded_ends_the_conversation(talk: Conversation) -> None:
    talk.welcomed()
    talk.pump(Reject(RejectCode.SUPERSEDED))
    assert talk.client.end_reason is EndReason.SUPERSEDED
    assert talk.is_settled()
    talk.rows(1)
    talk.later(100.0)
    assert talk.peer.take() == []


def test_a_superseded_collectors_rows_that_are_durable_are_not_left_to_be_kept(talk: Conversation) -> None:
    talk.welcomed()
    talk.rows(3)
    talk.client.poll()
    assert talk.peer.take_rows() == [(1, 1), (2, 2), (3, 3)]
    # The acknowledgement of the first two got lost; what comes behind the newer collector's start is somebody else's.
    talk.pump(Reject(RejectCode.SUPERSEDED, seq=2))
    assert talk.client.end_reason is EndReason.SUPERSEDED
    assert list(talk.queue.all_rows()) == [row(3)]


def test_a_closed_run_s_rest_goes_into_one_new_run_however_often_it_is_said(talk: Conversation) -> None:
    talk.rows(3 * CHUNK_ROWS)
    talk.welcomed()
    closed = Reject(RejectCode.CLOSED, seq=10)
    talk.pump(closed, closed)
    # What else was on its way is about the old run: the acknowledged end of it, above all.
    talk.client.finish(FINISH)
    talk.pump(closed, Ack(10, finish=True), Finished("old"))
    assert (talk.closings, talk.client.end_reason, talk.is_settled()) == (1, None, False)
    assert [type(message) for message in talk.peer.take()] == [Hello]
    talk.pump(Welcome(1))
    heard = talk.peer.take()
    assert isinstance(heard[0], Samples)
    assert (heard[0].first_seq, heard[0].samples[0].process_pid) == (1, 11)
    last = 3 * CHUNK_ROWS - 10
    assert heard[-1] == Finish(last, 3, "failed", 1.0)
    talk.pump(Ack(last, finish=True))
    assert talk.is_settled()


def test_a_closed_run_without_another_ends_the_conversation() -> None:
    talk = Conversation(takes_new_run=False)
    talk.rows(5)
    talk.welcomed()
    talk.pump(Reject(RejectCode.CLOSED, seq=2))
    assert talk.client.end_reason is EndReason.CLOSED
    assert numbers(list(talk.queue.all_rows())) == [3, 4, 5]


def test_a_run_that_somebody_else_finished_is_a_closed_one(talk: Conversation) -> None:
    talk.rows(3)
    talk.welcomed()
    talk.pump(Ack(2), Finished("run"))
    assert talk.closings == 1
    assert talk.client.finished is None
    assert numbers(list(talk.queue.all_rows())) == [3]


def test_a_durable_end_before_the_last_row_is_not_ours(talk: Conversation) -> None:
    talk.rows(3)
    talk.welcomed()
    talk.client.finish(FINISH)
    talk.pump(Ack(2, finish=True))
    assert not talk.is_settled()
    talk.pump(Ack(3, finish=True))
    assert talk.is_settled()


def test_busy_is_waited_for_with_back_off_and_told_once(talk: Conversation) -> None:
    talk.rows(2)
    talk.welcomed()
    busy = Reject(RejectCode.BUSY, "no room in the spool", retry=True)
    # One for each group that was in flight: the second changes nothing.
    talk.pump(busy, busy, busy)
    began = talk.clock.time_s
    greetings = []
    for _ in range(400):
        talk.later(0.5)
        if talk.peer.take():
            greetings.append(talk.clock.time_s - began)
            talk.peer.says(busy)
    assert greetings[0] <= 2 * RESEND_TIMEOUT_S * 1.25 + 0.5
    assert len(greetings) <= 8
    assert [text for text in talk.warnings if "no room" in text] == [talk.warnings[0]]
    # It welcomes the run, which it knows, and takes no rows: for hours, perhaps.
    talk.pump(Welcome(1))
    talk.pump(busy)
    assert len(talk.warnings) == 1
    talk.pump(Welcome(1))
    talk.pump(Ack(2))
    assert talk.warnings[1:] == ["the uploader accepts samples again"]
    talk.rows(2)
    talk.pump(busy)
    assert "no room" in talk.warnings[-1]


@pytest.mark.parametrize("code", [RejectCode.NOT_ALLOWED, RejectCode.UNKNOWN_VERSION])
def test_a_refusal_is_told_once_and_tried_again_once_a_minute(talk: Conversation, code: RejectCode) -> None:
    talk.rows(2)
    talk.client.poll()
    greetings = 0
    for _ in range(1000):
        if any(isinstance(message, Hello) for message in talk.peer.take()):
            greetings += 1
            talk.peer.says(Reject(code, "we do not like you"))
        talk.later(1.0)
    assert greetings == pytest.approx(1000 / REJECTED_WAIT_S, abs=2)
    assert sum("we do not like you" in text for text in talk.warnings) == 1
    assert talk.queue.rows == 2


def test_a_description_that_is_too_big_is_left_out(talk: Conversation) -> None:
    talk.rows(1)
    talk.client.poll()
    talk.peer.take()
    talk.pump(Reject(RejectCode.TOO_BIG, "longer than 16384 bytes"))
    (hello,) = talk.peer.take()
    assert isinstance(hello, Hello)
    assert hello.metadata == {}
    assert "longer than 16384 bytes" in talk.warnings[0]
    talk.pump(Welcome(1))
    assert talk.peer.take_rows() == [(1, 1)]


def test_a_frame_that_is_too_big_is_sent_in_halves(talk: Conversation) -> None:
    talk.rows(CHUNK_ROWS)
    talk.welcomed()
    talk.pump(Reject(RejectCode.TOO_BIG))
    talk.later(2 * RESEND_TIMEOUT_S * 1.25)
    talk.peer.take()
    talk.pump(Welcome(1))
    assert [len(message.samples) for message in talk.peer.take() if isinstance(message, Samples)] == [64, 64]


def test_rows_that_are_gone_are_told_and_gone_on_without(talk: Conversation) -> None:
    talk.rows(5)
    talk.welcomed()
    talk.pump(Ack(3))
    talk.pump(Reject(RejectCode.HELLO_FIRST))
    talk.pump(Welcome(1))
    assert sum("3 samples that this collector no longer has" in text for text in talk.warnings) == 1
    *_, hello = talk.peer.take()
    assert isinstance(hello, Hello)
    assert hello.first_available_seq == 4
    talk.pump(Welcome(4))
    assert talk.peer.take_rows() == [(4, 4), (5, 5)]


def test_an_uploader_that_insists_on_rows_that_are_gone_is_not_flooded(talk: Conversation) -> None:
    talk.rows(5)
    talk.welcomed(4)
    talk.pump(Ack(6))
    talk.pump(*[Reject(RejectCode.HELLO_FIRST)])
    for _ in range(100):
        talk.pump(Welcome(1))
    assert sum(isinstance(message, Hello) for message in talk.peer.take()) <= 3


def test_a_ping_goes_out_when_samples_are_far_apart(talk: Conversation) -> None:
    talk.welcomed()
    for _ in range(100):
        talk.later(1.0)
    heard = talk.peer.take()
    assert all(isinstance(message, Ping) for message in heard)
    assert len(heard) == 3
    assert not talk.warnings


def test_a_connection_without_answers_is_replaced_with_growing_pauses(talk: Conversation) -> None:
    talk.welcomed()
    talk.later(1000.0)
    assert talk.peer.reconnects == 0, "nothing was to be answered"
    talk.rows(1)
    at = [talk.clock.monotonic()]
    while len(at) < 4:
        talk.peer.take()
        talk.later(0.5)
        if talk.peer.reconnects == len(at):
            at.append(talk.clock.monotonic())
            assert isinstance(talk.peer.take()[0], Hello)
    for number, (earlier, later) in enumerate(itertools.pairwise(at)):
        least_s = HALF_OPEN_S * 2**number
        assert least_s <= later - earlier <= least_s + 1.25 * MAX_HELLO_WAIT_S + 1.0
    talk.pump(Welcome(1))
    talk.pump(Ack(1))
    talk.rows(1)
    talk.later(1.0)
    reconnects = talk.peer.reconnects
    for _ in range(100):
        talk.later(1.0)
    assert talk.peer.reconnects == reconnects + 1, "the pauses are short again"


def test_zeromq_reconnects_by_itself_where_there_is_no_connection(talk: Conversation) -> None:
    talk.peer.is_connected = False
    talk.rows(1)
    for _ in range(500):
        talk.later(1.0)
    assert talk.peer.reconnects == 0


def test_repeated_answers_change_nothing(talk: Conversation) -> None:
    talk.rows(4)
    talk.welcomed()
    talk.pump(Ack(2), Ack(2), Ack(1))
    assert talk.queue.rows == 2
    talk.pump(Welcome(3), Welcome(3))
    assert talk.peer.take_rows() == [(3, 3), (4, 4)]
    talk.pump(Ack(4), Welcome(5), Ack(4))
    assert talk.queue.rows == 0
    assert talk.is_settled()


def test_what_follows_the_last_answer_that_was_awaited_is_taken_next_time(talk: Conversation) -> None:
    talk.rows(1)
    talk.welcomed()
    talk.pump(Ack(1), Ack(1, delivery_error="storage is away"), Ack(1, delivery_error="it is back"))
    assert (talk.queue.rows, talk.client.delivery_error) == (0, "")
    talk.rows(1)
    talk.client.poll()
    assert talk.client.delivery_error == "it is back"
    talk.pump(Ack(2))
    assert talk.queue.rows == 0


def test_the_door_is_looked_at_where_nobody_answers(talk: Conversation) -> None:
    talk.rows(1)
    talk.welcomed()
    talk.peer.refuses = "rejects this collector"
    talk.pump(Ack(1))
    assert not talk.warnings
    talk.rows(1)
    talk.client.poll()
    assert talk.warnings == ["the uploader rejects this collector; keeping the samples"]


def test_all_answers_at_once_after_a_stop_give_no_row_a_second_number(talk: Conversation) -> None:
    """The uploader stood still: the greeting was repeated, rows were sent between, then everything is answered."""
    talk.rows(10)
    talk.welcomed()
    talk.pump(Welcome(1), Ack(10), Welcome(11))
    assert talk.queue.rows == 0
    talk.rows(1)
    talk.client.poll()
    assert talk.peer.take_rows()[-1] == (11, 11)


def test_sampling_learns_the_newest_time_stamp_of_rows_that_wait_as_well(talk: Conversation) -> None:
    talk.rows(2)
    talk.client.poll()
    talk.pump(Welcome(3, "", 1_700_000_100.0))
    assert talk.welcomes[0].last_timestamp == pytest.approx(1_700_000_101.001)
    assert any("clock was set back" in text for text in talk.warnings)


def test_what_discovery_finds_is_told_in_another_greeting(talk: Conversation) -> None:
    talk.rows(1)
    talk.welcomed()
    talk.pump(Ack(1))
    talk.client.resend_hello()
    talk.later(RESEND_TIMEOUT_S * 1.25)
    assert [type(message) for message in talk.peer.take()] == [Hello]
    talk.pump(Welcome(2))
    talk.later(1.0)
    assert talk.peer.take() == []


def test_an_uploader_that_is_away_is_told_once_and_its_return_too(talk: Conversation) -> None:
    talk.rows(1)
    talk.peer.is_connected = False
    for _ in range(120):
        talk.later(1.0)
    assert talk.warnings == [f"no answer from the uploader for {UNREACHABLE_WARNING_S:.0f} s; keeping the samples"]
    talk.peer.is_connected = True
    talk.later(1.0)
    talk.pump(Welcome(1))
    assert talk.warnings[1:] == ["the uploader is back after 121 s"]


def test_rubbish_is_told_once_and_passed_over(talk: Conversation) -> None:
    talk.rows(1)
    talk.client.poll()
    talk.peer.answers += [b"HTTP/1.1 400 Bad Request", b"", b"\xc1"]
    talk.pump(Welcome(1))
    assert len(talk.peer.take()) == 2
    assert sum("is it a sentinel-uploader" in text for text in talk.warnings) == 1


def test_a_flood_of_answers_leaves_time_for_sampling(talk: Conversation) -> None:
    talk.welcomed()
    talk.pump(*[Ack(0)] * 1000)
    assert len(talk.peer.answers) > 500


seqs = st.one_of(st.integers(-2, 40), st.sampled_from([-(2**63), MAX_SEQUENCE, MAX_SEQUENCE + 1, 2**63, 2**64 - 1]))
answers = st.one_of(
    st.builds(Welcome, seqs, st.text(max_size=3), st.floats()),
    st.builds(Ack, seqs, st.booleans()),
    st.builds(Finished, st.text(max_size=3)),
    st.builds(Reject, st.sampled_from(RejectCode), st.text(max_size=3), st.booleans(), seqs),
)


@given(script=st.lists(st.tuples(st.integers(0, 3), st.lists(answers, max_size=4), st.floats(0, 100)), max_size=15))
@settings(max_examples=150, deadline=None)
def test_whatever_an_uploader_says_rows_go_out_in_order_and_nothing_raises(
    script: list[tuple[int, list[UploaderMessage], float]],
) -> None:
    talk = Conversation()
    for count, messages, pause_s in script:
        talk.rows(count)
        talk.pump(*messages)
        talk.later(pause_s)
        held = numbers(list(talk.queue.all_rows()))
        assert held == list(range(talk.made - len(held) + 1, talk.made + 1))
        for message in talk.peer.take():
            if isinstance(message, Samples):
                found = [sample.process_pid or 0 for sample in message.samples]
                assert found == list(range(found[0], found[0] + len(found)))
    assert talk.queue.rows <= MAX_MEMORY_ROWS


class Echo:
    """A far end on a real ROUTER: stores what it gets in order and can be killed with all that is in flight."""

    def __init__(self, url: str) -> None:
        self.address = parse_address(url, bind=True)
        self.stored: dict[int, int] = {}
        self.is_ended = False
        self.greetings = 0
        self.router: ZmqServer | None = None
        self.known: set[bytes] = set()

    def start(self) -> None:
        self.router = ZmqServer([self.address])
        self.known.clear()

    def kill(self) -> None:
        assert self.router is not None
        self.router.close()
        self.router = None

    def serve(self) -> None:
        assert self.router is not None
        received, _ = self.router.receive(limit=100, timeout_s=0.01)
        for identity, frame, _ in received:
            for answer in self._answers(identity, decode_from_collector(frame)):
                self.router.send(identity, encode(answer))

    def _answers(self, identity: bytes, message: CollectorMessage) -> Iterator[UploaderMessage]:
        following = len(self.stored) + 1
        if isinstance(message, Hello):
            self.greetings += 1
            self.known.add(identity)
            yield Welcome(following)
        elif identity not in self.known:
            yield Reject(RejectCode.HELLO_FIRST, retry=True)
        elif isinstance(message, Samples):
            for seq, sample in enumerate(message.samples, message.first_seq):
                if seq == len(self.stored) + 1:
                    self.stored[seq] = sample.process_pid or 0
            yield Ack(len(self.stored))
        elif isinstance(message, Finish) and message.last_seq == len(self.stored):
            self.is_ended = True
            yield Ack(len(self.stored), finish=True)


@pytest.fixture
def socket_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ss-") as name:
        yield Path(name)


def client_of(transport: ZmqClient, talk: Conversation, clock: OffsetClock) -> UploaderClient:
    return UploaderClient(
        transport=transport,
        queue=talk.queue,
        hello=lambda oldest_seq: Hello(1, "key", "one", 1.0, first_available_seq=oldest_seq),
        on_welcome=lambda _: None,
        on_closed=lambda: False,
        warn=talk.warnings.append,
        clock=clock,
        peer="the uploader",
    )


def test_rows_in_flight_when_a_router_is_killed_come_back(socket_dir: Path, tmp_path: Path) -> None:
    url = f"ipc://{socket_dir}/u"
    far = Echo(url)
    far.start()
    with ZmqClient(parse_address(url, bind=False)) as transport:
        talk = Conversation()
        clock = OffsetClock()
        client = client_of(transport, talk, clock)
        talk.rows(50)
        while len(far.stored) < 50:
            client.poll()
            far.serve()
        talk.rows(50)
        while not talk.queue.sent_rows:
            client.poll()
        far.kill()
        lost = talk.queue.sent_rows
        assert lost >= 50, "the rows were not in flight when the ROUTER was killed"
        far.start()
        client.finish(FINISH)
        clock.monotonic_s += 2 * RESEND_TIMEOUT_S
        deadline = SystemClock().monotonic() + 30
        while not client.is_complete:
            assert SystemClock().monotonic() < deadline
            client.poll()
            far.serve()
    far.kill()
    assert list(far.stored.items()) == [(seq, seq) for seq in range(1, 101)]
    assert far.is_ended
    assert far.greetings >= 2


def test_a_connection_that_a_nat_forgot_is_replaced_and_no_row_is_lost() -> None:
    far = Echo("tcp://127.0.0.1:*")
    far.start()
    assert far.router is not None
    port = int(far.router.urls[0].rpartition(":")[2])
    talk, clock = Conversation(), OffsetClock()
    with Relay(port, None) as relay, ZmqClient(parse_address(relay.url, bind=False)) as transport:
        client = client_of(transport, talk, clock)
        talk.rows(50)
        while len(far.stored) < 50:
            client.poll()
            far.serve()
        relay.forget()
        talk.rows(50)
        client.finish(FINISH)
        deadline = SystemClock().monotonic() + 30
        while not client.is_complete:
            assert SystemClock().monotonic() < deadline
            client.poll()
            far.serve()
            clock.monotonic_s += 1.0
        assert relay.held, "something met the black hole"
        assert relay.connections == 2
    far.kill()
    assert list(far.stored.items()) == [(seq, seq) for seq in range(1, 101)]
