"""Fake processes below a directory, and a clock by which reading them takes time."""

import threading
from pathlib import Path

from sentinel_collector.procfs import FdBudget
from sentinel_collector.sensors.process_tree.cpu_ledger import CpuLedger
from sentinel_collector.sensors.process_tree.process import TrackedProcess
from sentinel_collector.sensors.process_tree.pss_state import PAGE_KIB


class CostlyClock:
    """Each call of `thread_time` takes `cost_s`, so each reading does."""

    def __init__(self, cost_s: float) -> None:
        self.cost_s = cost_s
        self.time_s = 0.0

    def now(self) -> float:
        return 0.0

    def monotonic(self) -> float:
        return 0.0

    def thread_time(self) -> float:
        self.time_s += self.cost_s
        return self.time_s

    def wait_for(self, event: threading.Event, timeout_s: float | None) -> bool:
        return event.is_set() or timeout_s == 0


class FakeProc:
    """A `/proc` of fake processes; also over the real `/proc`, for `process` alone."""

    def __init__(self, proc: Path) -> None:
        self.proc = proc
        self.ledger = CpuLedger()

    def put(
        self,
        pid: int,
        *,
        rss: int,
        pss: int | None,
        faults: int = 0,
        shared: int = 0,
        shared_pss: int | None = 0,
        shmem: int = 0,
        private: int | None = None,
    ) -> None:
        """Write the files of a process; all sizes are in KiB.

        `shared_pss` is the part of `pss` that is not anonymous, `shmem` the part of that which is shared memory.
        `private` is the memory that no other process has (by default, all anonymous memory).
        """
        directory = self.proc / str(pid)
        directory.mkdir(exist_ok=True)
        before = f"{pid} (a) b) S 1 1 1 0 -1 0 {faults} 0 0 0 1 2 3 4 20 0 1 0 55 4096 {rss // PAGE_KIB} 99\n"
        (directory / "stat").write_text(before)
        (directory / "status").write_text(f"Name:\ta\nVmHWM:\t{rss * 2} kB\n")
        (directory / "statm").write_text(f"9999 {rss // PAGE_KIB} {shared // PAGE_KIB} 1 0 99 0\n")
        (directory / "smaps_rollup").unlink(missing_ok=True)
        if pss is not None:
            anon = "" if shared_pss is None else f"Pss_Anon:  {pss - shared_pss} kB\n"
            anon += "" if shared_pss is None else f"Pss_Shmem: {shmem} kB\n"
            anon += f"Anonymous: {rss - shared} kB\n"
            anon += "Private_Clean: 0 kB\n"
            anon += f"Private_Dirty: {pss - (shared_pss or 0) if private is None else private} kB\n"
            rollup = f"0-1 [rollup]\nRss: {rss} kB\nPss:  {pss} kB\nPss_Dirty: 1 kB\n{anon}Pss_File: 1 kB\n"
            (directory / "smaps_rollup").write_text(rollup)

    def end(self, pid: int) -> None:
        """Make a process a zombie, which has no memory."""
        stat = self.proc / str(pid) / "stat"
        stat.write_text(stat.read_text().replace(") S ", ") Z "))
        (self.proc / str(pid) / "smaps_rollup").unlink()

    def process(self, pid: int) -> TrackedProcess:
        member = TrackedProcess(pid, proc=str(self.proc), budget=FdBudget(0), parent=None)
        assert member.read(self.ledger)
        return member
