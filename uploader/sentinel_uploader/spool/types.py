"""Values that go into the spool and come out of it, and why it rejects some."""

from collections.abc import Iterable
from typing import NamedTuple

from sentinel_protocol.common.errors import InvalidMessageError, SentinelStreamError
from sentinel_protocol.wire.messages import Samples, decode_from_collector
from sentinel_protocol.wire.sample import Sample
from sentinel_uploader.spool.open_run import OpenRun
from sentinel_uploader.spool.run_record import RunRecord
from sentinel_uploader.spool.tombstones import Tombstone


class RunClosedError(SentinelStreamError):
    """The run has ended. `seq` is its last row here; `ended` is what is kept of a run in a final state."""

    def __init__(self, seq: int, ended: RunRecord | Tombstone | None = None) -> None:
        super().__init__("this run has ended")
        self.seq = seq
        self.ended = ended


class SupersededError(SentinelStreamError):
    """A newer collector has replaced this one. `seq` is the last row before that (0: unknown)."""

    def __init__(self, seq: int) -> None:
        super().__init__("a newer collector has taken this run over")
        self.seq = seq


class RunLimitError(SentinelStreamError):
    """The client has reached its limit of open runs."""


class QuotaExceededError(SentinelStreamError):
    """The client has used up its part of the spool, which others use too."""

    def __init__(self) -> None:
        super().__init__("this client has its share of the uploader's spool; more is taken when some is delivered")


class PendingFrame(NamedTuple):
    """A validated frame to be stored."""

    run: OpenRun
    first_seq: int
    rows: int
    payload: bytes
    last_timestamp: float


class UnbatchedFrames(NamedTuple):
    """Rows that are not in a batch yet: their range and their frames' payloads."""

    first_seq: int
    last_seq: int
    payloads: list[bytes]


class Batch(NamedTuple):
    """A sealed batch: its range and its bytes never change."""

    number: int
    first_seq: int
    last_seq: int
    rows: int
    body: bytes
    sha256: bytes


def decode_frames(payloads: Iterable[bytes]) -> list[Sample]:
    """Return the samples of stored frames, in order.

    They were validated when received. Raises `InvalidMessageError` for one that was damaged since.
    """
    samples: list[Sample] = []
    for payload in payloads:
        message = decode_from_collector(payload)
        if not isinstance(message, Samples):
            raise InvalidMessageError(f"a {type(message).__name__} where samples were stored")
        samples.extend(message.samples)
    return samples
