"""What is known of a run: its durable record, and what this process knows beside."""

from typing import Any

import msgspec

from sentinel_protocol.wire.messages import Finish, Hello
from sentinel_protocol.wire.run_statistics import RunStatistics
from sentinel_uploader.runs.lifecycle import ENDED_STATES, RunState
from sentinel_uploader.runs.types import RunDescription

_STORED_NAMES = {
    "epoch": "incarnation",
    "fenced_epochs": "superseded",
    "fenced_seq": "superseded_seq",
    "batched_seq": "settled_seq",
    "put_attempted": "put_tried",
    "finish_attempted": "finish_tried",
    "sealed_at": "cut_at",
}
"""Field names of the msgpack map in `runs.record` where they differ from the attribute's: a spool outlives releases."""


class RunRecord(msgspec.Struct, frozen=True, kw_only=True, rename=_STORED_NAMES):
    """Everything about a run that survives this process; one row of the spool. Times are UNIX seconds."""

    uid: str
    key: str
    owner: str = ""
    """Name of the client whose key opened the run; empty on links without keys."""
    epoch: str
    fenced_epochs: list[str] = []
    """Earlier collectors of this run, newest last: none of them gets in again."""
    fenced_seq: dict[str, int] = {}
    """The run's last row when each of them was superseded."""
    state: RunState = RunState.NEW
    created_at: float
    interval_s: float
    metadata: dict[str, Any] = {}
    host: dict[str, Any] = {}
    cloud: dict[str, Any] = {}
    run_id: str = ""
    uri_prefix: str = ""
    batched_seq: int = 0
    """Every row up to this number is in a frozen batch, or is missing."""
    missing_rows: int = 0
    """Rows that the run's collector could not send again after a spool was lost."""
    batches: int = 0
    """Batches frozen so far; the next one has the number after."""
    delivered_batches: int = 0
    rows: int = 0
    """Rows in frozen batches."""
    delivered_rows: int = 0
    csv_bytes: int = 0
    object_bytes: int = 0
    put_attempted: bool = False
    finish_attempted: bool = False
    finish: Finish | None = None
    closed_as_stale: bool = False
    response: dict[str, Any] = {}
    statistics: RunStatistics = msgspec.field(default_factory=RunStatistics)
    sealed_at: float = 0.0
    waiting_since: float = 0.0
    """When the oldest row of the batches that are not confirmed was received; 0: there are none."""
    ended_at: float = 0.0
    last_error: str = ""
    last_error_at: float = 0.0
    next_try_at: float = 0.0

    def describe(self) -> RunDescription:
        """What the API is told at registration."""
        return RunDescription(
            uid=self.uid,
            run_key=self.key,
            created_at=self.created_at,
            interval_s=self.interval_s,
            metadata=self.metadata,
            host=self.host,
            cloud=self.cloud,
        )

    @property
    def log_fields(self) -> dict[str, str]:
        """What a log line about the run says beside its text."""
        return {"client": self.owner}

    @property
    def has_ended(self) -> bool:
        """Whether the run's end is known."""
        return self.finish is not None

    @property
    def is_over(self) -> bool:
        """Whether nothing will happen to the run any more."""
        return self.state in ENDED_STATES


def new_record(hello: Hello, *, uid: str, owner: str, now: float) -> RunRecord:
    """Make the record of a run that says `Hello` for the first time (`now` in UNIX seconds)."""
    return RunRecord(
        uid=uid,
        key=hello.run_key,
        owner=owner,
        epoch=hello.epoch,
        created_at=now,
        sealed_at=now,
        interval_s=hello.interval_s,
        metadata=hello.metadata,
        host=hello.host,
        cloud=hello.cloud,
        batched_seq=max(0, hello.first_available_seq - 1),
        missing_rows=max(0, hello.first_available_seq - 1),
    )


def decode_record(blob: bytes) -> RunRecord:
    """Decode a run's record as the spool holds it."""
    return msgspec.msgpack.decode(blob, type=RunRecord)
