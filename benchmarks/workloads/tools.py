"""Parts of the workloads."""

import json
import mmap
import os
import resource
import time
from collections.abc import Callable, Mapping

_PAGE_BYTES = mmap.PAGESIZE


def burn(seconds: float) -> None:
    """Use one core until this thread has used so many seconds of CPU time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def spawn(work: Callable[[], object]) -> int:
    """Fork a child that does `work` and ends; returns its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def wait_for(pids: list[int]) -> None:
    """Reap children."""
    for pid in pids:
        os.waitpid(pid, 0)


def touched(size: int, *, shared: bool = False) -> mmap.mmap:
    """Return anonymous memory with every 4 KiB page resident, without huge pages."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    touch(memory)
    return memory


def touch(memory: mmap.mmap) -> None:
    """Write to every page."""
    for offset in range(0, len(memory), _PAGE_BYTES):
        memory[offset] = 1


def pss_mib(pids: list[int]) -> float:
    """Return the proportional set size of processes together, from `/proc/PID/smaps_rollup`."""
    total_kib = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            total_kib += next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    return total_kib / 1024


def report(figures: Mapping[str, float] | None) -> None:
    """Write the usage of this process and its reaped children, and other facts, to `BENCH_REPORT`."""
    if "BENCH_REPORT" not in os.environ:
        return
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    content = {"cpu_s": sum(one.ru_utime + one.ru_stime for one in used), **(figures or {})}
    with open(os.environ["BENCH_REPORT"], "w", encoding="ascii") as file:
        json.dump(content, file)
