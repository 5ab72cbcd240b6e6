"""Fewer points that tell no lies: every bucket keeps its lowest and its highest value."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from sentinel_viewer.rows.table import known


class Bucket(NamedTuple):
    """The rows of one stretch of time: `start` < time stamp ≤ `end`. The figures are `None` where no row is known."""

    start: float
    end: float
    low: float | None
    mean: float | None
    high: float | None


def into_buckets(times: Sequence[float], values: Sequence[float], start: float, end: float, count: int) -> list[Bucket]:
    """Divide `start` to `end` into `count` equal stretches; the lowest and the highest of all values are kept.

    `times` ascend. A value before `start` goes into the first stretch, one after `end` into the last.
    """
    width = (end - start) / count
    buckets = []
    first = 0
    for number in range(count):
        until = end if number == count - 1 else start + width * (number + 1)
        last = len(times) if number == count - 1 else bisect_right(times, until, first)
        found = known(values[first:last])
        if found:
            figures = min(found), sum(found) / len(found), max(found)
            buckets.append(Bucket(start + width * number, until, *figures))
        else:
            buckets.append(Bucket(start + width * number, until, None, None, None))
        first = last
    return buckets
