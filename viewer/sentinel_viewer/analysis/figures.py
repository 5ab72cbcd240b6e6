"""The figures of a run that advice, comparison and the first lines of every view are made of."""

from typing import NamedTuple

from sentinel_viewer.analysis.outcome import peak_memory_mib
from sentinel_viewer.rows.statistics import ColumnStatistics, all_statistics
from sentinel_viewer.rows.table import Rows
from sentinel_viewer.runs.run import Run


class Figures(NamedTuple):
    """What a job (or, in host mode, the host) used. `None` is unknown.

    `*_cores` and `*_gpus` count cores and GPUs in use, `*_mib` are MiB, `*_bytes` totals of the run. `host_*` are the
    whole machine's. `scope` is the prefix of the columns: `process` or `system`.
    """

    scope: str
    duration_s: float | None
    cpu_s: float | None
    mean_cores: float | None
    p95_cores: float | None
    peak_cores: float | None
    mean_mib: float | None
    peak_mib: float | None
    disk_read_bytes: float | None
    disk_write_bytes: float | None
    net_recv_bytes: float | None
    net_sent_bytes: float | None
    mean_gpus: float | None
    peak_gpus: float | None
    mean_vram_mib: float | None
    peak_vram_mib: float | None
    host_mean_cores: float | None
    host_p95_cores: float | None
    host_mean_mib: float | None
    host_peak_mib: float | None
    rows: int


def figures_of_description(run: Run) -> Figures:
    """Return the figures that `run.json` holds: no percentiles, but nothing else has to be read."""
    scope = "system" if run.is_host_run else "process"

    def mean(name: str, of: str = scope) -> float | None:
        return run.statistic(f"{of}_{name}", "mean")

    def high(name: str, of: str = scope) -> float | None:
        return run.statistic(f"{of}_{name}", "max")

    def total(name: str, of: str = scope) -> float | None:
        return run.statistic(f"{of}_{name}", "total")

    memory = "memory_used_mib" if scope == "system" else "memory_mib"
    return Figures(
        scope=scope,
        duration_s=run.duration_s,
        cpu_s=_sum(total("utime"), total("stime")),
        mean_cores=mean("cpu_usage"),
        p95_cores=None,
        peak_cores=high("cpu_usage"),
        mean_mib=mean(memory),
        peak_mib=peak_memory_mib(run),
        disk_read_bytes=total("disk_read_bytes"),
        disk_write_bytes=total("disk_write_bytes"),
        net_recv_bytes=total("net_recv_bytes", "system"),
        net_sent_bytes=total("net_sent_bytes", "system"),
        mean_gpus=mean("gpu_usage"),
        peak_gpus=high("gpu_usage"),
        mean_vram_mib=mean("gpu_vram_mib"),
        peak_vram_mib=high("gpu_vram_mib"),
        host_mean_cores=mean("cpu_usage", "system"),
        host_p95_cores=None,
        host_mean_mib=mean("memory_used_mib", "system"),
        host_peak_mib=high("memory_used_mib", "system"),
        rows=run.rows or 0,
    )


def figures_of_rows(run: Run, rows: Rows, statistics: dict[str, ColumnStatistics] | None = None) -> Figures:
    """Return the figures of the rows themselves; only the peak between two rows comes from `run.json`."""
    found = all_statistics(rows) if statistics is None else statistics
    scope = "process" if any(name.startswith("process_") for name in found) else "system"

    def pick(name: str, kind: str, of: str = scope) -> float | None:
        statistic = found.get(f"{of}_{name}")
        value: float | None = None if statistic is None else getattr(statistic, kind)
        return value

    memory = "memory_used_mib" if scope == "system" else "memory_mib"
    peaks = [pick(memory, "high"), run.peak_memory_mib if scope == "process" else None]
    return Figures(
        scope=scope,
        duration_s=rows.duration_s if len(rows) else run.duration_s,
        cpu_s=_sum(pick("utime", "total"), pick("stime", "total")),
        mean_cores=pick("cpu_usage", "mean"),
        p95_cores=pick("cpu_usage", "p95"),
        peak_cores=pick("cpu_usage", "high"),
        mean_mib=pick(memory, "mean"),
        peak_mib=max((peak for peak in peaks if peak is not None), default=None),
        disk_read_bytes=pick("disk_read_bytes", "total"),
        disk_write_bytes=pick("disk_write_bytes", "total"),
        net_recv_bytes=pick("net_recv_bytes", "total", "system"),
        net_sent_bytes=pick("net_sent_bytes", "total", "system"),
        mean_gpus=pick("gpu_usage", "mean"),
        peak_gpus=pick("gpu_usage", "high"),
        mean_vram_mib=pick("gpu_vram_mib", "mean"),
        peak_vram_mib=pick("gpu_vram_mib", "high"),
        host_mean_cores=pick("cpu_usage", "mean", "system"),
        host_p95_cores=pick("cpu_usage", "p95", "system"),
        host_mean_mib=pick("memory_used_mib", "mean", "system"),
        host_peak_mib=pick("memory_used_mib", "high", "system"),
        rows=len(rows),
    )


def _sum(*values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
