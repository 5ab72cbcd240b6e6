"""The same readings through psutil, where there is no Linux `/proc` (macOS, BSD): coarser, but it starts.

Only what psutil offers there: no ledger across vanished children beyond what their parents report, RSS instead of
PSS, no bytes per process on macOS.
"""

import contextlib
from collections.abc import Collection
from resource import struct_rusage

import psutil

from sentinel_collector.sensors.interfaces import MemoryReading, Reap, SystemReading, TreeReading
from sentinel_collector.sensors.linux.byte_counters import ByteCounters
from sentinel_collector.sensors.process_tree.cpu_ledger import CpuLedger
from sentinel_collector.sensors.psutil_fallback.process import PsutilProcess

_FAILURES = (OSError, RuntimeError, psutil.Error)
"""psutil raises a RuntimeError of its own or Python's where a platform does not tell."""


class PsutilSystem:
    """`SystemSensors` from psutil; growth counts from the time it is made."""

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
        read, written = self._disk_growth()
        received, sent = self._network_growth()
        total, used, free = _space()
        return SystemReading(
            psutil.cpu_count() or 1,
            0,
            user,
            system,
            len(psutil.pids()),
            _memory(),
            read,
            written,
            total,
            used,
            free,
            received,
            sent,
        )

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
    """`TreeSensor` from psutil, with the same ledger; children are looked for in every reading."""

    def __init__(self, *, root_pid: int, own_child: bool) -> None:
        self._root_pid = root_pid
        self._ledger = CpuLedger()
        self._members: dict[int, PsutilProcess] = {}
        self._excluded: set[int] = set()
        self._peak_kib = 0
        self._io_readable = False
        self._add(root_pid, None)
        if not own_child:
            self._visit()
        self._reported = self._ledger.counted

    def read(self, *, forks: int, elapsed_s: float, reap_root: Reap | None = None) -> TreeReading:  # noqa: ARG002 - the Linux reading needs both
        """Read all members."""
        memory_kib = self._visit()
        usage = reap_root() if reap_root is not None else None
        if usage is not None:
            self.reaped(self._root_pid, usage)
        counted, reported = self._ledger.counted, self._reported
        self._reported = counted
        return TreeReading(
            counted[0] - reported[0],
            counted[1] - reported[1],
            len(self._members.keys() - {self._root_pid}),
            memory_kib,
            counted[2] - reported[2] if self._io_readable else None,
            counted[3] - reported[3] if self._io_readable else None,
        )

    def reaped(self, pid: int, usage: struct_rusage) -> None:
        """Take the exact total of a member that this process waited for."""
        unit = 1 if psutil.LINUX or psutil.BSD else 1024
        self._peak_kib = max(self._peak_kib, usage.ru_maxrss // unit)
        member = self._members.pop(pid, None)
        if member is not None:
            user_us, system_us = round(usage.ru_utime * 1e6), round(usage.ru_stime * 1e6)
            self._ledger.close_with_rusage(member.account, user_us, system_us, was_final=False)

    def exclude(self, pid: int) -> None:
        """This process, and what it starts, is no part of the tree."""
        self._excluded.add(pid)

    def root_alive(self) -> bool:
        """The root still runs, and is the same process."""
        member = self._members.get(self._root_pid)
        return member is not None and member.is_alive()

    @property
    def pids(self) -> Collection[int]:
        """All members that the last reading saw."""
        return self._members.keys()

    @property
    def peak_kib(self) -> int:
        """Highest sum of a reading, or the highest resident set of what was reaped."""
        return self._peak_kib

    def close(self) -> None:
        """Nothing is kept open."""

    def _add(self, pid: int, parent: PsutilProcess | None) -> PsutilProcess | None:
        with contextlib.suppress(*_FAILURES):
            member = PsutilProcess(pid, parent.account if parent is not None else None)
            self._members[pid] = member
            return member
        return None

    def _visit(self) -> int:
        queue = list(self._members.values())
        total_kib = 0
        gone = []
        for member in queue:
            rss_kib = member.read(self._ledger)
            if rss_kib is None:
                self._ledger.close(member.account)
                gone.append(member.pid)
                continue
            total_kib += rss_kib
            self._io_readable = self._io_readable or member.io_readable
            for pid in member.children():
                if pid not in self._members and pid not in self._excluded:
                    found = self._add(pid, member)
                    if found is not None:
                        queue.append(found)
        for pid in gone:
            self._members.pop(pid, None)
        self._ledger.end_reading()
        self._peak_kib = max(self._peak_kib, total_kib)
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


def _space() -> tuple[int | None, int | None, int | None]:
    """Of the root alone: volumes of one APFS container share their space, so a sum would count it many times."""
    with contextlib.suppress(*_FAILURES):
        found = psutil.disk_usage("/")
        return found.total, found.used, found.free
    return None, None, None
