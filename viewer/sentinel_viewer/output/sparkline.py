"""A line of bars for a terminal."""

from collections.abc import Sequence

from sentinel_viewer.rows.downsample import into_buckets
from sentinel_viewer.rows.table import Rows

_BARS = "▁▂▃▄▅▆▇█"
UNKNOWN = "·"
"""Stands for a time that no row knows."""


def sparkline(values: Sequence[float | None], highest: float | None = None) -> str:
    """Draw values from 0 to `highest` (by default the highest of them)."""
    top = max((value for value in values if value is not None), default=0.0) if highest is None else highest
    return "".join(UNKNOWN if value is None else _BARS[_level(value, top)] for value in values)


def row_sparkline(rows: Rows, series: Sequence[float], width: int, highest: float | None = None) -> str:
    """Draw a series over the run's time, the highest value of each stretch, in `width` characters at most."""
    if not len(rows):
        return ""
    if len(rows) <= width and not rows.gaps:
        return sparkline([value if value == value else None for value in series], highest)
    count = min(width, len(rows))
    buckets = into_buckets(rows.times, series, rows.start, rows.end, count)
    return sparkline([bucket.high for bucket in buckets], highest)


def _level(value: float, top: float) -> int:
    if top <= 0:
        return 0
    return min(len(_BARS) - 1, max(0, int(value / top * len(_BARS))))
