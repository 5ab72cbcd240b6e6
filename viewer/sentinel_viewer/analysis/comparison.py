"""Whether two runs differ, or only vary as runs of their job do."""

from collections.abc import Callable, Sequence
from math import sqrt
from statistics import stdev
from typing import NamedTuple

from sentinel_viewer.analysis.figures import Figures

NOISE, DIFFERENT, UNSURE, EQUAL = "noise", "different", "unsure", ""
_MIN_RUNS = 3
_SMALL = 0.05
# Two-sided 95 % quantiles of Student's t by degrees of freedom, 1 to 10; beyond these the last one serves.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


class Measure(NamedTuple):
    """One line of a comparison. Below `grain` (in the measure's unit) a difference means nothing."""

    key: str
    label: str
    unit: str
    grain: float
    of: Callable[[Figures], float | None]


MEASURES = (
    Measure("duration", "duration", "s", 0.2, lambda figures: figures.duration_s),
    Measure("cpu_time", "CPU time", "s", 0.05, lambda figures: figures.cpu_s),
    Measure("cpu_mean", "CPU, mean", "cores", 0.02, lambda figures: figures.mean_cores),
    Measure("cpu_p95", "CPU, 95th percentile", "cores", 0.02, lambda figures: figures.p95_cores),
    Measure("memory_mean", "memory, mean", "MiB", 1.0, lambda figures: figures.mean_mib),
    Measure("memory_peak", "memory, peak", "MiB", 1.0, lambda figures: figures.peak_mib),
    Measure("disk_read", "disk, read", "bytes", 1e6, lambda figures: figures.disk_read_bytes),
    Measure("disk_written", "disk, written", "bytes", 1e6, lambda figures: figures.disk_write_bytes),
    Measure("net_received", "network, received (host)", "bytes", 1e6, lambda figures: figures.net_recv_bytes),
    Measure("net_sent", "network, sent (host)", "bytes", 1e6, lambda figures: figures.net_sent_bytes),
    Measure("gpu_mean", "GPUs, mean", "GPUs", 0.02, lambda figures: figures.mean_gpus),
    Measure("vram_peak", "GPU memory, peak", "MiB", 1.0, lambda figures: figures.peak_vram_mib),
)


class Difference(NamedTuple):
    """A value against that of the first run. `percent` is `None` where the first one is 0 or either is unknown."""

    value: float | None
    percent: float | None
    verdict: str
    reason: str


def differences(figures: Sequence[Figures], earlier: Sequence[Figures]) -> list[tuple[Measure, list[Difference]]]:
    """Compare each run with the first one; `earlier` are further runs of the first one's job.

    A measure that no run knows, or that is 0 in all of them, is left out.
    """
    found = []
    for measure in MEASURES:
        values = [measure.of(one) for one in figures]
        if not any(values):
            continue
        spread = [value for one in earlier if (value := measure.of(one)) is not None]
        first = values[0]
        found.append((measure, [difference(measure, first, value, spread) for value in values]))
    return found


def difference(measure: Measure, first: float | None, value: float | None, spread: Sequence[float]) -> Difference:
    """Judge one value. With three or more runs of the job a difference is one that 5 % of pairs of such runs exceed."""
    if first is None or value is None:
        return Difference(value, None, EQUAL, "unknown in one of them")
    change = value - first
    percent = 100 * change / first if first else None
    if abs(change) < measure.grain:
        return Difference(value, percent, EQUAL, "below what is measured")
    known = [*spread, first]
    if len(known) >= _MIN_RUNS:
        # The difference of two runs varies by the square root of 2 more than a run does.
        expected = stdev(known) * sqrt(2) * _T[min(len(known) - 1, len(_T)) - 1]
        if abs(change) <= expected:
            return Difference(value, percent, NOISE, f"{len(known)} runs of the job vary as much")
        return Difference(value, percent, DIFFERENT, f"{len(known)} runs of the job vary less")
    if abs(change) <= _SMALL * abs(first):
        return Difference(value, percent, NOISE, "within 5 %; the job has no other runs to tell")
    return Difference(value, percent, UNSURE, "the job has no other runs to tell how much it varies")
