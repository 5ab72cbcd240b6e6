"""Connections of collectors that have said `Hello`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sentinel_uploader.spool.open_run import OpenRun

if TYPE_CHECKING:
    from sentinel_protocol.wire.messages import Finish


class Session:
    """One connection that has said `Hello`: its run, and what the group that is being gathered adds to it."""

    __slots__ = ("finish", "identity", "incarnation", "next_seq", "run")

    def __init__(self, identity: bytes, run: OpenRun) -> None:
        self.identity = identity
        self.incarnation = run.record.incarnation
        self.run = run
        self.next_seq = run.durable_seq + 1
        self.finish: Finish | None = None

    def forget_group(self) -> None:
        """Count on nothing that is not durable."""
        self.finish = None
        self.next_seq = self.run.durable_seq + 1


class Sessions:
    """All of them: at most one for each connection, and one for each run."""

    def __init__(self) -> None:
        self._by_identity: dict[bytes, Session] = {}
        self._by_run: dict[int, Session] = {}

    def __len__(self) -> int:
        return len(self._by_run)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._by_identity.values())

    def of(self, identity: bytes) -> Session | None:
        """Return the session of a connection."""
        return self._by_identity.get(identity)

    def of_run(self, run_id: int) -> Session | None:
        """Return the session of a run, by the run's number in the spool."""
        return self._by_run.get(run_id)

    def add(self, session: Session) -> None:
        """Begin one, where neither its connection nor its run has another."""
        self._by_identity[session.identity] = self._by_run[session.run.id] = session

    def forget(self, session: Session | None) -> None:
        """End one; nothing happens to one that has ended, or to none."""
        if session is not None and self._by_identity.get(session.identity) is session:
            del self._by_identity[session.identity]
            del self._by_run[session.run.id]
