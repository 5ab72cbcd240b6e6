"""The in-memory mirror of an open run, and the part of the spool that each client's open runs take."""

from array import array
from dataclasses import KW_ONLY, InitVar, dataclass, field

from sentinel_protocol.wire.sample import COLUMNS, CSV_HEADER
from sentinel_uploader.runs.lifecycle import OPEN_STATES
from sentinel_uploader.runs.schedule import SchedulingFacts, upload_phase
from sentinel_uploader.spool.run_record import RunRecord

_MAX_TEXT_PER_ENCODED_BYTE = 5
_MAX_TEXT_PER_ROW_BYTES = 2 * len(COLUMNS)
_FRAME_OVERHEAD_BYTES = 24
_BATCH_OVERHEAD_BYTES = 64
"""What the database needs beside a frame's payload, and a batch's body: numbers, a hash, pointers."""


@dataclass(slots=True, eq=False)
class OpenRun:
    """A run's record as committed, and where its rows are. Guarded by the spool's lock; the spool alone changes it.

    `record` and `last_seen_at` are replaced whole and may be read without the lock. The intake's thread alone appends
    rows, and reads `durable_seq` without it. Times are monotonic seconds, those of rows UNIX seconds.
    """

    id: int
    record: RunRecord
    _: KW_ONLY
    now: InitVar[float]
    record_bytes: int = 0
    """Size of the encoded record when the run was opened or loaded."""
    accounted_bytes: int = 0
    """The part of `spool_bytes` that is charged to the client already."""
    frame_ids: "array[int]" = field(default_factory=lambda: array("q"))
    """Frames that are not in a batch yet, oldest first: 8 bytes each, bounded by the batch size."""
    frame_received_at: "array[float]" = field(default_factory=lambda: array("d"))
    unbatched_rows: int = 0
    unbatched_bytes: int = 0
    batch_received_at: "array[float]" = field(init=False)
    """When the oldest row of each pending batch was received, oldest batch first."""
    batch_bytes: int = 0
    """Size of the bodies of pending batches."""
    durable_seq: int = field(init=False)
    last_timestamp: float = field(init=False)
    created_at: float = field(init=False)
    sealed_at: float = field(init=False)
    last_seen_at: float = field(init=False)
    cloud_pending: bool = False

    def __post_init__(self, now: float) -> None:
        record = self.record
        # The spool keeps one time for all pending batches: none is older than the first.
        oldest = array("d", [record.waiting_since or record.sealed_at])
        self.batch_received_at = oldest * (record.batches - record.delivered_batches)
        self.durable_seq = record.batched_seq
        self.last_timestamp = record.statistics.last_timestamp
        self.created_at = self.sealed_at = self.last_seen_at = now

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
        self.batch_bytes += body_bytes
        self.sealed_at = now

    def drop_batch(self, body_bytes: int) -> None:
        """The oldest batch is delivered."""
        self.batch_bytes -= body_bytes
        del self.batch_received_at[0]

    def drop_rows(self) -> None:
        """The run is closed."""
        for times_or_ids in (self.frame_ids, self.frame_received_at, self.batch_received_at):
            del times_or_ids[:]
        self.unbatched_rows = self.unbatched_bytes = self.batch_bytes = 0

    @property
    def is_active(self) -> bool:
        """Whether delivery works on the run; a quarantined run waits for a person."""
        return self.record.state in OPEN_STATES

    @property
    def pending_batches(self) -> int:
        """Batches that are sealed, not confirmed."""
        return len(self.batch_received_at)

    @property
    def spool_bytes(self) -> int:
        """About how much of the spool the run takes."""
        rows = self.unbatched_bytes + _FRAME_OVERHEAD_BYTES * len(self.frame_ids)
        return self.record_bytes + rows + self.batch_bytes + _BATCH_OVERHEAD_BYTES * len(self.batch_received_at)

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
            pending_batches=len(self.batch_received_at),
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


class ClientUsage:
    """Bytes and runs by client. Guarded by the spool's lock; single numbers may be read without it."""

    def __init__(self) -> None:
        self._runs: dict[str, int] = {}
        self._bytes: dict[str, int] = {}

    @property
    def clients(self) -> int:
        """How many clients have open runs."""
        return len(self._runs)

    def open_runs(self, owner: str) -> int:
        """How many runs of the client are open."""
        return self._runs.get(owner, 0)

    def spool_bytes(self, owner: str) -> int:
        """About how many bytes of the spool the client's open runs take."""
        return self._bytes.get(owner, 0)

    def add(self, run: OpenRun) -> None:
        """Add a run that was opened or loaded."""
        owner = run.record.owner
        self._runs[owner] = self.open_runs(owner) + 1
        self.recompute(run)

    def recompute(self, run: OpenRun) -> None:
        """Account for a change of the run's size."""
        owner, size = run.record.owner, run.spool_bytes
        self._bytes[owner] = self.spool_bytes(owner) + size - run.accounted_bytes
        run.accounted_bytes = size

    def remove(self, run: OpenRun) -> None:
        """Remove a run that was closed."""
        owner = run.record.owner
        self._bytes[owner] -= run.accounted_bytes
        self._runs[owner] -= 1
        if not self._runs[owner]:
            del self._runs[owner], self._bytes[owner]
