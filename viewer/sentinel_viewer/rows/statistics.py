"""Figures of each column over a whole run."""

from math import ceil
from typing import NamedTuple

from sentinel_viewer.rows.columns import COUNTER, LABEL, Column, column_of
from sentinel_viewer.rows.table import Rows, known, known_with


class ColumnStatistics(NamedTuple):
    """Figures of one column over the rows that know it.

    For a counter all of them but `total` are rates per second. `mean` is weighted by the rows' lengths; percentiles are
    over the rows (nearest rank). `high_at` is the time of the highest value, UNIX seconds. `total`: `None` for a gauge.
    """

    column: Column
    known_rows: int
    mean: float
    low: float
    median: float
    p95: float
    high: float
    high_at: float
    total: float | None


def column_statistics(rows: Rows, name: str) -> ColumnStatistics | None:
    """Return the figures of a column, `None` where no row knows it or figures make no sense."""
    column = column_of(name)
    if column.kind == LABEL or not rows.has(name):
        return None
    is_counter = column.kind == COUNTER
    series = rows.rates(name) if is_counter else rows.values(name)
    values, lengths = known_with(series, rows.lengths)
    if not values:
        return None
    weight = sum(lengths)
    total = sum(known(rows.values(name))) if is_counter else None
    if total is not None:
        mean = total / weight if weight > 0 else 0.0
    else:
        mean = sum(map(float.__mul__, values, lengths)) / weight if weight > 0 else values[0]
    high = max(values)
    ordered = sorted(values)
    return ColumnStatistics(
        column=column,
        known_rows=len(values),
        mean=mean,
        low=ordered[0],
        median=percentile(ordered, 50),
        p95=percentile(ordered, 95),
        high=high,
        high_at=rows.times[series.index(high)],
        total=total,
    )


def all_statistics(rows: Rows) -> dict[str, ColumnStatistics]:
    """Return the figures of all columns that have any."""
    found = {name: column_statistics(rows, name) for name in rows.columns}
    return {name: statistics for name, statistics in found.items() if statistics is not None}


def percentile(ordered: list[float], percent: float) -> float:
    """Return the nearest-rank percentile of ascending values, of which there is at least one."""
    return ordered[max(0, ceil(len(ordered) * percent / 100) - 1)]
