"""Runs in a final state, kept for `status` and for collectors that missed their run's end, in a bounded space.

The newest runs keep their record. Many more keep a tombstone (`tombstones.py`).
"""

import logging
import sqlite3
from typing import NamedTuple

import msgspec

from sentinel_uploader.spool.database import Database
from sentinel_uploader.spool.run_record import RunRecord, decode_record
from sentinel_uploader.spool.tombstones import Tombstone, Tombstones

log = logging.getLogger(__name__)

MAX_ENDED_RUNS = 10_000
_SHARE = 16
"""Their records take at most this fraction of the spool."""


class RetentionState(NamedTuple):
    """The number of records, their bytes, and the pages of the tombstones."""

    runs: int
    total_bytes: int
    tombstone_pages: int


class EndedRuns:
    """Guarded by the spool's lock."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._max_bytes = database.max_bytes // _SHARE
        self._tombstones = Tombstones(database)
        ((count, total),) = database.query(
            "SELECT count(*), coalesce(sum(length(record)), 0) FROM runs "
            "WHERE state IN ('finished', 'failed', 'discarded')"
        )
        self.apply(RetentionState(count, total, self._tombstones.pages))

    def apply(self, now: RetentionState) -> None:
        """Adopt what `evict_oldest` returned, once it is committed."""
        self._now = now
        self._database.uncounted_pages = now.tombstone_pages

    def find(self, name: str) -> RunRecord | Tombstone | None:
        """Return the record of a run that has ended, else its tombstone, else `None`; raises `SpoolError`."""
        found = self._database.query(
            "SELECT record FROM runs WHERE key = ? AND state IN ('finished', 'failed', 'discarded')", (name,)
        )
        return _read(name, found[0][0]) if found else self._tombstones.find(name)

    def evict_oldest(self, connection: sqlite3.Connection, record_bytes: int) -> RetentionState:
        """Replace the oldest records by tombstones, so that one more fits. Call `apply` after the commit."""
        count, total = self._now.runs + 1, self._now.total_bytes + record_bytes
        pages = self._now.tombstone_pages
        while count > 1 and (count > MAX_ENDED_RUNS or total > self._max_bytes):
            oldest = connection.execute(
                "SELECT id, key, record FROM runs WHERE state IN ('finished', 'failed', 'discarded') "
                "ORDER BY ended_at LIMIT 1"
            ).fetchone()
            if oldest is None:
                break
            number, name, blob = oldest
            connection.execute("DELETE FROM runs WHERE id = ?", (number,))
            ended = _read(name, blob)
            tombstone = ended if isinstance(ended, Tombstone) else Tombstone.of(ended)
            pages = self._tombstones.put(connection, name, tombstone, pages=pages)
            count, total = count - 1, total - len(blob)
        return RetentionState(count, total, pages)


def _read(name: str, blob: bytes) -> RunRecord | Tombstone:
    try:
        return decode_record(blob)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # Rows that are sent for it are rejected as those of a closed run: neither lost nor delivered twice.
        log.error("record of an ended run cannot be read key=%s error=%s", name, error)  # noqa: TRY400 -- no defect
        return Tombstone(0, 0, None, "")
