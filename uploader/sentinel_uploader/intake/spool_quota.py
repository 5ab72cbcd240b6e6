"""Which client may still add to the spool: one that floods it, or whose rows nobody takes, leaves room for others.

A client may hold at most `share / (1 - share)` times what is free. So one client comes to `share` of the spool, several
to less each, and something is always left for those that hold little, however many the others are: the rule of switches
whose ports share one buffer (A. K. Choudhury, E. L. Hahne, "Dynamic queue length thresholds for shared-memory packet
switches", 1998). A client that is alone may use all.
"""

import logging
from collections import Counter
from collections.abc import Callable

from sentinel_protocol.common.clock import Clock
from sentinel_uploader.spool.errors import SpoolError
from sentinel_uploader.spool.store import Spool
from sentinel_uploader.telemetry.counters import UNNAMED, Counters

log = logging.getLogger(__name__)

_LITTLE_BYTES = 64 << 10
"""Whoever holds less is held back by a full spool alone: in a small one a share is less than a message."""
_LOG_INTERVAL_S = 60.0


class Shares:
    """Looks at the spool once for each group of messages; belongs to the intake's thread.

    `known_clients` is how many there may be beside those that have runs here.
    """

    def __init__(
        self, *, spool: Spool, share: float, known_clients: Callable[[], int], clock: Clock, counters: Counters
    ) -> None:
        self._spool = spool
        self._share = share
        self._known_clients = known_clients
        self._clock = clock
        self._counters = counters
        self._free_bytes: float | None = None
        self._added: Counter[str] = Counter()
        self._held_back: dict[str, tuple[float, float]] = {}
        """When each client was held back last, and when that was logged (monotonic seconds)."""

    def begin(self) -> None:
        """What was added is in the spool by now, or is not to come into it."""
        self._free_bytes = None
        self._added.clear()

    def admits(self, owner: str, size: int) -> bool:
        """Whether a client may add so many bytes; they are counted then, otherwise it is reported."""
        if self._free_bytes is None:
            self._free_bytes = self._look()
        held = self._spool.usage.spool_bytes(owner) + self._added[owner]
        free = self._free_bytes - self._added.total()
        over = (held + size) * (1.0 - self._share) > free * self._share or size > free
        if over and held + size > _LITTLE_BYTES:
            self._hold_back(owner, held)
            return False
        self._added[owner] += size
        if self._held_back:
            self._admitted(owner)
        return True

    def _look(self) -> float:
        if self._share >= 1.0 or max(self._spool.usage.clients, self._known_clients()) <= 1:
            return float("inf")
        try:
            with self._spool.lock:
                database = self._spool.database
                return max(0, database.rows_limit_bytes - database.used_bytes())
        except SpoolError:
            # Whoever writes to it next hears why.
            return float("inf")

    def _hold_back(self, owner: str, held: int) -> None:
        self._counters.turn_down(owner, "spool-share")
        now = self._clock.monotonic()
        _, logged_at = self._held_back.get(owner, (now, -_LOG_INTERVAL_S + now))
        if now - logged_at >= _LOG_INTERVAL_S:
            logged_at = now
            log.warning(
                "client has its share of the spool, not acknowledging its samples until some are delivered "
                "client=%s bytes=%d",
                owner or UNNAMED,
                held,
            )
        self._held_back[owner] = (now, logged_at)

    def _admitted(self, owner: str) -> None:
        held_back_at, _ = self._held_back.get(owner, (None, None))
        # Not at once: what is delivered makes room bit by bit.
        if held_back_at is not None and self._clock.monotonic() - held_back_at >= _LOG_INTERVAL_S:
            del self._held_back[owner]
            log.info("client has less than its share of the spool again client=%s", owner or UNNAMED)
