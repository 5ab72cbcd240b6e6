"""Connections of collectors that have said `Hello`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sentinel_uploader.spool.open_run import OpenRun

if TYPE_CHECKING:
    from sentinel_protocol.wire.messages import Finish


class CollectorSession:
    """One connection that has said `Hello`: its run, and what the current write batch adds to the run."""

    __slots__ = ("epoch", "finish", "identity", "next_seq", "run")

    def __init__(self, identity: bytes, run: OpenRun) -> None:
        self.identity = identity
        self.epoch = run.record.epoch
        self.run = run
        self.next_seq = run.durable_seq + 1
        """Of the next row, when all rows in the write batch become durable."""
        self.finish: Finish | None = None

    def reset_pending(self) -> None:
        """Start again from what is durable."""
        self.finish = None
        self.next_seq = self.run.durable_seq + 1


class Sessions:
    """All sessions: at most one for each connection, and one for each run."""

    def __init__(self) -> None:
        self._by_identity: dict[bytes, CollectorSession] = {}
        self._by_run: dict[int, CollectorSession] = {}

    def __len__(self) -> int:
        return len(self._by_run)

    def __iter__(self) -> Iterator[CollectorSession]:
        return iter(self._by_identity.values())

    def by_connection(self, identity: bytes) -> CollectorSession | None:
        """Return the session of a connection."""
        return self._by_identity.get(identity)

    def by_run(self, run_id: int) -> CollectorSession | None:
        """Return the session of a run, by the run's number in the spool."""
        return self._by_run.get(run_id)

    def add(self, session: CollectorSession) -> None:
        """Add a session; its connection and its run must have no other."""
        self._by_identity[session.identity] = self._by_run[session.run.id] = session

    def remove(self, session: CollectorSession | None) -> None:
        """Remove a session; `None` and a removed one are ignored."""
        if session is not None and self._by_identity.get(session.identity) is session:
            del self._by_identity[session.identity]
            del self._by_run[session.run.id]
