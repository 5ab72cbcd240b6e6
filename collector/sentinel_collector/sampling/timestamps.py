"""Time stamps of a run's rows: wall clock to the millisecond, strictly increasing whatever the clock does."""

_STEP_S = 0.05
"""Falling behind the monotonic clock by more was a setting back; less comes of reading the two in turn."""


class MonotonicTimestamps:
    """Rows' times. A clock that is set forward is followed; one that is set back is waited for.

    While the wall clock is behind, time stamps go on by monotonic time, so that intervals stay true.
    """

    def __init__(self, *, wall: float, monotonic: float) -> None:
        self._offset = wall - monotonic
        self._last_ms = round(wall * 1000)

    def next(self, *, wall: float, monotonic: float) -> float:
        """Return the time stamp of a row that was read at these times: UNIX seconds, whole milliseconds."""
        offset = wall - monotonic
        if offset > self._offset - _STEP_S:
            self._offset = offset
        self._last_ms = max(round((self._offset + monotonic) * 1000), self._last_ms + 1)
        return self._last_ms / 1000

    def advance_past(self, timestamp: float, *, monotonic: float) -> None:
        """Time stamps from now on come after `timestamp` (UNIX seconds)."""
        self._offset = max(self._offset, timestamp - monotonic)
        self._last_ms = max(self._last_ms, round(timestamp * 1000))
