"""Counts rejected connections and logs those that an operator can do something about."""

import logging

from sentinel_protocol.common.clock import Clock
from sentinel_uploader.telemetry.counters import Counters
from sentinel_uploader.util.log_throttle import LogThrottle

log = logging.getLogger(__name__)


class RejectionLog:
    """Called by the connection guard's thread, and by the intake's when it registers or disconnects a connection."""

    def __init__(self, counters: Counters, clock: Clock) -> None:
        self._counters = counters
        self._throttle = LogThrottle(clock)

    def on_rejected(self, reason: str) -> None:
        """Count a connection that was refused or closed."""
        self._counters.rejected.add(1, reason)
        if reason == "connections-of-client" and self._throttle.is_due(reason):
            log.warning("a client has reached --max-client-connections; its other collectors wait")

    def on_limit_reached(self, connections: int, limit: int) -> None:
        """Log that `limit` or the descriptor limit is reached."""
        if not self._throttle.is_due("connections"):
            return
        log.warning(
            "connection limit reached, refused collectors keep their samples and try again; raise --max-connections or "
            "the descriptor limit (ulimit -n) to accept all connections=%d limit=%d",
            connections,
            limit,
        )

    def on_error(self, error: Exception) -> None:
        """Log a defect of the connection guard with its trace."""
        log.error("connection guard failed unexpectedly", exc_info=error)
