"""Advice on a job's next run: how many CPUs, how much memory, which GPUs. Each piece says how it is computed.

CPUs follow from what is used nearly all of the time, memory from the peak and a fifth more, rounded up to a size that
can be asked for, GPUs from the peak where any were used.
"""

from collections.abc import Callable, Sequence
from math import ceil, inf
from typing import NamedTuple

from sentinel_viewer.analysis.figures import Figures
from sentinel_viewer.analysis.trend import Growth, memory_growth
from sentinel_viewer.output.units import cores, counted, duration, mebibytes, number, size
from sentinel_viewer.rows.table import Rows, known
from sentinel_viewer.runs.run import Run

PROBLEM, CHANGE, NOTE = "problem", "change", "note"
"""How urgent: the run suffered; the next one should ask for something else; good to know."""
_MARGIN = 1.2
_SIZES_MIB = (128, 256, 512, 1024, 2048)
_BUSY = 0.9
_FULL = 0.97
_NEAR_LIMIT = 0.9
_FEW_ROWS = 30
_FOREIGN_CORES, _FOREIGN_FACTOR = 0.25, 1.25
_LOW_DISK_SHARE = 0.02
_IDLE_GPU = 0.05
_MOSTLY = 0.5
_UNITS = (("a second", 1, 60), ("a minute", 60, 3600), ("an hour", 3600, inf))
"""How growth is told: its unit in seconds, and for how long a time it is told by that."""
_AWAKE_CORES = 0.1
"""A job that uses less sleeps: it waits for no CPU."""


class Advice(NamedTuple):
    """One piece of advice. `basis` says how it is computed, `certainty` how sure it is and why."""

    topic: str
    urgency: str
    text: str
    basis: str
    certainty: str


class Evidence(NamedTuple):
    """What advice is made from: the run, its rows, its figures, and the figures of earlier runs of the same job."""

    run: Run
    rows: Rows
    figures: Figures
    earlier: Sequence[Figures]

    def highest(self, of: Callable[[Figures], float | None]) -> float | None:
        """Return a figure's highest value in all of these runs, `None` when it is unknown in this one."""
        if of(self.figures) is None:
            return None
        return max(value for one in (self.figures, *self.earlier) if (value := of(one)) is not None)


def advise(evidence: Evidence) -> list[Advice]:
    """Return all advice, the most urgent first."""
    if not len(evidence.rows):
        return []
    growth = memory_growth(evidence.rows, _memory_column(evidence))
    pieces = [
        *_memory(evidence, growth),
        *_cpus(evidence),
        *_gpus(evidence),
        *_disk(evidence),
    ]
    order = (PROBLEM, CHANGE, NOTE)
    return sorted(pieces, key=lambda advice: order.index(advice.urgency))


def rounded_memory_mib(mebibytes_needed: float) -> int:
    """Round up to 128, 256, 512, 1024 or 2048 MiB, beyond that to whole GiB."""
    for step in _SIZES_MIB:
        if mebibytes_needed <= step:
            return step
    return ceil(mebibytes_needed / 1024) * 1024


def _cpus(evidence: Evidence) -> list[Advice]:
    figures, run = evidence.figures, evidence.run
    p95 = evidence.highest(lambda one: one.p95_cores)
    if p95 is None or figures.mean_cores is None or figures.scope == "system":
        return _host_cpus(evidence)
    cpus = max(1, ceil(p95 - 0.05))
    available = run.cpu_limit or run.vcpus
    basis = f"95 % of the rows use {cores(p95)} cores or less (mean {cores(figures.mean_cores)}), rounded up"
    pieces = []
    starved = _starved(evidence, available)
    if starved is not None:
        pieces.append(starved)
    elif available and p95 >= available * _BUSY:
        text = f"the job used all {number(available)} CPUs: more of them may make it faster"
        pieces.append(Advice("CPU", CHANGE, text, basis, _certainty(evidence)))
    if available and cpus < available and starved is None:
        text = f"{counted(cpus, 'CPU')} would do, of {number(available)}"
        pieces.append(Advice("CPU", CHANGE if cpus <= available / 2 else NOTE, text, basis, _certainty(evidence)))
    elif not pieces:
        pieces.append(Advice("CPU", NOTE, f"{counted(cpus, 'CPU')} fit the job", basis, _certainty(evidence)))
    return pieces


def _starved(evidence: Evidence, available: float | None) -> Advice | None:
    """Tell of other work that took the CPU while the job could have used more."""
    figures, rows = evidence.figures, evidence.rows
    host, job = figures.host_mean_cores, figures.mean_cores
    if not available or host is None or job is None:
        return None
    others = host - job
    if others < _FOREIGN_CORES or host < job * _FOREIGN_FACTOR:
        return None
    full = [usage >= available * _FULL for usage in known(rows.values("system_cpu_usage"))]
    share = sum(full) / len(full) if full else 0.0
    if share < _MOSTLY or job < _AWAKE_CORES:
        return None
    text = (
        f"other work used {cores(others)} of {number(available)} cores, and the machine was full "
        f"{100 * share:.0f} % of the time: the job may have waited for CPU, and more of it would help"
    )
    basis = "mean cores in use on the host, less the job's; full: at least 97 % of the cores in use in a row"
    certainty = "fairly sure: whether the job wanted more cannot be seen from outside"
    return Advice("CPU", PROBLEM, text, basis, certainty)


def _host_cpus(evidence: Evidence) -> list[Advice]:
    p95, available = evidence.figures.host_p95_cores, evidence.run.vcpus
    if p95 is None or not available:
        return []
    text = f"the machine used {cores(p95)} of {number(available)} cores or less in 95 % of the time"
    return [Advice("CPU", NOTE, text, "95th percentile of the host's cores in use", _certainty(evidence))]


def _memory(evidence: Evidence, growth: Growth | None) -> list[Advice]:
    figures, run = evidence.figures, evidence.run
    peak = evidence.highest(lambda one: one.peak_mib)
    if peak is None or figures.peak_mib is None:
        return []
    limit = run.memory_limit_mib
    basis = f"peak {mebibytes(peak)} and 20 % more, rounded up"
    pieces = []
    is_high = limit is not None and figures.peak_mib >= limit * _NEAR_LIMIT
    if growth is not None:
        pieces.append(_leak(evidence, growth, limit))
    if is_high and limit is not None:
        text = f"the peak of {mebibytes(figures.peak_mib)} is near the limit of {mebibytes(limit)}: raise the limit"
        pieces.append(Advice("memory", PROBLEM, text, "highest memory of the run against its limit", "sure"))
    if figures.scope == "system":
        return pieces
    text = f"ask for {mebibytes(rounded_memory_mib(peak * _MARGIN))}"
    is_change = limit is not None and not is_high and limit >= 2 * rounded_memory_mib(peak * _MARGIN)
    if is_change and limit is not None:
        text += f" instead of {mebibytes(limit)}"
    certainty = _certainty(evidence) if growth is None else "unsure: memory was still growing at the end"
    pieces.append(Advice("memory", CHANGE if is_change else NOTE, text, basis, certainty))
    return pieces


def _leak(evidence: Evidence, growth: Growth, limit: float | None) -> Advice:
    unit, unit_s = next((unit, seconds) for unit, seconds, limit_s in _UNITS if growth.duration_s < limit_s)
    text = f"memory was still growing at the end, by {mebibytes(growth.mib_per_s * unit_s)} {unit}"
    room = (limit or evidence.run.host_memory_mib or 0.0) - growth.last_mib
    if room > 0:
        where = "limit" if limit else "machine's memory"
        text += f": the {where} would be reached in {duration(room / growth.mib_per_s)}"
    basis = f"straight line through the last {duration(growth.duration_s)} of rows (R² {growth.fit:.2f})"
    return Advice("memory", PROBLEM, text, basis, "fairly sure: a job that fills a cache once looks alike")


def _gpus(evidence: Evidence) -> list[Advice]:
    figures = evidence.figures
    peak, vram = evidence.highest(lambda one: one.peak_gpus), evidence.highest(lambda one: one.peak_vram_mib)
    pieces = []
    if peak is not None and figures.mean_gpus:
        gpus = max(1, round(peak))
        text = f"{counted(gpus, 'GPU')} fit the job"
        urgency = NOTE
        if figures.mean_gpus < gpus / 2:
            text += f", and {'it was' if gpus == 1 else 'they were'} in use {100 * figures.mean_gpus / gpus:.0f} % only"
            urgency = CHANGE
        basis = f"peak of {cores(peak)} GPUs in use, rounded (mean {cores(figures.mean_gpus)})"
        pieces.append(Advice("GPU", urgency, text, basis, _certainty(evidence)))
    elif vram and (figures.mean_gpus or 0.0) < _IDLE_GPU and figures.scope == "process":
        text = f"the job holds {mebibytes(vram)} of GPU memory and computes nothing there"
        pieces.append(Advice("GPU", PROBLEM, text, "GPU memory of the job, and its share of GPU time", "fairly sure"))
    if vram:
        text = f"ask for {mebibytes(rounded_memory_mib(vram * _MARGIN))} of GPU memory"
        basis = f"peak {mebibytes(vram)} and 20 % more, rounded up"
        pieces.append(Advice("GPU memory", NOTE, text, basis, _certainty(evidence)))
    return pieces


def _disk(evidence: Evidence) -> list[Advice]:
    figures, rows = evidence.figures, evidence.rows
    pieces = []
    free, total = known(rows.values("system_disk_space_free_gb")), known(rows.values("system_disk_space_total_gb"))
    if free and total and min(free) <= max(total) * _LOW_DISK_SHARE:
        text = f"the disks were nearly full: {size(min(free) * 1e9)} free of {size(max(total) * 1e9)}"
        basis = "least free space of all file systems together; a single one may be full sooner"
        pieces.append(Advice("disk", PROBLEM, text, basis, "sure"))
    written, seconds = figures.disk_write_bytes, figures.duration_s
    if written and seconds and written >= 1e9:
        text = f"{size(written)} written, {size(written / seconds)} a second on average"
        pieces.append(Advice("disk", NOTE, text, "total of the run, divided by its duration", "sure"))
    return pieces


def _memory_column(evidence: Evidence) -> str:
    return "process_memory_mib" if evidence.figures.scope == "process" else "system_memory_used_mib"


def _certainty(evidence: Evidence) -> str:
    runs = 1 + len(evidence.earlier)
    if len(evidence.rows) < _FEW_ROWS:
        return f"unsure: only {counted(len(evidence.rows), 'row')}"
    if runs == 1:
        return "fairly sure: one run; another one may use more"
    return f"sure as far as {runs} runs of the job can tell"
