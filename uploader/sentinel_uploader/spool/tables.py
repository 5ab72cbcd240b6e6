"""The statements that change and read runs, frames and batches, and the loading of open runs."""

import contextlib
import logging
import sqlite3
from collections.abc import Iterable, Sequence

import msgspec

from sentinel_protocol.common.clock import Clock
from sentinel_protocol.common.errors import InvalidMessageError
from sentinel_uploader.runs.lifecycle import RunState
from sentinel_uploader.spool.database import Database
from sentinel_uploader.spool.open_run import OpenRun
from sentinel_uploader.spool.run_record import RunRecord, decode_record
from sentinel_uploader.spool.types import Batch, PendingFrame, decode_frames

log = logging.getLogger(__name__)


def insert_run(connection: sqlite3.Connection, run_id: int, name: str, state: RunState, record: bytes) -> None:
    """Add a run; `record` is encoded."""
    sql = "INSERT INTO runs (id, key, state, record) VALUES (?, ?, ?, ?)"
    connection.execute(sql, (run_id, name, state, record))


def update_run(connection: sqlite3.Connection, run_id: int, record: RunRecord) -> None:
    """Replace a run's record."""
    connection.execute(
        "UPDATE runs SET state = ?, ended_at = ?, record = ? WHERE id = ?",
        (record.state, record.ended_at, msgspec.msgpack.encode(record), run_id),
    )


def insert_frames(connection: sqlite3.Connection, first_id: int, frames: Sequence[PendingFrame]) -> None:
    """Add frames under consecutive ids."""
    connection.executemany(
        "INSERT INTO frames (id, run, first_seq, rows, payload) VALUES (?, ?, ?, ?, ?)",
        [(first_id + n, frame.run.id, frame.first_seq, frame.rows, frame.payload) for n, frame in enumerate(frames)],
    )


def delete_frames(connection: sqlite3.Connection, ids: Iterable[int]) -> None:
    """Remove frames by their ids."""
    connection.executemany("DELETE FROM frames WHERE id = ?", [(frame_id,) for frame_id in ids])


def insert_batch(connection: sqlite3.Connection, run_id: int, batch: Batch) -> None:
    """Add a sealed batch."""
    connection.execute(
        "INSERT INTO batches (run, number, first_seq, last_seq, rows, bytes, sha256, body) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (run_id, *batch[:4], len(batch.body), batch.sha256, batch.body),
    )


def delete_batch(connection: sqlite3.Connection, run_id: int, number: int) -> None:
    """Remove a batch that is delivered."""
    connection.execute("DELETE FROM batches WHERE run = ? AND number = ?", (run_id, number))


def delete_batches(connection: sqlite3.Connection, run_id: int) -> None:
    """Remove all batches of a run."""
    connection.execute("DELETE FROM batches WHERE run = ?", (run_id,))


def read_batches(database: Database, run_id: int, *, limit: int) -> list[Batch]:
    """Return a run's oldest batches; -1: all."""
    rows = database.query(
        "SELECT number, first_seq, last_seq, rows, body, sha256 FROM batches WHERE run = ? ORDER BY number LIMIT ?",
        (run_id, limit),
    )
    return [Batch(*row) for row in rows]


def mirror_of(run_id: int, record: RunRecord, record_bytes: int, clock: Clock) -> OpenRun:
    """Return the mirror of a run without its frames."""
    run = OpenRun(run_id, record, now=clock.monotonic(), record_bytes=record_bytes)
    # The upload interval continues across a restart, whatever the clock did meanwhile.
    run.sealed_at -= max(0.0, clock.now() - record.sealed_at)
    return run


def load_runs(database: Database, clock: Clock) -> tuple[list[OpenRun], int, int]:
    """Return the open runs, the next run's id and the next frame's.

    Raises `msgspec.DecodeError` for a record that cannot be read.
    """
    runs = {
        run_id: mirror_of(run_id, decode_record(blob), len(blob), clock)
        for run_id, blob in database.query(
            "SELECT id, record FROM runs WHERE state NOT IN ('finished', 'failed', 'discarded')"
        )
    }
    next_frame_id = 1
    orphans = 0
    for frame_id, run_id, first_seq, rows, size in database.iterate(
        "SELECT id, run, first_seq, rows, length(payload) FROM frames ORDER BY id"
    ):
        next_frame_id = frame_id + 1
        run = runs.get(run_id)
        if run is None:
            orphans += 1
        else:
            # The time is not stored for every frame: none is older than the last batch.
            run.add_frame(frame_id, first_seq, rows, size, received_at=run.record.sealed_at)
    for run_id, size in database.iterate("SELECT run, sum(bytes) FROM batches GROUP BY run"):
        if run_id in runs:
            runs[run_id].batch_bytes = size
    for run in runs.values():
        if run.frame_ids:
            with contextlib.suppress(InvalidMessageError):
                run.last_timestamp = _timestamp_of(database, run.frame_ids[-1])
    if orphans:
        log.error("spool holds messages of runs that it does not know, they stay there messages=%d", orphans)
    ((next_run_id,),) = database.query("SELECT coalesce(max(id), 0) + 1 FROM runs")
    return list(runs.values()), next_run_id, next_frame_id


def _timestamp_of(database: Database, frame_id: int) -> float:
    ((payload,),) = database.query("SELECT payload FROM frames WHERE id = ?", (frame_id,))
    return decode_frames([payload])[-1].timestamp
