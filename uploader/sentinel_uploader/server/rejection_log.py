"""What is counted and said about who is turned away at the door."""

import logging

from sentinel_protocol.common.clock import Clock
from sentinel_uploader.telemetry.counters import Counters

log = logging.getLogger(__name__)

_INTERVAL_S = 60.0


class RejectionLog:
    """Counts everything, and says at most once a minute what there is no room for. Called by the door's thread."""

    def __init__(self, counters: Counters, clock: Clock) -> None:
        self._counters = counters
        self._clock = clock
        self._logged_at: dict[str, float] = {}

    def on_rejected(self, reason: str) -> None:
        """Count somebody who was refused or cut."""
        self._counters.rejected.add(1, reason)
        if reason == "connections-of-client" and self._is_due(reason):
            log.warning("a client has as many connections as it may, see --max-client-connections; the others wait")

    def on_limit_reached(self, connections: int, limit: int) -> None:
        """Say that there are as many connections as there may be, and what to do."""
        if not self._is_due("connections"):
            return
        log.warning(
            "no room for more connections, collectors keep their samples and come back; raise --max-connections or the "
            "descriptor limit (ulimit -n) to take them all connections=%d limit=%d",
            connections,
            limit,
        )

    def _is_due(self, topic: str) -> bool:
        now = self._clock.monotonic()
        said_at = self._logged_at.get(topic)
        if said_at is not None and now - said_at < _INTERVAL_S:
            return False
        self._logged_at[topic] = now
        return True

    def on_error(self, error: Exception) -> None:
        """Log a defect with its trace."""
        log.error("connection guard failed unexpectedly", exc_info=error)
