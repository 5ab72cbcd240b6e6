"""Whether the spool takes rows, as the intake has seen it: for the log and for health."""

import logging

from sentinel_protocol.common.clock import Clock
from sentinel_uploader.spool.errors import SpoolError, SpoolFullError
from sentinel_uploader.telemetry.counters import Counters
from sentinel_uploader.util.log_throttle import LogThrottle

log = logging.getLogger(__name__)


class SpoolAvailability:
    """Written by the intake's thread. Any thread may read `unavailable`."""

    def __init__(self, clock: Clock, counters: Counters) -> None:
        self._clock = clock
        self._counters = counters
        self._throttle = LogThrottle(clock)
        self.unavailable: tuple[float, str] | None = None
        """While the spool takes no rows: when it last refused some (monotonic seconds), and why."""

    def record_failure(self, error: SpoolError) -> None:
        """Count a write that failed, and log it at most once a minute."""
        is_full = isinstance(error, SpoolFullError)
        self._counters.spool_failures.add(1, "full" if is_full else "unusable")
        self.unavailable = (self._clock.monotonic(), str(error))
        if self._throttle.is_due():
            kind = "spool is full" if is_full else "spool cannot be written"
            log.error("%s, samples are not acknowledged until that changes error=%s", kind, error)

    def record_success(self) -> None:
        """Rows were stored."""
        if self.unavailable is not None:
            self.unavailable = None
            self._throttle.reset()
            log.info("spool has room again")
