"""Statistics of a run, updated row by row: for the collector's summary and the uploader's `run.json`."""

from collections.abc import Iterable
from math import isfinite
from operator import attrgetter
from typing import Any

import msgspec

from sentinel_protocol.wire.sample import GAUGES, TOTALS, Sample

_MAX_INT = 2**63 - 1
_gauges_of = attrgetter(*GAUGES)
_totals_of = attrgetter(*TOTALS)


_STORED_NAMES = {"weighted_sums": "weighted", "weight_totals": "weights", "maxima": "highest"}
"""Names of these fields in spools."""


class RunStatistics(msgspec.Struct, rename=_STORED_NAMES):
    """Sums over the rows added so far. The size does not depend on their number."""

    rows: int = 0
    last_timestamp: float = 0.0
    duration_s: float = 0.0
    """Sum of the lengths of all rows' intervals."""
    weighted_sums: dict[str, float] = {}
    """For each gauge: sum of value times interval length. `weight_totals` has the sums of these lengths."""
    weight_totals: dict[str, float] = {}
    maxima: dict[str, float] = {}
    totals: dict[str, int | float] = {}

    def copy(self) -> "RunStatistics":
        """Return an independent copy."""
        return msgspec.structs.replace(
            self,
            weighted_sums=dict(self.weighted_sums),
            weight_totals=dict(self.weight_totals),
            maxima=dict(self.maxima),
            totals=dict(self.totals),
        )

    def add(self, samples: Iterable[Sample]) -> None:
        """Add rows in the order of their timestamps."""
        weighted_sums, weight_totals, maxima, totals = self.weighted_sums, self.weight_totals, self.maxima, self.totals
        for sample in samples:
            interval_s = self._interval_s(sample)
            self.rows += 1
            self.last_timestamp = sample.timestamp
            self.duration_s += interval_s
            for name, value in zip(GAUGES, _gauges_of(sample), strict=True):
                if value is not None and isfinite(value):
                    weighted_sums[name] = weighted_sums.get(name, 0.0) + value * interval_s
                    weight_totals[name] = weight_totals.get(name, 0.0) + interval_s
                    maxima[name] = max(maxima.get(name, value), value)
            for name, value in zip(TOTALS, _totals_of(sample), strict=True):
                if value is not None and isfinite(value):
                    total = totals.get(name, 0) + value
                    # msgpack has no larger integers; a float is exact enough there.
                    totals[name] = total if -_MAX_INT <= total <= _MAX_INT else float(total)

    def summary(self) -> dict[str, Any]:
        """Return `{"mean", "max"}` for each gauge, `{"total"}` for each total, the number of rows and the duration.

        Means are weighted by the length of each row's interval.
        """
        figures: dict[str, Any] = {"rows": self.rows, "duration_seconds": round(self.duration_s, 3)}
        for name, highest in self.maxima.items():
            weight = self.weight_totals[name]
            mean = self.weighted_sums[name] / weight if weight > 0 else highest
            figures[name] = {"mean": round(mean, 4), "max": round(highest, 4)}
        for name, total in self.totals.items():
            figures[name] = {"total": round(total, 6)}
        return figures

    def _interval_s(self, sample: Sample) -> float:
        if self.rows:
            return max(0.0, sample.timestamp - self.last_timestamp)
        # The start of the first interval is not in the data, but CPU usage is CPU seconds divided by its length.
        seconds = (sample.system_utime or 0.0) + (sample.system_stime or 0.0)
        return seconds / sample.system_cpu_usage if sample.system_cpu_usage else 0.0
