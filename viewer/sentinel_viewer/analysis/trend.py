"""Whether memory was still growing when a run ended."""

from bisect import bisect_left
from typing import NamedTuple

from sentinel_viewer.rows.table import Rows, known_with

_TAIL = 0.5
"""The share of the run, from its end, through which a line is laid."""
_MIN_ROWS = 10
_EXIT_ROWS = 2
_MIN_FIT = 0.8
_MIN_SHARE = 0.05
_MIN_MIB = 8.0


class Growth(NamedTuple):
    """A straight line through the last rows: its slope, how well it fits (R², 0 to 1), and where it ends."""

    mib_per_s: float
    fit: float
    duration_s: float
    last_mib: float


def memory_growth(rows: Rows, column: str) -> Growth | None:
    """Return the growth over the second half of a run, `None` where memory did not grow steadily to the end.

    Growth counts when the line fits, gains at least 5 % of the peak and 8 MiB, and both quarters of the tail grow.
    """
    values, times = known_with(rows.values(column), rows.times)
    # A job that ends gives its memory back, and the last rows may see some of that: they end with the first fall.
    for back in range(min(_EXIT_ROWS, len(values) - 1), 0, -1):
        if values[-back] < values[-back - 1]:
            del values[-back:], times[-back:]
            break
    if len(values) < 2 * _MIN_ROWS:
        return None
    begin = bisect_left(times, times[-1] - (times[-1] - times[0]) * _TAIL)
    values, times = values[begin:], times[begin:]
    if len(values) < _MIN_ROWS:
        return None
    slope, fit = _line(times, values)
    duration = times[-1] - times[0]
    gained = slope * duration
    if fit < _MIN_FIT or gained < max(_MIN_MIB, _MIN_SHARE * max(values)):
        return None
    half = len(values) // 2
    if min(_line(times[:half], values[:half])[0], _line(times[half:], values[half:])[0]) < slope / 3:
        return None
    return Growth(slope, fit, duration, values[-1])


def _line(times: list[float], values: list[float]) -> tuple[float, float]:
    """Return slope per second and R² of the least-squares line."""
    count = len(values)
    mean_time, mean_value = sum(times) / count, sum(values) / count
    time_spread = sum((time - mean_time) ** 2 for time in times)
    value_spread = sum((value - mean_value) ** 2 for value in values)
    if time_spread == 0 or value_spread == 0:
        return 0.0, 0.0
    together = sum((time - mean_time) * (value - mean_value) for time, value in zip(times, values, strict=True))
    return together / time_spread, together**2 / (time_spread * value_spread)
