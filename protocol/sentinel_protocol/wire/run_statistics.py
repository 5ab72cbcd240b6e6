"""Figures of a whole run, kept up row by row: the same at the collector's end and in the uploader's `run.json`."""

from collections.abc import Iterable
from math import isfinite
from operator import attrgetter
from typing import Any

import msgspec

from sentinel_protocol.wire.sample import Sample

_MAX_INT = 2**63 - 1
_GAUGES = (
    "process_cpu_usage",
    "process_memory_mib",
    "process_gpu_usage",
    "process_gpu_vram_mib",
    "system_cpu_usage",
    "system_memory_used_mib",
    "system_gpu_usage",
    "system_gpu_vram_mib",
)
_TOTALS = (
    "process_utime",
    "process_stime",
    "process_disk_read_bytes",
    "process_disk_write_bytes",
    "system_utime",
    "system_stime",
    "system_disk_read_bytes",
    "system_disk_write_bytes",
    "system_net_recv_bytes",
    "system_net_sent_bytes",
)
_gauges_of = attrgetter(*_GAUGES)
_totals_of = attrgetter(*_TOTALS)


_STORED_NAMES = {"weighted_sums": "weighted", "weight_totals": "weights", "maxima": "highest"}
"""Spools hold these fields under their first names."""


class RunStatistics(msgspec.Struct, rename=_STORED_NAMES):
    """Sums over the rows seen so far; its size does not depend on how many they were."""

    rows: int = 0
    last_timestamp: float = 0.0
    duration_s: float = 0.0
    """Length of all rows' intervals together."""
    weighted_sums: dict[str, float] = {}
    """Per gauge: sum of value times length of the row's interval."""
    weight_totals: dict[str, float] = {}
    maxima: dict[str, float] = {}
    totals: dict[str, int | float] = {}

    def copy(self) -> "RunStatistics":
        """Return figures that can be added to without changing these."""
        return msgspec.structs.replace(
            self,
            weighted_sums=dict(self.weighted_sums),
            weight_totals=dict(self.weight_totals),
            maxima=dict(self.maxima),
            totals=dict(self.totals),
        )

    def add(self, samples: Iterable[Sample]) -> None:
        """Take rows in, in their order."""
        weighted_sums, weight_totals, maxima, totals = self.weighted_sums, self.weight_totals, self.maxima, self.totals
        for sample in samples:
            interval_s = self._interval_s(sample)
            self.rows += 1
            self.last_timestamp = sample.timestamp
            self.duration_s += interval_s
            for name, value in zip(_GAUGES, _gauges_of(sample), strict=True):
                if value is not None and isfinite(value):
                    weighted_sums[name] = weighted_sums.get(name, 0.0) + value * interval_s
                    weight_totals[name] = weight_totals.get(name, 0.0) + interval_s
                    maxima[name] = max(maxima.get(name, value), value)
            for name, value in zip(_TOTALS, _totals_of(sample), strict=True):
                if value is not None and isfinite(value):
                    total = totals.get(name, 0) + value
                    # Beyond what msgpack can write as an integer the last digits do not matter.
                    totals[name] = total if -_MAX_INT <= total <= _MAX_INT else float(total)

    def summary(self) -> dict[str, Any]:
        """Return `{column: {"mean", "max"}}` for gauges, `{column: {"total"}}` for the others, and the duration.

        Means are weighted by the length of each row's interval. CPU seconds and bytes are totals of the run.
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
        # The first row's beginning is not in the data, but usage is CPU seconds divided by the interval.
        seconds = (sample.system_utime or 0.0) + (sample.system_stime or 0.0)
        return seconds / sample.system_cpu_usage if sample.system_cpu_usage else 0.0
