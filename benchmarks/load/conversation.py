"""One collector's conversation: rows by the clock, sent, acknowledged, and sent again as the product's link does it.

The product's own link keeps rows in memory and on disk, for one run in one process. Here a row is a function of its
number, so that ten thousand conversations cost less than the uploader that they measure.
"""

import random
from collections import deque
from collections.abc import Callable

from benchmarks.load.latency import Latencies
from benchmarks.load.rows import RowMaker
from sentinel_protocol.wire.messages import (
    PROTOCOL_VERSION,
    Ack,
    Finish,
    Finished,
    Hello,
    Reject,
    RejectCode,
    Welcome,
    decode_from_uploader,
    encode,
)

WINDOW_ROWS = 1024
RESEND_TIMEOUT_S = 3.0
_MAX_HELLO_WAIT_S = 60.0
_MAX_CHUNK_ROWS = 128


class Conversation:
    """`send` hands a frame to the connection; False when it takes none now. Times are monotonic seconds.

    With `is_saturating`, rows are not made by the clock: as many are under way as the window allows.
    """

    def __init__(
        self,
        number: int,
        *,
        maker: RowMaker,
        send: Callable[[bytes], bool],
        latencies: Latencies,
        began_at: float,
        interval_s: float,
        rows_per_message: int,
        is_saturating: bool,
    ) -> None:
        self.number = number
        self._maker = maker
        self._send = send
        self._latencies = latencies
        self._began_at = began_at
        self._interval_s = interval_s
        self._rows_per_message = rows_per_message
        self._is_saturating = is_saturating
        self._chunk_rows = min(_MAX_CHUNK_ROWS, rows_per_message) if is_saturating else _MAX_CHUNK_ROWS
        self.last_seq = 0
        """Of the newest row."""
        self._sent_seq = 0
        self.acked_seq = 0
        self._made: deque[tuple[int, float]] = deque()
        """The last row of each message that is not acknowledged, and when it was made."""
        self._oldest_sent_at: float | None = None
        self._hello_due_at = 0.0
        self._hello_attempts = 0
        self.is_welcome = False
        self._is_finishing = False
        self._is_finish_sent = False
        self.is_finish_durable = False
        self.is_finished = False
        self.refusal = ""
        """Why the uploader takes no more of this run for good."""
        self.hellos = self.rejects = 0

    def make_rows(self, now: float) -> None:
        """A message is due."""
        if self._is_finishing or self.refusal or self._is_saturating:
            return
        self._make(now)
        if self.is_welcome:
            self._send_rows(now)

    def poll(self, now: float) -> None:
        """Say `Hello` when that is due, again when nothing was acknowledged for too long."""
        if self.is_finished or self.refusal:
            return
        if self._oldest_sent_at is not None and now - self._oldest_sent_at >= RESEND_TIMEOUT_S:
            self.is_welcome = False
        if self.is_welcome:
            self._send_rows(now)
        elif now >= self._hello_due_at:
            self._say_hello(now)

    def reconnected(self) -> None:
        """The connection is another one."""
        self.is_welcome = False
        self._hello_due_at = 0.0

    def finish(self, now: float) -> None:
        """No more rows are made."""
        self._is_finishing = True
        if self.is_welcome:
            self._send_rows(now)

    def hear(self, frame: bytes, now: float) -> None:
        """Take in a message."""
        match decode_from_uploader(frame):
            case Ack(seq=seq, finish=is_durable):
                self._on_ack(seq, now)
                self.is_finish_durable |= is_durable
                if self.is_welcome:
                    self._send_rows(now)
            case Welcome(next_seq=next_seq):
                self._acknowledge(next_seq - 1, now)
                self.is_welcome = True
                self._sent_seq = next_seq - 1
                self._is_finish_sent = False
                self._oldest_sent_at = None
                self._send_rows(now)
            case Finished():
                self.is_finished = True
            case Reject() as reject:
                self._on_reject(reject, now)

    def _on_ack(self, seq: int, now: float) -> None:
        if seq > self.acked_seq:
            self._hello_attempts = 0
        self._acknowledge(seq, now)
        self._oldest_sent_at = now if self._sent_seq > self.acked_seq else None

    def _acknowledge(self, seq: int, now: float) -> None:
        while self._made and self._made[0][0] <= seq:
            last, made_at = self._made.popleft()
            self._latencies.add(now - made_at, last - self.acked_seq)
            self.acked_seq = last
        self.acked_seq = max(self.acked_seq, seq)

    def _on_reject(self, reject: Reject, now: float) -> None:
        self.rejects += 1
        if reject.code in {RejectCode.HELLO_FIRST, RejectCode.BUSY}:
            if self.is_welcome:
                self._hello_due_at = now if reject.code is RejectCode.HELLO_FIRST else now + self._next_wait_s()
            self.is_welcome = False
        elif not self.is_finished:
            self.refusal = f"{reject.code}: {reject.text}"

    def _say_hello(self, now: float) -> None:
        hello = Hello(
            PROTOCOL_VERSION,
            f"load-{self.number}",
            f"{self.number:016x}",
            self._interval_s,
            {"job_name": f"load {self.number}", "command": ["python", "train.py"]},
            {"host_name": f"host-{self.number}", "host_vcpus": 16},
            {},
            self.acked_seq + 1,
        )
        if self._send(encode(hello)):
            self.hellos += 1
            self._hello_due_at = now + self._next_wait_s()

    def _next_wait_s(self) -> float:
        wait_s = min(_MAX_HELLO_WAIT_S, RESEND_TIMEOUT_S * 2.0**self._hello_attempts)
        self._hello_attempts = min(self._hello_attempts + 1, 10)
        return wait_s * random.uniform(0.75, 1.25)

    def _make(self, now: float) -> None:
        self.last_seq += self._rows_per_message
        self._made.append((self.last_seq, now))

    def _send_rows(self, now: float) -> None:
        while True:
            if self._is_saturating and not self._is_finishing:
                while self.last_seq + self._rows_per_message - self.acked_seq <= WINDOW_ROWS:
                    self._make(now)
            last = min(self.last_seq, self.acked_seq + WINDOW_ROWS, self._sent_seq + self._chunk_rows)
            if last <= self._sent_seq:
                break
            frame = self._maker.message(
                self.number, self._sent_seq + 1, last, began_at=self._began_at, interval_s=self._interval_s
            )
            if not self._send(frame):
                return
            self._sent_seq = last
            self._oldest_sent_at = self._oldest_sent_at or now
        if self._is_finishing and not self._is_finish_sent and self._sent_seq == self.last_seq:
            ended_at = self._began_at + self.last_seq * self._interval_s
            if self._send(encode(Finish(self.last_seq, 0, "finished", ended_at))):
                self._is_finish_sent = True
                self._oldest_sent_at = self._oldest_sent_at or now
