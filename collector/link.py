"""The conversation's near end: says hello, sends what is not acknowledged, and begins again after a silence.

Holds no timer and no thread of its own: its owner calls `pump` at each sample and when `due_in` has passed.
"""

import random
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Protocol

import msgspec

from collector.backlog import Backlog
from protocol.clock import Clock
from protocol.errors import BadMessageError
from protocol.messages import (
    Ack,
    Finish,
    Finished,
    Hello,
    Ping,
    Reject,
    RejectCode,
    SamplesRaw,
    UploaderMessage,
    Welcome,
    decode_from_uploader,
    encode,
)

WINDOW_ROWS = 1024
CHUNK_ROWS = 128
CHUNK_BYTES = 256 << 10
SILENCE_S = 3.0
"""Age of the oldest unacknowledged send at which the conversation begins again."""
MAX_HELLO_WAIT_S = 60.0
REFUSED_WAIT_S = 60.0
AWAY_WARNING_S = 10.0
_EAGER_S = 0.05
_POLL_S = 1.5


class Dealer(Protocol):
    """The socket as the link sees it."""

    def send(self, frame: bytes) -> bool:
        """Hand a frame over; False when there is no connection or no room."""

    def receive(self) -> bytes | None:
        """Return the next message that has come, or `None`."""


class End(Enum):
    """Why there is nothing more to say."""

    SUPERSEDED = "superseded"
    """A newer collector has taken the run over."""
    CLOSED = "closed"
    """The run was closed before its rows came."""


class Link:
    """One run's conversation with one uploader; not thread-safe.

    `hello` makes the greeting for a given lowest sequence number; `on_welcome` hears each `Welcome`; `on_closed` is
    asked when the run has been closed meanwhile and returns True when another run was begun for the rest.
    """

    def __init__(
        self,
        *,
        dealer: Dealer,
        backlog: Backlog,
        hello: Callable[[int], Hello],
        on_welcome: Callable[[Welcome], None],
        on_closed: Callable[[], bool],
        warn: Callable[[str], None],
        clock: Clock,
        peer: str,
    ) -> None:
        self._dealer = dealer
        self._backlog = backlog
        self._hello = hello
        self._on_welcome = on_welcome
        self._on_closed = on_closed
        self._warn = warn
        self._clock = clock
        self._peer = peer
        self._opened_at = self._heard_at = clock.monotonic()
        self._ping_interval_s = 30.0
        self._sent_at = 0.0
        self._hello_due_at = 0.0
        self._hello_attempts = 0
        self._in_flight: deque[tuple[int, float]] = deque()
        self._finish: Finish | None = None
        self._finish_sent_at: float | None = None
        self._chunk_rows = CHUNK_ROWS
        self._warned: set[str] = set()
        self._hello_changed = False
        self.welcomed = False
        self.end: End | None = None
        self.finish_durable = False
        self.finished: Finished | None = None
        self.run_id = ""

    @property
    def settled(self) -> bool:
        """True when everything, the `Finish` included, is durable at the uploader, or nothing more can be said."""
        if self.end is not None:
            return True
        return self.finish_durable if self._finish is not None else self.welcomed and not self._backlog.rows

    def finish(self, finish: Finish) -> None:
        """The run is over: `finish` follows the last row (its `last_seq` is filled in when it is sent)."""
        self._finish = finish

    def greet_again(self) -> None:
        """Say `Hello` anew at the next occasion: what it holds has changed."""
        self._hello_changed = True

    def pump(self) -> None:
        """Take in what has come and send what is due; never blocks."""
        now = self._clock.monotonic()
        while (frame := self._dealer.receive()) is not None:
            self._take(frame, now)
        if self.end is not None:
            return
        if not self.welcomed or self._hello_changed or now >= self._silence_deadline():
            self._say_hello(now)
        if self.welcomed:
            self._send(now)
        self._watch(now)

    def due_in(self) -> float:
        """Seconds until `pump` wants to be called again, whatever the samples do."""
        now = self._clock.monotonic()
        if not self.welcomed:
            return _EAGER_S if now - self._opened_at < 1.0 else _POLL_S
        if self._in_flight or self._finish_sent_at is not None:
            return _POLL_S
        return max(0.0, self._sent_at + self._ping_interval_s - now)

    def _take(self, frame: bytes, now: float) -> None:
        try:
            message: UploaderMessage = decode_from_uploader(frame)
        except BadMessageError as error:
            self._warn_once("bad-message", f"{self._peer} sent what is {error}; is it a sentinel-uploader?")
            return
        self._heard(now)
        match message:
            case Welcome():
                self._welcome(message)
            case Ack():
                self._acknowledged(message)
            case Finished():
                self.finished = message
                self.run_id = message.run_id
                self.finish_durable = True
            case Reject():
                self._rejected(message, now)

    def _heard(self, now: float) -> None:
        if "away" in self._warned:
            self._warned.discard("away")
            self._warn(f"{self._peer} is back after {now - self._heard_at:.0f} s")
        self._heard_at = now

    def _welcome(self, welcome: Welcome) -> None:
        if welcome.next_seq < 1:
            return
        missing = self._backlog.resume(welcome.next_seq)
        self._forget_flight()
        self.run_id = welcome.run_id or self.run_id
        self._on_welcome(welcome)
        if missing:
            self._warn(f"{self._peer} asks for {missing} samples that are not here any more; going on without them")
            # The next greeting names the lowest row that is here, and the uploader goes on from that.
            self.welcomed = False
            self._hello_due_at = 0.0
            return
        self.welcomed = True

    def _acknowledged(self, ack: Ack) -> None:
        if self._backlog.acknowledge(ack.seq):
            self._hello_attempts = 0
        while self._in_flight and self._in_flight[0][0] <= ack.seq:
            self._in_flight.popleft()
        if ack.finish and self._finish is not None:
            self.finish_durable = True

    def _rejected(self, reject: Reject, now: float) -> None:
        self.welcomed = False
        self._forget_flight()
        self._hello_due_at = now
        match reject.code:
            case RejectCode.HELLO_FIRST:
                pass
            case RejectCode.SUPERSEDED:
                self.end = End.SUPERSEDED
            case RejectCode.CLOSED:
                self._backlog.resume(reject.seq + 1)
                if self._on_closed():
                    self.finish_durable = False
                    self.finished = None
                else:
                    self.end = End.CLOSED
            case RejectCode.TOO_BIG:
                self._chunk_rows = max(1, self._chunk_rows // 2)
                self._refused(reject, now)
            case RejectCode.BUSY:
                self._refused(reject, now, wait_s=self._next_hello_wait_s())
            case _:
                self._refused(reject, now)

    def _refused(self, reject: Reject, now: float, wait_s: float = REFUSED_WAIT_S) -> None:
        self._warn_once(reject.code, f"{self._peer} does not take samples ({reject.code}: {reject.text}); keeping them")
        self._hello_due_at = now + wait_s

    def _say_hello(self, now: float) -> None:
        if now < self._hello_due_at:
            return
        if not self._dealer.send(encode(self._hello(self._backlog.oldest_seq))):
            return
        self.welcomed = False
        self._hello_changed = False
        self._forget_flight()
        self._sent_at = now
        self._hello_due_at = now + self._next_hello_wait_s()

    def _next_hello_wait_s(self) -> float:
        wait = min(MAX_HELLO_WAIT_S, SILENCE_S * 2.0**self._hello_attempts)
        self._hello_attempts = min(self._hello_attempts + 1, 10)
        # Thousands of collectors lost the same uploader at the same moment.
        return wait * random.uniform(0.75, 1.25)  # noqa: S311 -- spreads load, guards nothing

    def _send(self, now: float) -> None:
        while (room := WINDOW_ROWS - self._backlog.sent_rows) > 0:
            chunk = self._backlog.next_chunk(max_rows=min(self._chunk_rows, room), max_bytes=CHUNK_BYTES)
            if chunk is None:
                break
            first, rows = chunk
            if not self._dealer.send(encode(SamplesRaw(first, [msgspec.Raw(row) for row in rows]))):
                return
            self._backlog.sent(len(rows))
            self._in_flight.append((first + len(rows) - 1, now))
            self._sent_at = now
        if self._finish is not None and self._finish_sent_at is None and not self._backlog.unsent_rows:
            self._send_finish(self._finish, now)
        elif now - self._sent_at >= self._ping_interval_s and self._dealer.send(encode(Ping())):
            self._sent_at = now

    def _send_finish(self, finish: Finish, now: float) -> None:
        last_seq = self._backlog.last_seq
        assert last_seq is not None
        if self._dealer.send(encode(msgspec.structs.replace(finish, last_seq=last_seq))):
            self._finish_sent_at = self._sent_at = now

    def _silence_deadline(self) -> float:
        """When to begin again, counted from the oldest unacknowledged send: a newer one moves nothing."""
        oldest: list[float] = [self._in_flight[0][1]] if self._in_flight else []
        if self._finish_sent_at is not None and not self.finish_durable:
            oldest.append(self._finish_sent_at)
        return min(oldest) + SILENCE_S if oldest else float("inf")

    def _forget_flight(self) -> None:
        self._in_flight.clear()
        self._finish_sent_at = None

    def _watch(self, now: float) -> None:
        waiting = not self.welcomed or self._in_flight or self._backlog.unsent_rows
        if not waiting:
            self._heard_at = now
        elif now - self._heard_at >= AWAY_WARNING_S:
            self._warn_once("away", f"no answer from {self._peer} for {AWAY_WARNING_S:.0f} s; keeping the samples")

    def _warn_once(self, topic: str, text: str) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            self._warn(text)
