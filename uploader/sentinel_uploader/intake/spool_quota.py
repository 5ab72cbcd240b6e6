"""Limits how much of the spool one client may use, so that others have room when it floods or cannot be delivered.

A client may hold at most `share / (1 - share)` times the free space. So one client uses at most `share` of the spool,
several use less each, and clients that hold little always find some space. This is the rule of switches whose ports
share one buffer (A. K. Choudhury, E. L. Hahne, "Dynamic queue length thresholds for shared-memory packet switches",
1998). A client that is alone may use all.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from sentinel_protocol.common.clock import Clock
from sentinel_uploader.spool.errors import SpoolError
from sentinel_uploader.spool.store import Spool
from sentinel_uploader.telemetry.counters import UNNAMED, Counters
from sentinel_uploader.util.log_throttle import LOG_INTERVAL_S, LogThrottle

log = logging.getLogger(__name__)

_MIN_GUARANTEED_BYTES = 64 << 10
"""A client that holds less is stopped by a full spool only: in a small spool, a share is less than one message."""


@dataclass(kw_only=True)
class SpoolQuota:
    """Reads the spool's free space once for each write batch; belongs to the intake's thread.

    `known_clients` returns the number of clients on the allow list. Clients with runs in the spool count too.
    """

    spool: Spool
    share: float
    known_clients: Callable[[], int]
    clock: Clock
    counters: Counters

    def __post_init__(self) -> None:
        self._throttle = LogThrottle(self.clock)
        self._free_bytes: float | None = None
        self._reserved: Counter[str] = Counter()
        self._throttled: dict[str, float] = {}
        """When each client was stopped last (monotonic seconds)."""

    def reset(self) -> None:
        """Drop the reservations: their rows are in the spool now, or will not be stored."""
        self._free_bytes = None
        self._reserved.clear()

    def try_reserve(self, owner: str, size: int) -> bool:
        """Reserve `size` bytes for a client; False, counted and logged, when its quota does not allow that."""
        if self._free_bytes is None:
            self._free_bytes = self._read_free_bytes()
        if self._free_bytes == math.inf and not self._throttled:
            return True
        held = self.spool.usage.spool_bytes(owner) + self._reserved[owner]
        free = self._free_bytes - self._reserved.total()
        over = (held + size) * (1.0 - self.share) > free * self.share or size > free
        if over and held + size > _MIN_GUARANTEED_BYTES:
            self._log_throttled(owner, held)
            return False
        self._reserved[owner] += size
        if self._throttled:
            self._log_released(owner)
        return True

    def _read_free_bytes(self) -> float:
        if self.share >= 1.0 or max(self.spool.usage.clients, self.known_clients()) <= 1:
            return float("inf")
        try:
            used, limit, _ = self.spool.size()
        except SpoolError:
            # The next write reports it.
            return float("inf")
        return max(0, limit - used)

    def _log_throttled(self, owner: str, held: int) -> None:
        self.counters.count_rejection(owner, "spool-share")
        self._throttled[owner] = self.clock.monotonic()
        if self._throttle.is_due(owner):
            log.warning(
                "client has reached its share of the spool, its samples are not acknowledged until some are delivered "
                "client=%s bytes=%d",
                owner or UNNAMED,
                held,
            )

    def _log_released(self, owner: str) -> None:
        throttled_at = self._throttled.get(owner)
        # Deliveries free space bit by bit: a client is stopped and released many times before it has room.
        if throttled_at is not None and self.clock.monotonic() - throttled_at >= LOG_INTERVAL_S:
            del self._throttled[owner]
            self._throttle.reset(owner)
            log.info("client is below its share of the spool again client=%s", owner or UNNAMED)
