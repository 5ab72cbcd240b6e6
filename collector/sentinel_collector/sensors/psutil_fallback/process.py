"""One process of the tree through psutil."""

import contextlib

import psutil

from sentinel_collector.sensors.process_tree.cpu_ledger import CpuLedger, ProcessAccount


class PsutilProcess:
    """A process by pid and creation time. `__init__` raises `psutil.Error` when it is gone."""

    def __init__(self, pid: int, parent: ProcessAccount | None) -> None:
        self.pid = pid
        self.account = ProcessAccount(parent)
        self.io_readable = False
        self._process = psutil.Process(pid)

    def read(self, ledger: CpuLedger) -> int | None:
        """Count its times and bytes and return its resident set in KiB; `None` when it is gone."""
        try:
            if not self._process.is_running():
                return None
            times = self._process.cpu_times()
            ledger.count_cpu(
                self.account,
                (round(times.user * 1e6), round(times.system * 1e6)),
                (
                    round(getattr(times, "children_user", 0.0) * 1e6),
                    round(getattr(times, "children_system", 0.0) * 1e6),
                ),
            )
        except psutil.NoSuchProcess:
            return None
        except psutil.Error:
            return 0
        # Missing on macOS.
        counters = getattr(self._process, "io_counters", None)
        if counters is not None:
            with contextlib.suppress(psutil.Error, OSError):
                io = counters()
                ledger.count_io(self.account, (io.read_bytes, io.write_bytes))
                self.io_readable = True
        with contextlib.suppress(psutil.Error):
            return int(self._process.memory_info().rss // 1024)
        return 0

    def children(self) -> list[int]:
        """Return its children now."""
        with contextlib.suppress(psutil.Error, OSError):
            return [child.pid for child in self._process.children()]
        return []

    def is_alive(self) -> bool:
        """Whether it is still the same process, and no zombie."""
        with contextlib.suppress(psutil.Error):
            return bool(self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE)
        return False
