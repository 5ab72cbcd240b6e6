"""The in-memory mirror of an open run."""

from array import array

from sentinel_protocol.wire.sample import CSV_HEADER
from sentinel_uploader.runs.lifecycle import OPEN_STATES
from sentinel_uploader.runs.schedule import SchedulingFacts, upload_phase
from sentinel_uploader.spool.run_record import RunRecord

_MAX_TEXT_PER_ENCODED_BYTE = 5
_MAX_TEXT_PER_ROW_BYTES = 64
_FRAME_OVERHEAD_BYTES = 24
_BATCH_OVERHEAD_BYTES = 64
"""What the database needs beside a frame's payload, and a batch's body: numbers, a hash, pointers."""


class OpenRun:
    """A run's record as committed, and where its rows are. Guarded by the spool's lock; the spool alone changes it.

    Three attributes have one writer each, are replaced whole, and may be read without the lock: `record` (the spool),
    `last_seen_at` (the intake's thread) and `blocked_by` (the scheduler). The intake's thread alone appends rows, and
    reads `durable_seq` without it. Times are monotonic seconds, those of rows UNIX seconds.
    """

    __slots__ = (
        "accounted_bytes",
        "batch_bytes",
        "batch_received_at",
        "blocked_by",
        "cloud_pending",
        "created_at",
        "durable_seq",
        "frame_ids",
        "frame_received_at",
        "id",
        "last_seen_at",
        "last_timestamp",
        "pending_batches",
        "record",
        "record_bytes",
        "sealed_at",
        "unbatched_bytes",
        "unbatched_rows",
    )

    def __init__(self, run_id: int, record: RunRecord, *, now: float, record_bytes: int = 0) -> None:
        self.id = run_id
        self.record = record
        self.record_bytes = record_bytes
        """Size of the encoded record when the run was opened or loaded."""
        self.accounted_bytes = 0
        """The part of `spool_bytes` that is charged to the client already."""
        self.frame_ids = array("q")
        """Frames that are not in a batch yet, oldest first: 8 bytes each, bounded by the batch size."""
        self.frame_received_at = array("d")
        self.unbatched_rows = 0
        self.unbatched_bytes = 0
        self.pending_batches = record.batches - record.delivered_batches
        """Sealed, not confirmed."""
        self.batch_bytes = 0
        """Size of the bodies of pending batches."""
        # The spool keeps one time for all pending batches: none is older than the first.
        self.batch_received_at = array("d", [record.waiting_since or record.sealed_at]) * self.pending_batches
        """When the oldest row of each pending batch was received, oldest batch first."""
        self.durable_seq = record.batched_seq
        self.last_timestamp = record.statistics.last_timestamp
        self.created_at = now
        self.sealed_at = now
        self.last_seen_at = now
        self.cloud_pending = False
        self.blocked_by = ""
        """The failing destination that the run waits for, where it has met no failure itself."""

    def add_frame(self, frame_id: int, first_seq: int, rows: int, size: int, *, received_at: float) -> None:
        """Count a stored frame."""
        self.frame_ids.append(frame_id)
        self.frame_received_at.append(received_at)
        self.unbatched_rows += rows
        self.unbatched_bytes += size
        # Rows may be missing in between: `batched_seq` is above the oldest frames then.
        self.durable_seq = max(self.durable_seq, first_seq + rows - 1)

    def move_to_batch(self, frames: int, *, rows: int, payload_bytes: int, body_bytes: int, now: float) -> None:
        """Count the oldest frames as a pending batch (`now`: monotonic seconds)."""
        self.batch_received_at.append(self.frame_received_at[0])
        del self.frame_ids[:frames], self.frame_received_at[:frames]
        self.unbatched_rows -= rows
        self.unbatched_bytes -= payload_bytes
        self.pending_batches += 1
        self.batch_bytes += body_bytes
        self.sealed_at = now

    def drop_batch(self, body_bytes: int) -> None:
        """The oldest batch is delivered."""
        self.pending_batches -= 1
        self.batch_bytes -= body_bytes
        del self.batch_received_at[0]

    def drop_rows(self) -> None:
        """The run is closed."""
        for times_or_ids in (self.frame_ids, self.frame_received_at, self.batch_received_at):
            del times_or_ids[:]
        self.unbatched_rows = self.unbatched_bytes = self.pending_batches = self.batch_bytes = 0

    @property
    def is_active(self) -> bool:
        """Whether delivery works on the run; a quarantined run waits for a person."""
        return self.record.state in OPEN_STATES

    @property
    def spool_bytes(self) -> int:
        """About how much of the spool the run takes."""
        rows = self.unbatched_bytes + _FRAME_OVERHEAD_BYTES * len(self.frame_ids)
        return self.record_bytes + rows + self.batch_bytes + _BATCH_OVERHEAD_BYTES * self.pending_batches

    @property
    def waiting_since(self) -> float | None:
        """When the oldest undelivered row was received; `None`: there is none."""
        if self.batch_received_at:
            return self.batch_received_at[0]
        return self.frame_received_at[0] if self.frame_received_at else None

    @property
    def undelivered_rows(self) -> int:
        """Rows that are not in a delivered object."""
        return self.unbatched_rows + self.record.rows - self.record.delivered_rows

    def has_frame_before(self, frame_id: int) -> bool:
        """Whether a frame with a lower id is in no batch yet. Needs no lock, as `scheduling_facts`."""
        return bool(self.frame_ids) and self.frame_ids[0] < frame_id

    def scheduling_facts(
        self,
        *,
        receiving_since: float = 0.0,
        flush: bool = False,
        needs_credentials: bool = False,
        wants_refresh: bool = False,
    ) -> SchedulingFacts:
        """Return what `next_step` needs. Silence counts only while messages were received.

        Needs no lock while no step of the run is in flight: then rows and an end may come in, nothing else changes.
        """
        record = self.record
        return SchedulingFacts(
            state=record.state,
            has_ended=record.has_ended,
            unbatched_rows=self.unbatched_rows,
            unbatched_bytes=self.unbatched_bytes,
            pending_batches=self.pending_batches,
            # One byte of msgpack may be four as text with its comma (-32), five are up to 21. A column that a row
            # leaves out still needs its comma.
            total_csv_bytes=record.csv_bytes
            + _MAX_TEXT_PER_ENCODED_BYTE * self.unbatched_bytes
            + _MAX_TEXT_PER_ROW_BYTES * self.unbatched_rows
            + len(CSV_HEADER),
            upload_attempted=record.put_attempted,
            created_at=self.created_at,
            sealed_at=self.sealed_at,
            silent_since=max(self.last_seen_at, receiving_since),
            interval_s=record.interval_s,
            cloud_pending=self.cloud_pending,
            upload_phase=0.0 if record.batches else upload_phase(self.id),
            flush=flush,
            needs_credentials=needs_credentials,
            wants_refresh=wants_refresh,
        )
