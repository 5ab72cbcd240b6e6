"""The backlog: every row once, in order, under a number of its own, whatever is lost, repeated or killed."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from rows import FIRST_TIMESTAMP, numbers, row, timestamps

from sentinel_collector.delivery import send_queue
from sentinel_collector.delivery.overflow_file.file import OverflowFile
from sentinel_collector.delivery.overflow_file.format import OverflowHeader
from sentinel_collector.delivery.send_queue import SPILL_AFTER_S, SendQueue
from sentinel_collector.delivery.state_dir import create_run_file, open_run_file
from sentinel_protocol.wire.messages import Finish

HEAD = OverflowHeader(run_key="key", incarnation="one", uploader_url="ipc:///nowhere", hello=b"")


class Place:
    """Backlogs of one run over the same state directory, as collectors of the run would have them one after another."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.warnings: list[str] = []
        self.has_room = True

    def open(self) -> SendQueue:
        recovered = open_run_file(self.directory, "key")
        return self.queue(recovered)

    def queue(self, recovered: OverflowFile | None = None) -> SendQueue:
        return SendQueue(open_file=self._create, header=lambda: HEAD, warn=self.warnings.append, recovered=recovered)

    def _create(self) -> OverflowFile:
        if not self.has_room:
            raise OSError(28, "No space left on device")
        return create_run_file(self.directory, "key")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(str(tmp_path))


def sent(queue: SendQueue, *, max_rows: int = 1000) -> list[tuple[int, int]]:
    """Send all there is; (sequence number, row) of each."""
    found: list[tuple[int, int]] = []
    while chunk := queue.next_chunk(max_rows=max_rows, max_bytes=1 << 20):
        first, rows = chunk
        queue.mark_sent(len(rows))
        found += enumerate(numbers(rows), first)
    return found


def filled(queue: SendQueue, first: int, last: int) -> None:
    for number in range(first, last + 1):
        queue.append(row(number), 0.0)


def test_nothing_is_sent_before_the_first_welcome(place: Place) -> None:
    queue = place.queue()
    filled(queue, 1, 3)
    assert queue.next_chunk(max_rows=10, max_bytes=1000) is None
    assert (queue.oldest_seq, queue.last_seq) == (0, None)
    assert queue.rewind(5) == 0
    assert sent(queue) == [(5, 1), (6, 2), (7, 3)]
    assert queue.last_seq == 7


def test_an_acknowledgement_that_comes_after_a_repeated_welcome_counts(place: Place) -> None:
    """Silence, a second greeting, then all answers at once: what was sent before may be acknowledged after."""
    queue = place.queue()
    filled(queue, 1, 10)
    queue.rewind(1)
    sent(queue)
    queue.rewind(1)
    assert queue.acknowledge(10) == 10
    assert queue.rewind(11) == 0
    filled(queue, 11, 11)
    assert sent(queue) == [(11, 11)]


def test_a_welcome_behind_what_was_sent_before_another_welcome_gives_no_row_a_second_number(place: Place) -> None:
    queue = place.queue()
    filled(queue, 1, 10)
    queue.rewind(1)
    sent(queue)
    queue.rewind(1)
    queue.rewind(8)
    assert sent(queue) == [(8, 8), (9, 9), (10, 10)]


@pytest.mark.parametrize("is_spilled", [False, True])
def test_numbers_beyond_ours_are_left_to_whoever_used_them(place: Place, is_spilled: bool) -> None:
    queue = place.open()
    filled(queue, 1, 6)
    queue.rewind(1)
    queue.next_chunk(max_rows=2, max_bytes=1 << 20)
    queue.mark_sent(2)
    if is_spilled:
        assert queue.spill(0.0)
    queue.rewind(101)
    assert sent(queue) == [(101, 3), (102, 4), (103, 5), (104, 6)]
    assert queue.spill(0.0)
    queue.close()
    again = place.open()
    assert again.oldest_seq == 101
    again.rewind(102)
    assert sent(again) == [(102, 4), (103, 5), (104, 6)]
    again.close()


def test_an_acknowledgement_beyond_what_was_sent_drops_nothing_unsent(place: Place) -> None:
    queue = place.queue()
    filled(queue, 1, 5)
    queue.rewind(1)
    queue.next_chunk(max_rows=2, max_bytes=1 << 20)
    queue.mark_sent(2)
    assert queue.acknowledge(2**53) == 2
    assert sent(queue) == [(3, 3), (4, 4), (5, 5)]
    assert queue.acknowledge(-7) == 0


def test_rows_that_are_gone_are_counted(place: Place) -> None:
    queue = place.queue()
    filled(queue, 1, 5)
    queue.rewind(1)
    sent(queue)
    queue.acknowledge(4)
    assert queue.rewind(1) == 4
    assert queue.oldest_seq == 5
    assert queue.rewind(5) == 0
    assert sent(queue) == [(5, 5)]


def test_rows_without_numbers_survive_two_kills_before_the_first_welcome(place: Place) -> None:
    for first in (1, 4, 7):
        queue = place.open()
        filled(queue, first, first + 2)
        assert queue.spill(0.0)
        queue.close()
    queue = place.open()
    assert queue.oldest_seq == 0
    filled(queue, 10, 10)
    queue.rewind(21)
    assert sent(queue, max_rows=4) == list(enumerate(range(1, 11), 21))
    queue.close()
    # Killed again: what lay in the file keeps the numbers that it has now.
    again = place.open()
    assert again.oldest_seq == 21
    assert again.rewind(25) == 0
    assert sent(again) == list(enumerate(range(5, 10), 25))
    again.close()


def test_numbers_that_were_used_are_not_used_again_though_the_uploader_asks_for_them(place: Place) -> None:
    queue = place.open()
    filled(queue, 1, 3)
    queue.rewind(5)
    assert queue.spill(0.0)
    queue.close()
    again = place.open()
    again.acknowledge(7)
    filled(again, 4, 4)
    assert again.rewind(1) == 7
    assert sent(again) == [(8, 4)]
    again.close()


def test_an_end_in_the_file_outlives_the_rows_before_it(place: Place) -> None:
    finish = Finish(0, 3, "failed", 1.0)
    queue = place.open()
    filled(queue, 1, 3)
    assert queue.persist_all(finish, 0.0)
    queue.close()
    again = place.open()
    again.rewind(1)
    sent(again)
    assert again.acknowledge(3) == 3
    assert again.rows == 0
    again.close()
    third = place.open()
    assert third.finish == finish
    third.close()


def test_delivered_rows_leave_an_empty_file(place: Place) -> None:
    queue = place.open()
    filled(queue, 1, 200)
    queue.rewind(1)
    assert queue.spill(0.0)
    assert queue.path is not None
    full = Path(queue.path).stat().st_size
    assert len(sent(queue, max_rows=7)) == 200
    queue.acknowledge(200)
    assert Path(queue.path).stat().st_size < full / 50
    queue.discard_file()
    assert list(Path(place.directory).iterdir()) == []


def test_rows_go_to_the_file_when_the_oldest_has_waited(place: Place) -> None:
    queue = place.queue()
    queue.append(row(1), 10.0)
    queue.append(row(2), 11.0)
    queue.maybe_spill(10.0 + SPILL_AFTER_S - 0.1)
    assert (queue.path, queue.memory_rows) == (None, 2)
    queue.maybe_spill(10.0 + SPILL_AFTER_S)
    assert queue.path is not None
    assert (queue.rows, queue.memory_rows) == (2, 0)
    queue.close()


def test_a_new_file_never_takes_the_place_of_one_that_holds_rows(place: Place) -> None:
    earlier = place.open()
    filled(earlier, 1, 3)
    assert earlier.spill(0.0)
    earlier.close()
    queue = place.queue()
    filled(queue, 4, 5)
    assert queue.spill(0.0)
    assert numbers(list(queue.all_rows())) == [4, 5]
    queue.close()
    assert len(list(Path(place.directory).glob("*.rows"))) == 2


def test_without_room_the_oldest_unsent_rows_give_way_and_are_counted(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send_queue, "MAX_MEMORY_ROWS", 10)
    place.has_room = False
    queue = place.queue()
    filled(queue, 1, 8)
    queue.rewind(1)
    queue.next_chunk(max_rows=4, max_bytes=1 << 20)
    queue.mark_sent(4)
    assert not queue.spill(5.0)
    queue.rewind(1)
    filled(queue, 9, 13)
    assert (queue.rows, queue.dropped_rows) == (10, 3)
    # The uploader may have rows 1 to 4 under their numbers: what gave way is behind them.
    assert sent(queue) == list(enumerate([1, 2, 3, 4, 8, 9, 10, 11, 12, 13], 1))
    assert sum("no file" in text for text in place.warnings) == 1
    assert sum("cannot write" in text for text in place.warnings) == 1


def test_a_full_file_sends_what_follows_to_memory_and_takes_it_at_the_end(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = place.open()
    filled(queue, 1, 20)
    assert queue.spill(0.0)
    monkeypatch.setattr(send_queue, "MAX_FILE_BYTES", 100)
    filled(queue, 21, 22)
    assert not queue.spill(0.0)
    assert "has reached" in place.warnings[0]
    assert queue.memory_rows == 2
    assert queue.persist_all(Finish(0, 0, "finished", 1.0), 0.0)
    queue.close()
    again = place.open()
    assert numbers(list(again.all_rows())) == list(range(1, 23))
    again.close()


def test_rows_older_than_the_newest_delivered_one_are_stamped_later_all_by_as_much(place: Place) -> None:
    """The clock was set back an hour, the collector killed twice, the last time before it reached the uploader."""
    queue = place.open()
    for number in range(1, 4):
        queue.append(row(number), 0.0)
    assert queue.spill(0.0)
    queue.close()
    again = place.open()
    filled(again, 4, 5)
    newest = FIRST_TIMESTAMP + 3600
    again.rewind(7, newest)
    assert len(place.warnings) == 1
    assert "clock was set back" in place.warnings[0]
    expected = [newest + 0.001 + number for number in range(5)]
    assert timestamps(list(again.all_rows())) == pytest.approx(expected, abs=1e-6)
    assert again.newest_timestamp == pytest.approx(expected[-1], abs=1e-6)
    sent(again)
    again.rewind(7, newest)
    assert len(place.warnings) == 1
    again.close()
    third = place.open()
    assert timestamps(list(third.all_rows())) == pytest.approx(expected[:3], abs=1e-6)
    # They have numbers: they may have been sent, and are not touched again.
    third.rewind(8, newest + 7200)
    assert timestamps(list(third.all_rows())) == pytest.approx(expected[1:3], abs=1e-6)
    third.close()


def test_rows_that_come_after_the_newest_delivered_one_keep_their_time_stamps(place: Place) -> None:
    queue = place.queue()
    filled(queue, 1, 2)
    queue.rewind(4, FIRST_TIMESTAMP + 0.999)
    assert timestamps(list(queue.all_rows())) == [FIRST_TIMESTAMP + 1, FIRST_TIMESTAMP + 2]
    assert not place.warnings


def test_a_closed_run_s_rows_go_on_as_another_run_also_after_a_kill(place: Place) -> None:
    queue = place.open()
    filled(queue, 1, 6)
    queue.rewind(1)
    sent(queue)
    assert queue.spill(0.0)
    queue.acknowledge(2)
    queue.start_new_run()
    assert (queue.oldest_seq, queue.last_seq) == (0, None)
    filled(queue, 7, 7)
    assert queue.spill(0.0)
    queue.close()
    again = place.open()
    assert again.rewind(1) == 0
    assert sent(again) == [(1, 3), (2, 4), (3, 5), (4, 6), (5, 7)]
    again.close()


class Uploader:
    """Takes frames as the intake does: in order, each number once, nothing behind a gap."""

    def __init__(self) -> None:
        self.stored: list[int] = []
        self.last_timestamp = 0.0

    @property
    def next_seq(self) -> int:
        return len(self.stored) + 1

    def take(self, first: int, rows: list[bytes]) -> None:
        for seq, (number, timestamp) in enumerate(zip(numbers(rows), timestamps(rows), strict=True), first):
            if seq < self.next_seq:
                assert self.stored[seq - 1] == number, "one number, two rows"
            elif seq == self.next_seq:
                assert timestamp > self.last_timestamp, "time stamps go back"
                self.stored.append(number)
                self.last_timestamp = timestamp


class Delivering(RuleBasedStateMachine):
    """One run (or several, when one is closed) with collectors and connections that come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = (send_queue.MAX_MEMORY_ROWS, send_queue.MAX_FILE_BYTES)
        send_queue.MAX_MEMORY_ROWS = 12
        self.place = Place(tempfile.mkdtemp(prefix="ss-backlog-"))
        self.queue = self.place.open()
        self.uploader = Uploader()
        self.closed: list[int] = []
        self.wire: list[tuple[int, list[bytes]] | None] = []
        self.answers: list[tuple[str, int, float]] = []
        self.has_session = False
        self.made = 0
        self.lost: set[int] = set()
        self.known_seq = 0
        self.clock_s = 0.0
        self.last_stamp = 0.0

    def teardown(self) -> None:
        try:
            self._end_well()
        finally:
            self.queue.close()
            shutil.rmtree(self.place.directory)
            send_queue.MAX_MEMORY_ROWS, send_queue.MAX_FILE_BYTES = self.limits

    def _end_well(self) -> None:
        self.lose_connection(are_answers_lost=True)
        self.connect()
        while self.queue.unsent_rows:
            self.deliver(100)
        assert self.queue.rows == 0
        assert set(self.delivered) == set(range(1, self.made + 1)) - self.lost

    @property
    def delivered(self) -> list[int]:
        return self.closed + self.uploader.stored

    def held(self) -> list[int]:
        return numbers(list(self.queue.all_rows()))

    @rule(count=st.integers(1, 5))
    def sample(self, count: int) -> None:
        for _ in range(count):
            self.made += 1
            self.clock_s += 1.0
            self.last_stamp = max(FIRST_TIMESTAMP + self.clock_s, self.last_stamp + 0.001)
            before = self.held()
            self.queue.append(row(self.made, timestamp=round(self.last_stamp, 3)), 0.0)
            self.lost |= set(before) - set(self.held())

    @rule()
    def spill(self) -> None:
        self.queue.spill(0.0)

    @rule(is_full=st.booleans())
    def disk(self, is_full: bool) -> None:
        send_queue.MAX_FILE_BYTES = 0 if is_full else 1 << 30

    @rule()
    def greet(self) -> None:
        self.wire.append(None)

    @rule(most=st.integers(1, 6))
    def send(self, most: int) -> None:
        if not self.has_session:
            return
        chunk = self.queue.next_chunk(max_rows=most, max_bytes=1 << 20)
        if chunk is None:
            return
        first, rows = chunk
        assert first > self.known_seq, "an acknowledged row is sent again"
        self.queue.mark_sent(len(rows))
        self.wire.append((first, rows))

    @rule(count=st.integers(1, 4))
    def uploader_works(self, count: int) -> None:
        for _ in range(min(count, len(self.wire))):
            frame = self.wire.pop(0)
            if frame is None:
                self.answers.append(("welcome", self.uploader.next_seq, self.uploader.last_timestamp))
            else:
                self.uploader.take(*frame)
                self.answers.append(("ack", self.uploader.next_seq - 1, 0.0))

    @rule(count=st.integers(1, 4))
    def read_answers(self, count: int) -> None:
        for _ in range(min(count, len(self.answers))):
            kind, seq, timestamp = self.answers.pop(0)
            if kind == "ack":
                self.queue.acknowledge(seq)
                self.known_seq = max(self.known_seq, seq)
            else:
                assert self.queue.rewind(seq, timestamp) == max(0, self.known_seq + 1 - seq)
                self.known_seq = max(self.known_seq, seq - 1)
                self.last_stamp = max(self.last_stamp, timestamp, self.queue.newest_timestamp)
                self.has_session = True

    @rule()
    def connect(self) -> None:
        self.greet()
        self.uploader_works(100)
        self.read_answers(100)

    @rule(most=st.integers(1, 6))
    def deliver(self, most: int) -> None:
        self.send(most)
        self.uploader_works(100)
        self.read_answers(100)

    @rule(count=st.integers(1, 5))
    def sample_and_spill(self, count: int) -> None:
        self.sample(count)
        self.spill()

    @rule(are_answers_lost=st.booleans())
    def lose_connection(self, are_answers_lost: bool) -> None:
        self.wire.clear()
        self.has_session = False
        if are_answers_lost:
            self.answers.clear()

    @rule(does_wire_arrive=st.booleans(), set_back_s=st.sampled_from([0.0, 0.0, 100.0]))
    def kill(self, does_wire_arrive: bool, set_back_s: float) -> None:
        if does_wire_arrive:
            self.uploader_works(100)
        in_memory = self.held()[self.queue.rows - self.queue.memory_rows :]
        self.lost |= set(in_memory) - set(self.delivered)
        self.queue.close()
        self.lose_connection(are_answers_lost=True)
        self.known_seq = 0
        recovered = open_run_file(self.place.directory, "key")
        self.queue = self.place.queue(recovered)
        self.clock_s -= set_back_s
        self.last_stamp = self.queue.newest_timestamp

    @precondition(lambda self: self.has_session)
    @rule()
    def close_run(self) -> None:
        self.queue.acknowledge(self.uploader.next_seq - 1)
        self.queue.start_new_run()
        self.closed += self.uploader.stored
        self.uploader = Uploader()
        self.lose_connection(are_answers_lost=True)
        self.known_seq = 0

    @invariant()
    def nothing_vanishes(self) -> None:
        held = self.held()
        assert len(held) == self.queue.rows
        assert held == sorted(held)
        assert set(held) | set(self.delivered) >= set(range(1, self.made + 1)) - self.lost
        assert len(self.delivered) == len(set(self.delivered)), "a row is delivered twice"

    @invariant()
    def memory_is_bounded(self) -> None:
        assert self.queue.memory_rows <= 12


Delivering.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestDelivering = Delivering.TestCase


@pytest.fixture(autouse=True)
def _limits_are_put_back() -> Iterator[None]:
    limits = (send_queue.MAX_MEMORY_ROWS, send_queue.MAX_FILE_BYTES)
    yield
    assert limits == (send_queue.MAX_MEMORY_ROWS, send_queue.MAX_FILE_BYTES)
