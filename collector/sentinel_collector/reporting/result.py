"""The result of a run in words: how it ended and what it used. Printed at once, whatever the delivery does."""

import signal
from collections.abc import Mapping
from typing import Any

from sentinel_protocol.wire.messages import Finish
from sentinel_protocol.wire.run_statistics import RunStatistics

_CRASHES = frozenset({"SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSYS", "SIGTRAP"})
_FIRST_SIGNAL_CODE = 128
_NEAR_LIMIT = 0.95
_UNITS = ("B", "kB", "MB", "GB", "TB")


def result_lines(finish: Finish, statistics: RunStatistics, *, run_id: str, host: Mapping[str, Any]) -> list[str]:
    """Return how the run ended, and what it used. `run_id` is empty until the run is registered."""
    figures = statistics.summary()
    scope = "process" if "process_cpu_usage" in figures else "system"
    gauge = figures.get("process_memory_mib" if scope == "process" else "system_memory_used_mib")
    rows_peak = 0.0 if gauge is None else gauge["max"]
    limit = host.get("host_memory_mib") if finish.scope == "container" or scope == "system" else None
    outcome = _outcome(finish)
    peak = max(rows_peak, finish.peak_memory_mib or 0.0)
    if finish.exit_code == _FIRST_SIGNAL_CODE + signal.SIGKILL and limit and peak >= limit * _NEAR_LIMIT:
        outcome += f": the memory limit of {limit:.0f} MiB was probably reached"
    name = f"run {run_id}: " if run_id else ""
    used = [
        _cpu(figures, scope, host.get("host_vcpus")),
        _memory(rows_peak, finish.peak_memory_mib or 0.0, limit),
        _traffic(figures, f"{scope}_disk", ("read_bytes", "read"), ("write_bytes", "written"), "disk"),
        _traffic(figures, "system_net", ("recv_bytes", "received"), ("sent_bytes", "sent"), "network of the machine"),
        _gpu(figures.get(f"{scope}_gpu_usage"), host.get("host_gpu_count")),
    ]
    return [f"{name}{outcome} after {_duration(figures['duration_seconds'])}", ", ".join(filter(None, used))]


def _outcome(finish: Finish) -> str:
    code = finish.exit_code
    if code is None:
        return "the job runs on, no longer recorded" if finish.status == "failed" else "finished"
    if code == 0:
        return "finished"
    try:
        name = signal.Signals(code - _FIRST_SIGNAL_CODE).name
    except ValueError:
        return f"failed with exit code {code}"
    if name in _CRASHES:
        return f"crashed: {name} ({code})"
    return f"interrupted: {name} ({code})" if name == "SIGINT" else f"killed by {name} ({code})"


def _cpu(figures: Mapping[str, Any], scope: str, vcpus: Any) -> str:
    # Unknown in all rows (hidden processes), or a run without rows, which has used nothing.
    cpu = figures.get(f"{scope}_cpu_usage", None if figures["rows"] else {"mean": 0.0, "max": 0.0})
    if cpu is None:
        return ""
    seconds = sum(figures.get(f"{scope}_{kind}", {"total": 0.0})["total"] for kind in ("utime", "stime"))
    of = f" of {vcpus:g}" if vcpus else ""
    return f"CPU {cpu['mean']:.2f}{of} cores on average, {cpu['max']:.2f} at most ({seconds:.2f} s)"


def _memory(rows_peak: float, process_peak: float, limit: Any) -> str:
    """Name both peaks where they differ: a process may have had more between two rows than the job in any row."""
    # Unknown for a job that ended before the first sample.
    if not rows_peak and not process_peak:
        return ""
    of = f" of {limit:.0f} MiB" if limit else ""
    if rows_peak >= process_peak:
        return f"memory {rows_peak:.0f} MiB at most{of}"
    if not rows_peak:
        return f"memory {process_peak:.0f} MiB at most in one process{of}"
    return f"memory {rows_peak:.0f} MiB at most in the rows, {process_peak:.0f} MiB in one process between them{of}"


def _traffic(
    figures: Mapping[str, Any], prefix: str, first: tuple[str, str], second: tuple[str, str], name: str
) -> str:
    sizes = [(figures.get(f"{prefix}_{column}", {"total": 0})["total"], verb) for column, verb in (first, second)]
    if not any(size for size, _ in sizes):
        return ""
    return f"{name} " + ", ".join(f"{_size(size)} {verb}" for size, verb in sizes)


def _gpu(gpu: Mapping[str, float] | None, count: Any) -> str:
    if gpu is None or not gpu["max"] > 0:
        return ""
    of = f" of {count:g}" if count else ""
    return f"GPU {gpu['mean']:.2f}{of} on average, {gpu['max']:.2f} at most"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _size(size: float) -> str:
    for unit in _UNITS:
        if size < 1000 or unit == _UNITS[-1]:
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
