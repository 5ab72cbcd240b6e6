"""One transaction for the changes of several threads.

A commit waits for the disk. Changes that are asked for meanwhile wait for the lock. The first thread that gets the lock
commits all of them.
"""

import sqlite3
import threading
from collections.abc import Callable, Set
from typing import TypeAlias

from sentinel_uploader.spool.database import Database

Apply: TypeAlias = Callable[[], None]
Write: TypeAlias = Callable[[sqlite3.Connection], Apply]
"""Writes a change to the database and returns what changes memory after the commit. May be called twice."""
_MAX_GROUP = 32


class _Ticket:
    """A change that waits for its commit."""

    __slots__ = ("error", "is_done", "keys", "write")

    def __init__(self, keys: Set[object], write: Write) -> None:
        self.keys = keys
        self.write = write
        self.is_done = False
        self.error: BaseException | None = None


class GroupCommit:
    """Commits changes to the database that `lock`, an RLock, guards."""

    def __init__(self, database: Database, lock: threading.RLock) -> None:
        self._database = database
        self._lock = lock
        self._queue_lock = threading.Lock()
        self._waiting: list[_Ticket] = []

    def commit(self, keys: Set[object], write: Write) -> None:
        """Make a change durable, together with others that share none of its `keys`; raises what `write` raises.

        `write` is called by any thread, with the lock. Nothing of the change has happened when it is not committed.
        A thread that holds the lock already has it committed at once.
        """
        ticket = _Ticket(keys, write)
        with self._queue_lock:
            self._waiting.append(ticket)
        with self._lock:
            if not ticket.is_done:
                self._commit_group(self._take_group(ticket))
        if ticket.error is not None:
            raise ticket.error

    def _take_group(self, first: _Ticket) -> list[_Ticket]:
        """Take a change out of the queue, and those that can be committed with it."""
        group, left = [first], []
        keys = set(first.keys)
        with self._queue_lock:
            for ticket in self._waiting:
                if ticket is first:
                    continue
                if len(group) < _MAX_GROUP and keys.isdisjoint(ticket.keys):
                    group.append(ticket)
                    keys |= ticket.keys
                else:
                    left.append(ticket)
            self._waiting = left
        return group

    def _commit_group(self, group: list[_Ticket]) -> None:
        try:
            with self._database.transaction() as connection:
                applied = [ticket.write(connection) for ticket in group]
        except BaseException as error:  # noqa: BLE001 -- raised again by whoever asked for the change
            if len(group) > 1 and isinstance(error, Exception):
                # Only one of them may be at fault.
                for ticket in group:
                    self._commit_group([ticket])
                return
            for ticket in group:
                ticket.error = error
                ticket.is_done = True
            return
        for ticket, apply in zip(group, applied, strict=True):
            try:
                apply()
            finally:
                ticket.is_done = True
