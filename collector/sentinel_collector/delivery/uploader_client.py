"""The collector's side of the protocol: sends `Hello`, unacknowledged rows and `Finish`, and resends after a silence.

It has no timer and no thread: its owner calls `poll` at each sample, and when `next_poll_in` has passed.
"""

import random
from collections import deque
from collections.abc import Callable
from enum import Enum

import msgspec

from sentinel_collector.delivery.connection_log import ConnectionLog
from sentinel_collector.delivery.overflow_file.format import OverflowFileError
from sentinel_collector.delivery.send_queue import RETRY_SPILL_S, SendQueue
from sentinel_collector.delivery.transport import HalfOpenTimer, Transport
from sentinel_protocol.common.clock import Clock
from sentinel_protocol.common.errors import InvalidMessageError
from sentinel_protocol.wire.messages import (
    MAX_SEQUENCE,
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
RESEND_TIMEOUT_S = 3.0
"""Age of the oldest unacknowledged send, or failed attempt to send, at which the session is reset."""
MAX_HELLO_WAIT_S = 60.0
REJECTED_WAIT_S = 60.0
UNREACHABLE_WARNING_S = 10.0
_FAST_POLL_S = 0.05
_POLL_S = 1.5
_IDLE_POLL_S = 5.0
_MAX_MESSAGES_PER_POLL = 256
_PING_INTERVAL_S = 30.0
_MAX_TIMESTAMP = 1e11
"""UNIX seconds, later than any run."""


class EndReason(Enum):
    """Why the uploader accepts no more of the run."""

    SUPERSEDED = "superseded"
    """A newer collector has taken over the run."""
    CLOSED = "closed"
    """The run was closed before its rows arrived."""


class UploaderClient:
    """One run's session with one uploader; not thread-safe.

    `hello` makes the `Hello` for the lowest available sequence number. `on_welcome` gets each `Welcome`, with the time
    stamp of the run's newest sample, here or at the uploader. `on_closed` is called when the uploader has closed the
    run; it returns True when it has started another run for the remaining rows.
    """

    def __init__(
        self,
        *,
        transport: Transport,
        queue: SendQueue,
        hello: Callable[[int], Hello],
        on_welcome: Callable[[Welcome], None],
        on_closed: Callable[[], bool],
        warn: Callable[[str], None],
        clock: Clock,
        peer: str,
    ) -> None:
        self._transport = transport
        self._queue = queue
        self._hello = hello
        self._on_welcome = on_welcome
        self._on_closed = on_closed
        self._clock = clock
        self._log = ConnectionLog(peer, warn)
        self._opened_at = self._last_message_at = clock.monotonic()
        self._sent_at = 0.0
        self._hello_due_at = 0.0
        self._hello_attempts = 0
        self._in_flight: deque[tuple[int, float]] = deque()
        self._half_open = HalfOpenTimer()
        self._blocked_since: float | None = None
        """Since when `send` fails, `None` while it succeeds."""
        self._finish: Finish | None = None
        self._finish_sent_at: float | None = None
        self._chunk_rows = CHUNK_ROWS
        self.has_answer = False
        """Whether the uploader has sent any message."""
        self._hello_changed = False
        self._without_metadata = False
        self._is_new_run = False
        """Another run was started, so answers until its `Welcome` concern the old run."""
        self.welcomed = False
        self.is_rejected = False
        """The uploader has rejected the run or the connection; `Hello` is still repeated now and then."""
        self.end_reason: EndReason | None = None
        self.finish_durable = False
        self.finished: Finished | None = None
        """The backend's result, once the run is delivered."""
        self.delivery_error = ""
        """The uploader's text on why it cannot deliver the run at the moment."""
        self.is_parked = False
        """The uploader has set the run aside for an operator."""
        self.run_id = ""
        """The run's id at the backend, empty while unknown."""

    @property
    def is_complete(self) -> bool:
        """Whether everything, `Finish` included, is durable at the uploader, or it accepts no more of the run."""
        if self.end_reason is not None:
            return True
        return self.finish_durable if self._finish is not None else self.welcomed and not self._queue.rows

    @property
    def rejection_reason(self) -> str:
        """Why the uploader rejects the run, as text that follows its name; empty when it does not."""
        return self._log.rejection_reason

    def unanswered_s(self, now: float) -> float:
        """For how many seconds the uploader has not answered while an answer was due."""
        return now - self._last_message_at

    def finish(self, finish: Finish) -> None:
        """End the run: `finish` follows the last row; its `last_seq` is filled in when it is sent."""
        self._finish = finish

    def resend_hello(self) -> None:
        """Send the changed `Hello` at the next `poll`."""
        self._hello_changed = True

    def poll(self) -> None:
        """Handle received messages and send what is due; never blocks."""
        now = self._clock.monotonic()
        try:
            if not self._receive(now):  # an uploader that answers has accepted the handshake
                self._check_handshake(now)
            if self.end_reason is not None:
                return
            if not self.welcomed or self._hello_changed or now >= self._resend_deadline():
                self._send_hello(now)
            if self.welcomed:
                self._send(now)
        except (OSError, OverflowFileError) as error:
            # The queue is unchanged: reset the session when the disk may have recovered.
            self._log.on_disk_error(error)
            self._reset_session(now + RETRY_SPILL_S)
        self._check_liveness(now)

    def next_poll_in(self) -> float:
        """Seconds until `poll` has to be called again, also without a sample."""
        now = self._clock.monotonic()
        if not self.welcomed:
            return _FAST_POLL_S if now - self._opened_at < 1.0 else _POLL_S
        if self._in_flight or self._finish_sent_at is not None or self._blocked_since is not None:
            return _POLL_S
        # Limited, so that a rejection between two samples is noticed soon.
        return min(_IDLE_POLL_S, max(0.0, self._sent_at + _PING_INTERVAL_S - now))

    def _check_handshake(self, now: float) -> None:
        error = self._transport.poll_handshake_error(now)
        if error is not None:
            self.is_rejected = True
            # Each reason is a topic of its own: one that becomes known later is logged as well.
            self._log.on_rejected(error, error)

    def _receive(self, now: float) -> bool:
        """Handle received messages, up to the last awaited answer; False when there was none."""
        # Limited: a flood of messages must not stop the sampling.
        for taken in range(_MAX_MESSAGES_PER_POLL):
            frame = self._transport.receive()
            if frame is None:
                return taken > 0
            was_waiting = bool(self._in_flight)
            message = self._handle_message(frame, now)
            if was_waiting and isinstance(message, Ack) and not self._in_flight and self._finish_sent_at is None:
                # All is answered. Another `receive` costs as much as this one; the next `poll` reads what is left.
                break
        return True

    def _handle_message(self, frame: bytes, now: float) -> UploaderMessage | None:
        try:
            message: UploaderMessage = decode_from_uploader(frame)
        except InvalidMessageError as error:
            self._log.log_once("bad-message", f"sent an invalid message ({error}); is it a sentinel-uploader?")
            return None
        self._log.on_recovered(now - self._last_message_at)
        self._last_message_at = now
        self.has_answer = True
        match message:
            case Welcome():
                self._handle_welcome(message, now)
            case Ack():
                self._handle_ack(message)
            case Finished():
                self._handle_finished(message, now)
            case Reject():
                self._handle_reject(message, now)
        return message

    def _handle_welcome(self, welcome: Welcome, now: float) -> None:
        if not 1 <= welcome.next_seq <= MAX_SEQUENCE or not 0 <= welcome.last_timestamp <= _MAX_TIMESTAMP:
            self._log.log_once("bad-message", f"asks for sample {welcome.next_seq}, which is out of range; ignored")
            return
        missing = self._queue.rewind(welcome.next_seq, welcome.last_timestamp)
        self._clear_in_flight()
        self._is_new_run = False
        self.run_id = welcome.run_id or self.run_id
        newest = max(welcome.last_timestamp, self._queue.newest_timestamp)
        self._on_welcome(msgspec.structs.replace(welcome, last_timestamp=newest))
        if missing:
            self._log.log_once(
                "missing", f"asks for {missing} samples that this collector no longer has; continuing without them"
            )
            # The next `Hello` names the lowest available row, and the uploader continues from there.
            self._reset_session(now if self._hello_attempts <= 1 else self._hello_due_at)
            return
        self.welcomed = True
        self._log.on_welcome()

    def _handle_ack(self, ack: Ack) -> None:
        if self._is_new_run or ack.seq > MAX_SEQUENCE:
            return
        self.delivery_error, self.is_parked = ack.delivery_error, ack.quarantined
        if self.is_parked and self._finish is None:
            self._log.log_once("parked", f"keeps the run's samples without delivering them: {ack.delivery_error}")
        if self._queue.acknowledge(ack.seq):
            self._hello_attempts = 0
            self._log.on_rows_accepted()
        while self._in_flight and self._in_flight[0][0] <= ack.seq:
            self._in_flight.popleft()
        # While rows are unacknowledged, an acknowledged end is not that of our rows.
        if ack.finish and self._finish is not None and not self._queue.rows:
            self.finish_durable = True

    def _handle_finished(self, finished: Finished, now: float) -> None:
        if self._is_new_run:
            return
        if self._finish is None or self._queue.rows:
            self._handle_run_closed(0, now)
            return
        self.finished = finished
        self.run_id = finished.run_id
        self.finish_durable = True

    def _handle_reject(self, reject: Reject, now: float) -> None:
        match reject.code:
            case RejectCode.HELLO_FIRST:
                # One comes for each frame in flight: only the first resets the session.
                if self.welcomed:
                    self._reset_session(self._hello_due_at if self._hello_attempts else now)
            case RejectCode.SUPERSEDED:
                if not self._is_new_run:
                    # Rows that the run has are delivered and must not be saved again.
                    self._queue.acknowledge(min(reject.seq, MAX_SEQUENCE))
                    self.welcomed = False
                    self.end_reason = EndReason.SUPERSEDED
            case RejectCode.CLOSED:
                if not self._is_new_run:
                    self._handle_run_closed(reject.seq, now)
            case RejectCode.TOO_BIG:
                self._handle_too_big(reject, now)
            case RejectCode.BUSY:
                # For a rejected `Hello` the next time is set already.
                self._back_off(reject, now + self._next_hello_wait_s() if self.welcomed else self._hello_due_at)
            case _:
                self.is_rejected = True
                self._back_off(reject, now + REJECTED_WAIT_S)

    def _handle_run_closed(self, last_seq: int, now: float) -> None:
        """The uploader has closed the run: rows up to `last_seq` are part of it, the others are not."""
        self._queue.acknowledge(min(last_seq, MAX_SEQUENCE))
        self._reset_session(now)
        if self._on_closed():
            self._is_new_run = True
            self.finish_durable = self.is_parked = False
            self.finished = None
            self.delivery_error = ""
            self.run_id = ""
        else:
            self.end_reason = EndReason.CLOSED

    def _handle_too_big(self, reject: Reject, now: float) -> None:
        if self.welcomed:
            self._chunk_rows = max(1, self._chunk_rows // 2)
            self._back_off(reject, now + self._next_hello_wait_s())
        elif not self._without_metadata:
            self._without_metadata = True
            self._log.log(f"rejects the run's description ({reject.text}); continuing without it")
            self._reset_session(now)
        else:
            self._back_off(reject, now + REJECTED_WAIT_S)

    def _back_off(self, reject: Reject, hello_due_at: float) -> None:
        why = f"rejects samples ({reject.code}: {reject.text})"
        self._log.on_rejected(reject.code, why, of_rows=self.welcomed)
        self._reset_session(hello_due_at)

    def _reset_session(self, hello_due_at: float) -> None:
        self.welcomed = False
        self._clear_in_flight()
        self._hello_due_at = hello_due_at

    def _send_hello(self, now: float) -> None:
        if now < self._hello_due_at:
            return
        # Without a connection, ZeroMQ reconnects by itself.
        if self._blocked_since is None and self._half_open.is_due(now, self._last_message_at):
            self._transport.reconnect()
        hello = self._hello(self._queue.oldest_seq)
        if self._without_metadata:
            hello = msgspec.structs.replace(hello, metadata={}, host={}, cloud={})
        is_sent = self._try_send(encode(hello), now)
        if is_sent:
            self._hello_changed = False
            self._sent_at = now
            self._reset_session(now + self._next_hello_wait_s())
        elif now >= self._resend_deadline():
            self._reset_session(now)

    def _next_hello_wait_s(self) -> float:
        wait = min(MAX_HELLO_WAIT_S, RESEND_TIMEOUT_S * 2.0**self._hello_attempts)
        self._hello_attempts = min(self._hello_attempts + 1, 10)
        # Many collectors may lose the same uploader at the same moment.
        return wait * random.uniform(0.75, 1.25)  # noqa: S311 -- spreads load, guards nothing

    def _send(self, now: float) -> None:
        while (room := WINDOW_ROWS - self._queue.sent_rows) > 0:
            chunk = self._queue.next_chunk(max_rows=min(self._chunk_rows, room), max_bytes=CHUNK_BYTES)
            if chunk is None:
                break
            first, rows = chunk
            if not self._try_send(encode(SamplesRaw(first, [msgspec.Raw(row) for row in rows])), now):
                return
            self._queue.mark_sent(len(rows))
            self._in_flight.append((first + len(rows) - 1, now))
            self._sent_at = now
        if self._finish is not None and self._finish_sent_at is None and not self._queue.unsent_rows:
            self._send_finish(self._finish, now)
        elif now - self._sent_at >= _PING_INTERVAL_S and self._try_send(encode(Ping()), now):
            self._sent_at = now

    def _send_finish(self, finish: Finish, now: float) -> None:
        last_seq = self._queue.last_seq
        assert last_seq is not None
        if self._try_send(encode(msgspec.structs.replace(finish, last_seq=last_seq)), now):
            self._finish_sent_at = self._sent_at = now

    def _try_send(self, frame: bytes, now: float) -> bool:
        if self._transport.send(frame):
            self._blocked_since = None
            return True
        if self._blocked_since is None:
            self._blocked_since = now
        return False

    def _resend_deadline(self) -> float:
        """Return when to reset the session, counted from the oldest unacknowledged send."""
        oldest: list[float] = [self._in_flight[0][1]] if self._in_flight else []
        if self._finish_sent_at is not None and not self.finish_durable:
            oldest.append(self._finish_sent_at)
        if self._blocked_since is not None:
            oldest.append(self._blocked_since)
        return min(oldest) + RESEND_TIMEOUT_S if oldest else float("inf")

    def _clear_in_flight(self) -> None:
        self._in_flight.clear()
        self._finish_sent_at = None

    def _check_liveness(self, now: float) -> None:
        waiting = not self.welcomed or self._in_flight or self._queue.unsent_rows
        if not waiting:
            self._last_message_at = now
        elif now - self._last_message_at >= UNREACHABLE_WARNING_S and not self._log.rejection_reason:
            self._log.on_unreachable(UNREACHABLE_WARNING_S)
