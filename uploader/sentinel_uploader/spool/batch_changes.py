"""What sealing and confirming a batch changes, on disk and then in memory."""

import sqlite3
from collections.abc import Mapping
from typing import Any

import msgspec

from sentinel_protocol.common.clock import Clock
from sentinel_uploader.spool import tables
from sentinel_uploader.spool.group_commit import Apply, Write
from sentinel_uploader.spool.open_run import ClientUsage, OpenRun
from sentinel_uploader.spool.run_record import RunRecord
from sentinel_uploader.spool.types import Batch, UnbatchedFrames


def seal(
    run: OpenRun, frames: UnbatchedFrames, batch: Batch, changes: Mapping[str, Any], *, usage: ClientUsage, clock: Clock
) -> Write:
    """Turn the run's oldest frames into a batch; `changes` are those of its record."""
    count = len(frames.payloads)

    def write(connection: sqlite3.Connection) -> Apply:
        # Missing rows may have been skipped beyond these while they were encoded.
        batched_seq = max(run.record.batched_seq, frames.last_seq)
        record = msgspec.structs.replace(
            run.record, batched_seq=batched_seq, waiting_since=run.waiting_since or 0.0, **changes
        )
        tables.delete_frames(connection, run.frame_ids[:count])
        tables.insert_batch(connection, run.id, batch)
        tables.update_run(connection, run.id, record)
        return lambda: apply(record)

    def apply(record: RunRecord) -> None:
        run.record = record
        run.move_to_batch(
            count,
            rows=batch.rows,
            payload_bytes=sum(map(len, frames.payloads)),
            body_bytes=len(batch.body),
            now=clock.monotonic(),
        )
        usage.recompute(run)

    return write


def confirm(run: OpenRun, batch: Batch, *, usage: ClientUsage) -> Write:
    """Remove a batch whose upload is confirmed."""

    def write(connection: sqlite3.Connection) -> Apply:
        record = msgspec.structs.replace(
            run.record,
            delivered_batches=run.record.delivered_batches + 1,
            delivered_rows=run.record.delivered_rows + batch.rows,
            object_bytes=run.record.object_bytes + len(batch.body),
            waiting_since=run.batch_received_at[1] if len(run.batch_received_at) > 1 else 0.0,
            last_error="",
            next_try_at=0.0,
        )
        tables.delete_batch(connection, run.id, batch.number)
        tables.update_run(connection, run.id, record)
        return lambda: apply(record)

    def apply(record: RunRecord) -> None:
        run.record = record
        run.drop_batch(len(batch.body))
        usage.recompute(run)

    return write
