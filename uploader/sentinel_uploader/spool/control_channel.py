"""What an uploader and the other commands tell each other through the spool."""

import threading
from typing import NamedTuple

from sentinel_uploader.spool.database import Database

DISCARD = "discard"

RETRY = "retry"

DRAIN = "drain"

DONE = "done"


class ControlRequest(NamedTuple):
    """What a person asked for through another process."""

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
        """Return what other processes ask for and nobody has answered."""
        with self._lock:
            found = self._database.query("SELECT id, kind, run, timeout_s FROM requests WHERE answer IS NULL")
        return [ControlRequest(*row) for row in found]

    def answer(self, request: ControlRequest, text: str) -> None:
        """Answer a request; whoever asked removes it."""
        with self._lock, self._database.transaction() as connection:
            connection.execute("UPDATE requests SET answer = ? WHERE id = ?", (text, request.id))

    def publish_backoff(self, name: str, *, attempts: int, next_try_at: float, error: str, since: float) -> None:
        """Show to other processes that a destination is being waited for (`attempts` 0: not any more)."""
        with self._lock, self._database.transaction() as connection:
            if not attempts:
                connection.execute("DELETE FROM destinations WHERE name = ?", (name,))
            else:
                connection.execute(
                    "INSERT OR REPLACE INTO destinations (name, attempts, next_try_at, error, since) "
                    "VALUES (?, ?, ?, ?, ?)",
                    (name, attempts, next_try_at, error, since),
                )
