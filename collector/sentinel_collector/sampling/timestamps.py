"""Time stamps of a run's rows: the wall clock in milliseconds, strictly increasing even when the clock is set."""

_STEP_S = 0.05
"""A wall clock that falls behind the monotonic one by more was set back; less comes from reading the two in turn."""


class MonotonicTimestamps:
    """Rows' times. They follow a clock that is set forward, and wait for one that is set back.

    While the wall clock is behind, they go on by monotonic time, so that intervals stay true.
    """

    def __init__(self, *, wall: float, monotonic: float) -> None:
        self._offset = wall - monotonic
        self._last_ms = round(wall * 1000)

    def next(self, *, wall: float, monotonic: float) -> float:
        """Return the time stamp of a row that was read at these times: UNIX seconds in whole milliseconds."""
        offset = wall - monotonic
        if offset > self._offset - _STEP_S:
            self._offset = offset
        self._last_ms = max(round((self._offset + monotonic) * 1000), self._last_ms + 1)
        return self._last_ms / 1000

    def advance_past(self, timestamp: float, *, monotonic: float) -> None:
        """Let the next time stamps come after `timestamp` (UNIX seconds)."""
        self._offset = max(self._offset, timestamp - monotonic)
        self._last_ms = max(self._last_ms, round(timestamp * 1000))
