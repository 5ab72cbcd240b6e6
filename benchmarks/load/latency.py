"""Percentiles of many durations in little memory: counts in buckets that are 2 % wide."""

import math
from collections import Counter

_GROWTH = math.log(1.02)
_SMALLEST_S = 1e-5


class Latencies:
    """Durations in seconds. Two of them can be added."""

    def __init__(self, buckets: Counter[int] | None = None) -> None:
        self.buckets: Counter[int] = Counter() if buckets is None else buckets

    def add(self, seconds: float, count: int = 1) -> None:
        """Count durations."""
        self.buckets[round(math.log(max(seconds, _SMALLEST_S) / _SMALLEST_S) / _GROWTH)] += count

    def merge(self, other: "Latencies") -> None:
        """Count another one's durations too."""
        self.buckets.update(other.buckets)

    def percentile_s(self, percent: float) -> float | None:
        """Return the duration that so many per cent do not exceed, to 1 %; `None` where nothing was counted."""
        rank = math.ceil(self.buckets.total() * percent / 100)
        for bucket in sorted(self.buckets):
            rank -= self.buckets[bucket]
            if rank <= 0:
                return _SMALLEST_S * math.exp(bucket * _GROWTH)
        return None
