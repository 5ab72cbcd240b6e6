"""What is counted and said about who is turned away at the door."""

import logging

from protocol.clock import Clock
from uploader.counters import Counters

log = logging.getLogger(__name__)

_INTERVAL_S = 60.0


class DoorReport:
    """Counts everything, and says at most once a minute that there is no room. Called by the door's thread."""

    def __init__(self, counters: Counters, clock: Clock) -> None:
        self._counters = counters
        self._clock = clock
        self._said_at: float | None = None

    def turned_away(self, reason: str) -> None:
        """Count somebody who was refused or cut."""
        self._counters.rejected.add(1, reason)

    def is_full(self, connections: int, limit: int) -> None:
        """Say that there are as many connections as there may be, and what to do."""
        now = self._clock.monotonic()
        if self._said_at is not None and now - self._said_at < _INTERVAL_S:
            return
        self._said_at = now
        log.warning(
            "no room for more connections, collectors keep their samples and come back; raise --max-connections or the "
            "descriptor limit (ulimit -n) to take them all connections=%d limit=%d",
            connections,
            limit,
        )

    def failed(self, error: Exception) -> None:
        """Log a defect with its trace."""
        log.error("door failed unexpectedly", exc_info=error)
