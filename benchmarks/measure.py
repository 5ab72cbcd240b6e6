"""Figures of processes and of series."""

import math
import os
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.trackers import Row
from benchmarks.workspace import Workspace

_TICKS = os.sysconf("SC_CLK_TCK")


class CpuMeter:
    """CPU seconds of processes and of all processes that they start from now on.

    From a cgroup of theirs; else from `/proc/PID/task/TID/schedstat`, to the nanosecond too, and the times of reaped
    children in `/proc/PID/stat`, which have a grain of 10 ms: `is_exact` is False then.
    """

    def __init__(self, workspace: Workspace, pids: Sequence[int]) -> None:
        self._pids = pids
        self._cgroup = workspace.cgroup()
        self.is_exact = self._cgroup is not None
        if self._cgroup is not None:
            for pid in pids:
                self._cgroup.add(pid)

    def cpu_s(self) -> float:
        """Return the CPU seconds so far."""
        if self._cgroup is not None:
            return self._cgroup.cpu_s()
        return sum(_stat_cpu_s(pid) for pid in self._pids)


def _stat_cpu_s(pid: int) -> float:
    of_threads = sum(int(file.read_bytes().split()[0]) for file in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return of_threads / 1e9 + sum(int(field) for field in fields[13:15]) / _TICKS


def rss_mib(pids: Iterable[int]) -> float:
    """Return the resident sets of processes together, `VmRSS`."""
    return _field_mib(pids, "status", b"VmRSS:")


def pss_mib(pids: Iterable[int]) -> float:
    """Return the proportional set sizes of processes together."""
    return _field_mib(pids, "smaps_rollup", b"Pss:")


def _field_mib(pids: Iterable[int], name: str, field: bytes) -> float:
    kib = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/{name}").read_bytes().splitlines()
        kib += next(int(line.split()[1]) for line in lines if line.startswith(field))
    return kib / 1024


def median(values: Iterable[float | None]) -> float | None:
    """Return the median of the known figures."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def lateness_p99_ms(rows: Sequence[Row], interval_s: float) -> float | None:
    """Return the 99th percentile of |t - deadline|, in ms.

    The grid of deadlines has the interval's distance; it is laid through the row that came earliest after its own.
    The first row is left out: a tracker may still be starting then. The last one too: it comes when the job ends.
    """
    times = [row["timestamp"] for row in rows[1:-1]]
    if len(times) < 2:
        return None
    offsets = [time - times[0] - interval_s * round((time - times[0]) / interval_s) for time in times]
    late = sorted(offset - min(offsets) for offset in offsets)
    return late[math.ceil(len(late) * 0.99) - 1] * 1e3


def rows_above_machine(rows: Sequence[Row], began_at: float) -> int:
    """Count rows that show more CPU than the machine has, as a rate or against the time since the row before."""
    cpus = os.cpu_count() or 1
    count, before = 0, began_at
    for row in rows:
        # A time stamp is a whole millisecond.
        most_s = (row["timestamp"] - before + 0.001) * cpus
        used_s = row["process_utime"] + row["process_stime"]
        count += row["process_cpu_usage"] > cpus or used_s > most_s
        before = row["timestamp"]
    return count
