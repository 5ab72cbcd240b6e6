"""The in-memory mirror of an open run."""

from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sentinel_protocol.wire.sample import CSV_HEADER
from sentinel_uploader.runs.lifecycle import OPEN_STATES
from sentinel_uploader.runs.schedule import SchedulingFacts
from sentinel_uploader.spool.run_record import RunRecord

if TYPE_CHECKING:
    from sentinel_uploader.runs.types import Credentials, Registration

_MAX_TEXT_PER_ENCODED_BYTE = 5

_MAX_TEXT_PER_ROW_BYTES = 64

_FRAME_OVERHEAD_BYTES = 24

_BATCH_OVERHEAD_BYTES = 64
"""What the database needs beside a frame's payload, and a batch's body: numbers, a hash, pointers."""


class OpenRun:
    """An open run in memory: its record as committed, and what is lost and found again at a restart.

    Guarded by the spool's lock. Times are monotonic seconds.
    """

    __slots__ = (
        "accounted_bytes",
        "attempts",
        "batch_bytes",
        "batch_received_at",
        "blocked_by",
        "cloud_pending",
        "created_at",
        "credentials",
        "credentials_rejected",
        "durable_seq",
        "failing_since",
        "frame_ids",
        "frame_received_at",
        "id",
        "in_flight",
        "last_seen_at",
        "last_timestamp",
        "not_before",
        "pending_batches",
        "record",
        "record_bytes",
        "refresh_attempts",
        "refresh_not_before",
        "registration",
        "response",
        "retry_after_until",
        "sealed_at",
        "unbatched_bytes",
        "unbatched_rows",
    )

    def __init__(self, run_id: int, record: RunRecord, *, now: float, record_bytes: int = 0) -> None:
        self.id = run_id
        self.record = record
        self.record_bytes = record_bytes
        """Of the encoded record, as it was when the run was opened or found."""
        self.accounted_bytes = 0
        """What of `spool_bytes` its client's account has."""
        self.frame_ids = array("q")
        """Row ids of the frames that are not in a batch yet, oldest first: 8 bytes each, bounded by the batch size."""
        self.frame_received_at = array("d")
        """When each of them was received (UNIX seconds)."""
        self.unbatched_rows = 0
        self.unbatched_bytes = 0
        self.batch_bytes = 0
        """Of the bodies of batches that are not confirmed."""
        self.durable_seq = record.batched_seq
        self.last_timestamp = record.statistics.last_timestamp
        self.pending_batches = record.batches - record.delivered_batches
        # What was received when is not kept for every batch: none is older than the first.
        self.batch_received_at = array("d", [record.waiting_since or record.sealed_at]) * self.pending_batches
        """When the oldest row of each batch that is not confirmed was received, oldest batch first."""
        self.created_at = now
        self.sealed_at = now
        self.last_seen_at = now
        self.cloud_pending = False
        self.credentials: Credentials | None = None
        self.credentials_rejected = 0
        self.registration: Registration | None = None
        """An answer that could not be written down yet: asking again would make another run at the server."""
        self.response: dict[str, Any] | None = None
        """The same for `finish`."""
        self.attempts = 0
        """Failures since the last success."""
        self.failing_since: float | None = None
        self.not_before = 0.0
        self.retry_after_until = 0.0
        """A server's wish for this run, which no hurry shortens."""
        self.refresh_attempts = 0
        self.refresh_not_before = 0.0
        """Holds for a refresh that is only wanted; uploads go on meanwhile."""
        self.in_flight = False
        self.blocked_by = ""
        """What it waits for although it has met no failure itself: a destination that is failing."""

    def add_frame(self, frame_id: int, first_seq: int, rows: int, size: int, *, received_at: float) -> None:
        """Take a stored message into account; `received_at` is UNIX seconds."""
        self.frame_ids.append(frame_id)
        self.frame_received_at.append(received_at)
        self.unbatched_rows += rows
        self.unbatched_bytes += size
        # Rows may be missing in between: then what is settled lies above the oldest frames.
        self.durable_seq = max(self.durable_seq, first_seq + rows - 1)

    @property
    def spool_bytes(self) -> int:
        """About how much of the spool the run takes."""
        rows = self.unbatched_bytes + _FRAME_OVERHEAD_BYTES * len(self.frame_ids)
        return self.record_bytes + rows + self.batch_bytes + _BATCH_OVERHEAD_BYTES * self.pending_batches

    @property
    def waiting_since(self) -> float | None:
        """When the oldest row that is not delivered was received (UNIX seconds), `None` when all are."""
        if self.batch_received_at:
            return self.batch_received_at[0]
        return self.frame_received_at[0] if self.frame_received_at else None

    @property
    def undelivered_rows(self) -> int:
        """Rows that are not delivered."""
        return self.unbatched_rows + self.record.rows - self.record.delivered_rows

    def scheduling_facts(
        self, *, listening_since: float, flush: bool, needs_credentials: bool, wants_refresh: bool
    ) -> SchedulingFacts:
        """What `next_step` wants to know; silence counts only while the uploader was there to hear."""
        record = self.record
        return SchedulingFacts(
            state=record.state,
            has_ended=record.has_ended,
            unbatched_rows=self.unbatched_rows,
            unbatched_bytes=self.unbatched_bytes,
            pending_batches=self.pending_batches,
            # One byte of msgpack may be four as text with its comma (-32), five are up to 21; columns that a row leaves
            # out are commas all the same.
            total_csv_bytes=record.csv_bytes
            + _MAX_TEXT_PER_ENCODED_BYTE * self.unbatched_bytes
            + _MAX_TEXT_PER_ROW_BYTES * self.unbatched_rows
            + len(CSV_HEADER),
            upload_attempted=record.put_attempted,
            created_at=self.created_at,
            sealed_at=self.sealed_at,
            silent_since=max(self.last_seen_at, listening_since),
            interval_s=record.interval_s,
            cloud_pending=self.cloud_pending,
            flush=flush,
            needs_credentials=needs_credentials,
            wants_refresh=wants_refresh,
        )


def active_runs(runs: Iterable[OpenRun]) -> list[OpenRun]:
    """Those of the runs for which something is still to be done (a parked one waits for a person)."""
    return [run for run in runs if run.record.state in OPEN_STATES]
