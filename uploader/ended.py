"""The runs that are over: remembered for `status` and for collectors that have not heard, in a bounded space."""

import sqlite3
from typing import NamedTuple

from uploader.database import Database

MAX_ENDED_RUNS = 10_000
_SHARE = 16
"""They take at most this fraction of the spool."""


class Remembered(NamedTuple):
    """How many runs, and the bytes of their records."""

    runs: int
    total_bytes: int


class EndedRuns:
    """Keeps count of them; guarded by the spool's lock."""

    def __init__(self, database: Database) -> None:
        self._most_bytes = database.max_bytes // _SHARE
        ((count, total),) = database.query(
            "SELECT count(*), coalesce(sum(length(record)), 0) FROM runs "
            "WHERE state IN ('finished', 'failed', 'discarded')"
        )
        self.now = Remembered(count, total)

    def room_for(self, connection: sqlite3.Connection, record_bytes: int) -> Remembered:
        """Forget the oldest, within the transaction, so that one more fits; return what `now` is to be after it."""
        count, total = self.now.runs + 1, self.now.total_bytes + record_bytes
        while count > 1 and (count > MAX_ENDED_RUNS or total > self._most_bytes):
            oldest = connection.execute(
                "SELECT id, length(record) FROM runs WHERE state IN ('finished', 'failed', 'discarded') "
                "ORDER BY ended_at LIMIT 1"
            ).fetchone()
            if oldest is None:
                break
            connection.execute("DELETE FROM runs WHERE id = ?", (oldest[0],))
            count, total = count - 1, total - oldest[1]
        return Remembered(count, total)
