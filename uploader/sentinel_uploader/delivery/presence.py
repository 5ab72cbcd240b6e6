"""The interface between delivery and the part that talks to collectors."""

from typing import Protocol

from sentinel_uploader.spool.open_run import OpenRun


class CollectorPresence(Protocol):
    """The side that talks to collectors. All members may be used from any thread and do not block."""

    @property
    def receiving_since(self) -> float:
        """Since when messages have been received without a pause (monotonic seconds); silence counts from here."""

    def is_stalled(self, now: float) -> bool:
        """Whether messages may lie unread: no run is closed as stale meanwhile."""

    def notify(self, run: OpenRun) -> None:
        """Notify the run's collector: the run has ended, or its delivery is blocked."""
