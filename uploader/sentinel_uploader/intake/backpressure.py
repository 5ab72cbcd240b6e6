"""Whether the spool takes rows, as far as the intake has seen: for the log and for health."""

import logging
from typing import NamedTuple

from sentinel_protocol.common.clock import Clock
from sentinel_uploader.spool.errors import SpoolError, SpoolFullError
from sentinel_uploader.telemetry.counters import Counters

log = logging.getLogger(__name__)

_LOG_INTERVAL_S = 60.0


class Refusal(NamedTuple):
    """Rows were not taken because of the spool: when last (monotonic seconds), and why."""

    at: float
    text: str


class Fullness:
    """Written by the intake's thread; `refusal` may be read by any."""

    def __init__(self, clock: Clock, counters: Counters) -> None:
        self._clock = clock
        self._counters = counters
        self._logged_at: float | None = None
        self.refusal: Refusal | None = None
        """Set while the spool takes no rows."""

    def note(self, error: SpoolError) -> None:
        """Count that the spool did not take something, and say so at most once a minute."""
        is_full = isinstance(error, SpoolFullError)
        self._counters.spool_failures.add(1, "full" if is_full else "unusable")
        now = self._clock.monotonic()
        self.refusal = Refusal(now, str(error))
        if self._logged_at is None or now - self._logged_at >= _LOG_INTERVAL_S:
            self._logged_at = now
            kind = "spool is full" if is_full else "spool cannot be written"
            log.error("%s, not acknowledging samples until that changes error=%s", kind, error)

    def is_over(self) -> None:
        """Rows were taken."""
        if self.refusal is not None:
            self._logged_at = self.refusal = None
            log.info("spool has room again")
