"""One connection of a collector that has said `Hello`."""

from typing import TYPE_CHECKING

from uploader.records import Run

if TYPE_CHECKING:
    from protocol.messages import Finish


class Session:
    """One connection that has said `Hello`: its run, and what the group that is being gathered adds to it."""

    __slots__ = ("finish", "identity", "incarnation", "next_seq", "run")

    def __init__(self, identity: bytes, run: Run) -> None:
        self.identity = identity
        self.incarnation = run.record.incarnation
        self.run = run
        self.next_seq = run.acked_seq + 1
        self.finish: Finish | None = None

    def forget_group(self) -> None:
        """Count on nothing that is not durable."""
        self.finish = None
        self.next_seq = self.run.acked_seq + 1
