"""The same readings through psutil, where there is no Linux `/proc` (macOS, BSD).

They are coarser: vanished children count only through their parents' totals, memory is RSS instead of PSS, and there
are no bytes per process on macOS.
"""

import contextlib
from collections.abc import Collection

import psutil

from sentinel_collector.sensors.interfaces import CpuReading, MemoryReading, Reap, RUsage, SystemReading, TreeReading
from sentinel_collector.sensors.linux.byte_counters import ByteCounters
from sentinel_collector.sensors.process_tree.cpu_ledger import CpuLedger
from sentinel_collector.sensors.psutil_fallback.process import PsutilProcess

_FAILURES = (OSError, RuntimeError, psutil.Error)
"""psutil raises a `RuntimeError`, its own or Python's, where a platform has no figure."""


class PsutilSystem:
    """`SystemSensors` from psutil. Growth counts from `__init__` on."""

    def __init__(self) -> None:
        self._cpu = self._cpu_us()
        self._disk = ByteCounters()
        self._network = ByteCounters()
        self._disk_growth()
        self._network_growth()

    def read(self) -> SystemReading:
        """Read everything once."""
        before, self._cpu = self._cpu, self._cpu_us()
        user = system = None
        if before is not None and self._cpu is not None:
            user, system = max(0, self._cpu[0] - before[0]), max(0, self._cpu[1] - before[1])
        cpu = CpuReading(psutil.cpu_count() or 1, 0, user, system)
        processes = len(psutil.pids())
        return SystemReading(cpu, processes, _memory(), self._disk_growth(), _space(), self._network_growth())

    def close(self) -> None:
        """Nothing is kept open."""

    def _cpu_us(self) -> tuple[int, int] | None:
        with contextlib.suppress(*_FAILURES):
            times = psutil.cpu_times()
            return round((times.user + getattr(times, "nice", 0.0)) * 1e6), round(times.system * 1e6)
        return None

    def _disk_growth(self) -> tuple[int | None, int | None]:
        with contextlib.suppress(*_FAILURES):
            disks = psutil.disk_io_counters(perdisk=True) or {}
            return self._disk.growth((name.encode(), one.read_bytes, one.write_bytes) for name, one in disks.items())
        return None, None

    def _network_growth(self) -> tuple[int | None, int | None]:
        with contextlib.suppress(*_FAILURES):
            links = psutil.net_io_counters(pernic=True) or {}
            return self._network.growth(
                (name.encode(), one.bytes_recv, one.bytes_sent)
                for name, one in links.items()
                if not name.startswith("lo")
            )
        return None, None


class PsutilTree:
    """`TreeSensor` from psutil, with the same ledger. Each reading looks for children."""

    def __init__(self, *, root_pid: int, own_child: bool) -> None:
        self._root_pid = root_pid
        self._ledger = CpuLedger()
        self._processes: dict[int, PsutilProcess] = {}
        self._excluded: set[int] = set()
        self.peak_kib = 0
        """The highest sum of a reading, or the highest resident set of a reaped process."""
        self._io_readable = False
        self._add(root_pid, None)
        if not own_child:
            self._visit()
        self._reported = self._ledger.counted

    def read(self, *, forks: int, elapsed_s: float, reap_root: Reap | None = None) -> TreeReading:  # noqa: ARG002 - the Linux reading needs both
        """Read all processes."""
        memory_kib = self._visit()
        usage = reap_root() if reap_root is not None else None
        if usage is not None:
            self.reaped(self._root_pid, usage)
        counted, reported = self._ledger.counted, self._reported
        self._reported = counted
        return TreeReading(
            user_us=counted[0] - reported[0],
            system_us=counted[1] - reported[1],
            children=len(self._processes.keys() - {self._root_pid}),
            memory_kib=memory_kib,
            read_bytes=counted[2] - reported[2] if self._io_readable else None,
            written_bytes=counted[3] - reported[3] if self._io_readable else None,
        )

    def reaped(self, pid: int, usage: RUsage) -> None:
        """Take the exact total of a process that this process waited for."""
        unit = 1 if psutil.LINUX or psutil.BSD else 1024
        self.peak_kib = max(self.peak_kib, usage.ru_maxrss // unit)
        process = self._processes.pop(pid, None)
        if process is not None:
            user_us, system_us = round(usage.ru_utime * 1e6), round(usage.ru_stime * 1e6)
            self._ledger.close_with_rusage(process.account, user_us, system_us, was_final=False)

    def exclude(self, pid: int) -> None:
        """Leave this process, and its descendants, out of the tree."""
        self._excluded.add(pid)

    def root_alive(self) -> bool:
        """Whether the root still runs, and is the same process."""
        process = self._processes.get(self._root_pid)
        return process is not None and process.is_alive()

    @property
    def pids(self) -> Collection[int]:
        """All processes of the last reading."""
        return self._processes.keys()

    def close(self) -> None:
        """Nothing is kept open."""

    def _add(self, pid: int, parent: PsutilProcess | None) -> PsutilProcess | None:
        with contextlib.suppress(*_FAILURES):
            process = PsutilProcess(pid, parent.account if parent is not None else None)
            self._processes[pid] = process
            return process
        return None

    def _visit(self) -> int:
        queue = list(self._processes.values())
        total_kib = 0
        gone = []
        for process in queue:
            rss_kib = process.read(self._ledger)
            if rss_kib is None:
                self._ledger.close(process.account)
                gone.append(process.pid)
                continue
            total_kib += rss_kib
            self._io_readable = self._io_readable or process.io_readable
            for pid in process.children():
                if pid not in self._processes and pid not in self._excluded:
                    found = self._add(pid, process)
                    if found is not None:
                        queue.append(found)
        for pid in gone:
            self._processes.pop(pid, None)
        self._ledger.end_reading()
        self.peak_kib = max(self.peak_kib, total_kib)
        return total_kib


def _memory() -> MemoryReading:
    try:
        found = psutil.virtual_memory()
    except _FAILURES:
        return MemoryReading()
    return MemoryReading(
        found.free // 1024,
        max(0, found.total - found.available) // 1024,
        getattr(found, "buffers", 0) // 1024,
        getattr(found, "cached", 0) // 1024,
        getattr(found, "active", 0) // 1024,
        getattr(found, "inactive", 0) // 1024,
    )


def _space() -> tuple[int, int, int] | None:
    """Return the space of the root alone: the volumes of an APFS container share theirs, a sum would count it twice."""
    with contextlib.suppress(*_FAILURES):
        found = psutil.disk_usage("/")
        return found.total, found.used, found.free
    return None
