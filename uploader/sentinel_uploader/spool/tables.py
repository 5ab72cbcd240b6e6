"""The statements that change and read runs, frames and batches."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from sentinel_uploader.runs.lifecycle import RunState
from sentinel_uploader.spool.database import Database
from sentinel_uploader.spool.run_record import RunRecord, decode_record
from sentinel_uploader.spool.types import Batch, PendingFrame


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


def read_open_runs(database: Database) -> Iterator[tuple[int, RunRecord, int]]:
    """Yield the id, the record and the record's size of every open run."""
    for run_id, blob in database.query(
        "SELECT id, record FROM runs WHERE state NOT IN ('finished', 'failed', 'discarded')"
    ):
        yield run_id, decode_record(blob), len(blob)


def next_run_id(database: Database) -> int:
    """Return an id above all that are in use."""
    ((number,),) = database.query("SELECT coalesce(max(id), 0) + 1 FROM runs")
    return int(number)
