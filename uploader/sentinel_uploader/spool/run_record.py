"""The durable record of a run."""

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
    """The durable state of a run: one row of the spool. Times are UNIX seconds."""

    uid: str
    key: str
    owner: str = ""
    """Name of the client whose key opened the run; empty on connections without keys."""
    epoch: str
    fenced_epochs: list[str] = []
    """Earlier collectors of this run, newest last. They are rejected."""
    fenced_seq: dict[str, int] = {}
    """The run's last row when each of them was replaced."""
    state: RunState = RunState.NEW
    created_at: float
    interval_s: float
    metadata: dict[str, Any] = {}
    host: dict[str, Any] = {}
    cloud: dict[str, Any] = {}
    run_id: str = ""
    uri_prefix: str = ""
    batched_seq: int = 0
    """Every row up to this number is in a batch, or is missing."""
    missing_rows: int = 0
    """Rows that the collector could not send again after a spool was lost."""
    batches: int = 0
    """Batches sealed so far. The next one has the next number."""
    delivered_batches: int = 0
    rows: int = 0
    """Rows in sealed batches."""
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
    """When the oldest row in unconfirmed batches was received; 0: there is none."""
    ended_at: float = 0.0
    last_error: str = ""
    last_error_at: float = 0.0
    next_try_at: float = 0.0

    def describe(self) -> RunDescription:
        """Return what `register` sends."""
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
        """Extra fields of log lines about the run."""
        return {"client": self.owner}

    @property
    def has_ended(self) -> bool:
        """Whether the run's `Finish` is durable, or it was closed as stale. The rest is still to be delivered."""
        return self.finish is not None

    @property
    def is_over(self) -> bool:
        """Whether the run is in a final state."""
        return self.state in ENDED_STATES


def new_record(hello: Hello, *, uid: str, owner: str, now: float) -> RunRecord:
    """Return the record of a new run (`now` in UNIX seconds)."""
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
