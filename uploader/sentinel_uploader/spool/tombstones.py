"""Tombstones keep enough of an ended run to reject its rows, or to confirm their delivery.

A collector that was killed before it received its run's end leaves a file with rows that are delivered already. The
file may be sent days later. Without a tombstone, a new run with the same rows would begin.
"""

import hashlib
import sqlite3
from typing import NamedTuple

from sentinel_uploader.runs.lifecycle import RunState
from sentinel_uploader.spool.database import Database
from sentinel_uploader.spool.run_record import RunRecord

MIN_COUNT = 16_384
MAX_COUNT = 131_072
"""A start checks the whole file: these are 14 MiB, which takes about 50 ms."""
BYTES_PER_TOMBSTONE = 176
"""An upper estimate with the index entry: about 110 bytes, 140 with the longest run id."""
_SHARE = 16
"""Above `MIN_COUNT`, at most this fraction of the spool's limit."""
_MAX_RUN_ID_CHARS = 64
_EVICT_LIMIT = 64
"""In one transaction: the limit may have been lowered by a lot."""
_EMPTY_PAGES = 2
"""Pages of the empty table and its index."""


class Tombstone(NamedTuple):
    """The part of an ended run that is kept."""

    batched_seq: int
    """Its last row."""
    rows: int
    """Rows delivered."""
    ended_by: bytes | None
    """Hash of the epoch whose `Finish` was accepted; `None` for a run that was closed as stale or discarded."""
    run_id: str

    @classmethod
    def of(cls, record: RunRecord) -> "Tombstone":
        """Return the tombstone of a run in a final state."""
        ended_by = _digest(record.epoch, 8) if record.state is RunState.FINISHED else None
        run_id = record.run_id if len(record.run_id) <= _MAX_RUN_ID_CHARS else ""
        return cls(record.batched_seq, record.delivered_rows, ended_by, run_id)

    def was_ended_by(self, epoch: str) -> bool:
        """Whether the `Finish` of this collector ended the run."""
        return self.ended_by == _digest(epoch, 8)


class Tombstones:
    """The newest tombstones, by the run's name. Guarded by the spool's lock.

    They do not count against `--spool-max`: a small or full spool protects its rows as well as any other. Their pages
    are counted as they come and go; the count is stored with the newest one.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.capacity = max(MIN_COUNT, min(MAX_COUNT, database.max_bytes // _SHARE // BYTES_PER_TOMBSTONE))
        newest = database.query("SELECT pages FROM tombstones ORDER BY id DESC LIMIT 1")
        self.pages: int = newest[0][0] if newest else _EMPTY_PAGES
        """Pages in use when the spool was opened."""
        database.reserve_extra_bytes(self.capacity * BYTES_PER_TOMBSTONE)

    def find(self, name: str) -> Tombstone | None:
        """Return the tombstone of a run; raises `SpoolError`."""
        found = self._database.query(
            "SELECT settled_seq, rows, ended_by, run_id FROM tombstones WHERE name = ?", (_digest(name, 16),)
        )
        return Tombstone(*found[0]) if found else None

    def put(self, connection: sqlite3.Connection, name: str, tombstone: Tombstone, *, pages: int) -> int:
        """Add a tombstone within the transaction, and delete the oldest above the capacity.

        Returns the pages in use afterwards, given `pages` before. The cost does not depend on their number.
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
