"""Limits each client to a rate of rows (a token bucket), and each message to a size."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from sentinel_protocol.wire.messages import Hello, Reject, RejectCode, Samples
from sentinel_uploader.limits import ClientLimits
from sentinel_uploader.server.zmq_server import ReceivedMessage
from sentinel_uploader.telemetry.counters import Counters

HELLO_COST_ROWS = 20
"""A `Hello` costs as much as so many rows, because it may write to the spool."""
_MAX_BUCKETS = 10_000
_NOTIFY_INTERVAL_S = 1.0


class AdmissionDecision(NamedTuple):
    """Whether a message is read; otherwise what to reply, and whether to close the connection."""

    is_accepted: bool
    reply: Reject | None = None
    disconnect: bool = False


_ACCEPTED = AdmissionDecision(is_accepted=True)
_DROPPED = AdmissionDecision(is_accepted=False)
_DISCONNECTED = AdmissionDecision(is_accepted=False, disconnect=True)


@dataclass(slots=True)
class _TokenBucket:
    """A token is one row. Times are monotonic seconds."""

    tokens: float
    updated_at: float
    rejected: int = 0
    """Messages rejected in a row."""
    notified_at: float | None = None


class RateLimiter:
    """Checks each message before it is decoded. Clients without a key have a bucket for each connection.

    `name_of` returns the client that a public key belongs to, `None` for a key that is not allowed (any more).
    """

    def __init__(self, *, name_of: Callable[[bytes], str | None], limits: ClientLimits, counters: Counters) -> None:
        self._name_of = name_of
        self._limits = limits
        self._counters = counters
        self._buckets: OrderedDict[str | bytes, _TokenBucket] = OrderedDict()

    def owner_of(self, received: ReceivedMessage) -> str | None:
        """Return the client's name: empty on a link without keys, `None` for a client that is not allowed."""
        return self._name_of(received.key) if received.key else ""

    def check(self, received: ReceivedMessage, owner: str, now: float) -> AdmissionDecision:
        """Decide whether the message is read; `now` is monotonic seconds."""
        if len(received.frame) > self._limits.max_message_bytes:
            self._counters.count_rejection(owner, "message-size")
            text = f"a message has at most {self._limits.max_message_bytes} bytes"
            return AdmissionDecision(is_accepted=False, reply=Reject(RejectCode.TOO_BIG, text, retry=True))
        bucket = self._bucket(owner or received.identity, now)
        if bucket.tokens > 0:
            bucket.rejected = 0
            return _ACCEPTED
        self._counters.count_rejection(owner, "rate")
        bucket.rejected += 1
        if bucket.rejected % self._limits.max_rejected_messages == 0:
            self._counters.count_rejection(owner, "flood")
            return _DISCONNECTED
        if bucket.notified_at is not None and now - bucket.notified_at < _NOTIFY_INTERVAL_S:
            return _DROPPED
        bucket.notified_at = now
        text = f"more than {self._limits.max_client_rows_per_s} samples a second"
        return AdmissionDecision(is_accepted=False, reply=Reject(RejectCode.BUSY, text, retry=True))

    def consume(self, received: ReceivedMessage, owner: str, message: object) -> None:
        """Take the cost of an accepted message from its bucket; the bucket may become negative."""
        rows = 1
        if isinstance(message, Samples):
            rows = max(1, len(message.samples))
        elif isinstance(message, Hello):
            rows = HELLO_COST_ROWS
        bucket = self._buckets.get(owner or received.identity)
        if bucket is not None:
            bucket.tokens -= rows

    def _bucket(self, client: str | bytes, now: float) -> _TokenBucket:
        """Return a client's bucket, refilled until `now`."""
        capacity = self._limits.max_client_rows_per_s * self._limits.client_burst_s
        bucket = self._buckets.get(client)
        if bucket is None:
            bucket = self._buckets[client] = _TokenBucket(capacity, now)
            if len(self._buckets) > _MAX_BUCKETS:
                # The bucket that was used longest ago is most likely to be full again.
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(client)
        bucket.tokens = min(capacity, bucket.tokens + (now - bucket.updated_at) * self._limits.max_client_rows_per_s)
        bucket.updated_at = now
        return bucket
