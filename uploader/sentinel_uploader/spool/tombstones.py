"""What is left of a run when all else of it is forgotten: enough to refuse its rows, or to say that they are there.

A collector that was killed, or cut off, before it heard of its run's end leaves a file with rows that are delivered. It
may be days until somebody sends that file again; a run that was unknown by then would begin anew, with the same rows.
"""

import hashlib
import sqlite3
from typing import NamedTuple

from sentinel_uploader.runs.lifecycle import RunState
from sentinel_uploader.spool.database import Database
from sentinel_uploader.spool.run_record import RunRecord

MIN_COUNT = 16_384
MAX_COUNT = 131_072
"""A start looks through the whole file: so many are 14 MiB, and take it about 50 ms."""
BYTES_PER_TOMBSTONE = 176
"""More than one takes, its place in the index included: some 110 bytes, 140 with a run id of the greatest length."""
_SHARE = 16
"""Above the least, at most this fraction of the spool's limit."""
_MAX_RUN_ID_CHARS = 64
_EVICT_LIMIT = 64
"""A time: the limit may have been lowered by a lot."""
_EMPTY_PAGES = 2
"""Of the table and its index."""


class Tombstone(NamedTuple):
    """A run that has ended; nothing about it will ever change."""

    batched_seq: int
    """Its last row."""
    rows: int
    """Rows delivered."""
    ended_by: bytes | None
    """Digest of the collector whose `Finish` was accepted; `None` for a run that was closed or given up."""
    run_id: str

    @classmethod
    def of(cls, record: RunRecord) -> "Tombstone":
        """Make that of a run that is over."""
        ended_by = _digest(record.epoch, 8) if record.state is RunState.FINISHED else None
        run_id = record.run_id if len(record.run_id) <= _MAX_RUN_ID_CHARS else ""
        return cls(record.batched_seq, record.delivered_rows, ended_by, run_id)

    def was_ended_by(self, epoch: str) -> bool:
        """Whether it was this collector's `Finish` that has ended the run."""
        return self.ended_by == _digest(epoch, 8)


class Tombstones:
    """The newest of them, found by the run's name; guarded by the spool's lock.

    They lie beside the spool's limit: a spool that is small, or full, protects its rows as well as any other. What they
    take is counted in pages as they come and go, and kept with the newest.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.capacity = max(MIN_COUNT, min(MAX_COUNT, database.max_bytes // _SHARE // BYTES_PER_TOMBSTONE))
        newest = database.query("SELECT pages FROM tombstones ORDER BY id DESC LIMIT 1")
        self.pages: int = newest[0][0] if newest else _EMPTY_PAGES
        """In use when it was opened."""
        database.reserve_extra_bytes(self.capacity * BYTES_PER_TOMBSTONE)

    def find(self, name: str) -> Tombstone | None:
        """Return what is left of a run; raises `SpoolError`."""
        found = self._database.query(
            "SELECT settled_seq, rows, ended_by, run_id FROM tombstones WHERE name = ?", (_digest(name, 16),)
        )
        return Tombstone(*found[0]) if found else None

    def put(self, connection: sqlite3.Connection, name: str, tombstone: Tombstone, *, pages: int) -> int:
        """Add one within the transaction and forget the oldest that are too many.

        Returns how many pages are in use then, where they were `pages`. Costs the same however many there are.
        """
        before = self._database.pages_in_use()
        newest = connection.execute(
            "INSERT OR REPLACE INTO tombstones (name, settled_seq, rows, ended_by, run_id, pages) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (_digest(name, 16), *tombstone, pages),
        ).lastrowid
        assert newest is not None
        connection.execute(
            "DELETE FROM tombstones WHERE id IN (SELECT id FROM tombstones WHERE id <= ? ORDER BY id LIMIT ?)",
            (newest - self.capacity, _EVICT_LIMIT),
        )
        grown = self._database.pages_in_use() - before
        if grown:
            connection.execute("UPDATE tombstones SET pages = ? WHERE id = ?", (pages + grown, newest))
        return pages + grown


def _digest(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest()
