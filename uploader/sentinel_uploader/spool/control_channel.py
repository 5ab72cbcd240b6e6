"""Rows of the spool through which the uploader and other commands talk to each other."""

import threading
from typing import NamedTuple

from sentinel_uploader.spool.database import Database

DISCARD = "discard"
RETRY = "retry"
DRAIN = "drain"
DONE = "done"
"""The kinds of requests, and the answer to one that was carried out."""


class ControlRequest(NamedTuple):
    """A person's request through another process."""

    id: int
    kind: str
    run: int | None
    timeout_s: float | None
    """Of a drain, seconds."""


class ControlChannel:
    """Each change is one transaction, under the spool's lock."""

    def __init__(self, database: Database, lock: threading.RLock) -> None:
        self._database = database
        self._lock = lock

    def requests(self) -> list[ControlRequest]:
        """Return the pending requests."""
        with self._lock:
            found = self._database.query("SELECT id, kind, run, timeout_s FROM requests WHERE answer IS NULL")
        return [ControlRequest(*row) for row in found]

    def answer(self, request: ControlRequest, text: str) -> None:
        """Store the answer to a request. The requesting process deletes both."""
        with self._lock, self._database.transaction() as connection:
            connection.execute("UPDATE requests SET answer = ? WHERE id = ?", (text, request.id))

    def publish_backoff(self, name: str, *, attempts: int, next_try_at: float, error: str, since: float) -> None:
        """Show a failing destination to other processes (`attempts` 0: it works again). Times are UNIX seconds."""
        with self._lock, self._database.transaction() as connection:
            if not attempts:
                connection.execute("DELETE FROM destinations WHERE name = ?", (name,))
            else:
                connection.execute(
                    "INSERT OR REPLACE INTO destinations (name, attempts, next_try_at, error, since) "
                    "VALUES (?, ?, ?, ?, ?)",
                    (name, attempts, next_try_at, error, since),
                )
