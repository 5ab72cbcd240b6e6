"""At most one log line a minute about a thing that may happen thousands of times."""

from collections.abc import Hashable

from sentinel_protocol.common.clock import Clock

LOG_INTERVAL_S = 60.0


class LogThrottle:
    """Tells which lines to log. The topics must be few: each is remembered. Not thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._next_at: dict[Hashable, float] = {}

    def is_due(self, topic: Hashable = "") -> bool:
        """Whether to log a line about this topic now; if so, the next one is due `LOG_INTERVAL_S` later."""
        now = self._clock.monotonic()
        if now < self._next_at.get(topic, now):
            return False
        self._next_at[topic] = now + LOG_INTERVAL_S
        return True

    def reset(self, topic: Hashable = "") -> None:
        """Make a line about this topic due at once."""
        self._next_at.pop(topic, None)
