"""CPU time of a cgroup and all below it: v2 `cpu.stat`, v1 `cpuacct.usage` and `cpuacct.stat`.

Every v2 cgroup has `cpu.stat` with the three figures that are read here, also where the cpu controller is not enabled
(kernel's `Documentation/admin-guide/cgroup-v2.rst`). Imports `os` alone: the job waits for it.
"""

from __future__ import annotations

import os

_READ_BYTES = 4096


class CpuCounter:
    """The total is exact, from the scheduler. Its split into user and system mode is the kernel's estimate by ticks."""

    def __init__(self, directory: str, *, is_v2: bool) -> None:
        """Raises `OSError` when the files are not there."""
        self._is_v2 = is_v2
        self._split_fd = -1
        self._user_us = self._system_us = 0
        self._last = (b"", 0)
        self._total_fd = _open(f"{directory}/{'cpu.stat' if is_v2 else 'cpuacct.usage'}")
        if not is_v2:
            try:
                self._split_fd = _open(f"{directory}/cpuacct.stat")
            except OSError:
                self.close()
                raise

    def total_us(self) -> int:
        """Return the microseconds since the cgroup was made; raises `OSError` or `ValueError`."""
        return self._times(os.pread(self._total_fd, _READ_BYTES, 0))[0]

    def times_us(self, *, without_us: int = 0) -> tuple[int, int]:
        """Return user and system microseconds. Their sum is the total less `without_us`, and neither ever falls.

        Raises `OSError` or `ValueError`.
        """
        data = os.pread(self._total_fd, _READ_BYTES, 0)
        if (data, without_us) == self._last:
            # No CPU time since: the split must not change either.
            return self._user_us, self._system_us
        total_us, user, system = self._times(data)
        self._last = (data, without_us)
        total_us = max(total_us - without_us, self._user_us + self._system_us)
        user_us = total_us * user // (user + system) if user + system else total_us
        # As the kernel does it for a process (`cputime_adjust`).
        self._user_us = max(self._user_us, min(user_us, total_us - self._system_us))
        self._system_us = total_us - self._user_us
        return self._user_us, self._system_us

    def close(self) -> None:
        """Give the descriptors back."""
        for descriptor in (self._total_fd, self._split_fd):
            if descriptor >= 0:
                os.close(descriptor)
        self._total_fd = self._split_fd = -1

    def _times(self, data: bytes) -> tuple[int, int, int]:
        if self._is_v2:
            words = data.split()
            return _value(words, b"usage_usec"), _value(words, b"user_usec"), _value(words, b"system_usec")
        words = os.pread(self._split_fd, _READ_BYTES, 0).split()
        return int(data) // 1000, _value(words, b"user"), _value(words, b"system")


def _value(words: list[bytes], name: bytes) -> int:
    return int(words[words.index(name) + 1])


def _open(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
