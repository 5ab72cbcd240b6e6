"""CPU time of the whole machine, from `/proc/stat` (`proc(5)`)."""

import os

from sentinel_collector.procfs import ProcFile, read_with_reopen
from sentinel_collector.sensors.interfaces import CpuReading

TICK_US = 1_000_000 // os.sysconf("SC_CLK_TCK")
"""Microseconds per tick of `/proc/stat` and `/proc/PID/stat`: 10,000 nearly everywhere."""

_STAT_BYTES = 1 << 16


class CpuSensor:
    """Growth of the machine's CPU time since the previous reading. The first is measured against `baseline`."""

    def __init__(self, *, proc: str, baseline: bytes) -> None:
        self._file = ProcFile(f"{proc}/stat")
        self._last = _parse(baseline)
        self._cpus = os.cpu_count() or 1

    def read(self) -> CpuReading:
        """Read `/proc/stat` once."""
        data = read_with_reopen(self._file, size=_STAT_BYTES)
        times = _parse(data)
        if times is None:
            return CpuReading(self._cpus, 0, None, None)
        # Where the processors are not listed one by one, keep the number that the system gives.
        self._cpus = data.count(b"\ncpu") or self._cpus
        last, self._last = self._last, times
        if last is None:
            return CpuReading(self._cpus, _forks(data), None, None)
        # A counter may fall (a processor taken offline, lxcfs): that is no growth.
        user_us, system_us = max(0, times[0] - last[0]) * TICK_US, max(0, times[1] - last[1]) * TICK_US
        return CpuReading(self._cpus, _forks(data), user_us, system_us)

    def close(self) -> None:
        """Give the descriptor back."""
        self._file.close()


def _parse(data: bytes) -> tuple[int, int] | None:
    """Return user and nice ticks, and system ticks, of the first line; `None` for another file."""
    fields = data[:256].split(None, 4)
    if len(fields) < 4 or fields[0] != b"cpu":
        return None
    try:
        return int(fields[1]) + int(fields[2]), int(fields[3])
    except ValueError:
        return None


def _forks(data: bytes) -> int:
    start = data.rfind(b"\nprocesses ")
    if start < 0:
        return 0
    end = data.find(b"\n", start + 11)
    try:
        return int(data[start + 11 : end if end > 0 else len(data)])
    except ValueError:
        return 0
