"""What the sensors hand to the sampler. Times are integer microseconds, so that no sum ever drifts."""

from collections.abc import Callable, Collection
from resource import struct_rusage
from typing import NamedTuple, Protocol

Reap = Callable[[], struct_rusage | None]
"""Waits for the root (`wait4`) and returns what it got; `None` when somebody else did."""


class MemoryReading(NamedTuple):
    """`/proc/meminfo` in KiB; `used` is total less available, `cached` includes reclaimable slab."""

    free: int | None = None
    used: int | None = None
    buffers: int | None = None
    cached: int | None = None
    active: int | None = None
    inactive: int | None = None


class SystemReading(NamedTuple):
    """The whole machine, or the container: growth since the previous reading, and levels now; `None`: unknown.

    `user_us` and `system_us` are CPU microseconds, `disk_*` and `net_*` bytes since the previous reading;
    `space_*` are bytes of all mounted real file systems. `forks` is the kernel's count of processes and
    threads ever made (0: unknown).
    """

    cpus: int
    forks: int
    user_us: int | None
    system_us: int | None
    processes: int | None
    memory: MemoryReading
    disk_read: int | None
    disk_written: int | None
    space_total: int | None
    space_used: int | None
    space_free: int | None
    net_received: int | None
    net_sent: int | None


class TreeReading(NamedTuple):
    """The tracked tree: growth since the previous reading, and levels now.

    `memory_kib` is PSS (moved by RSS since it was last read); `read_bytes` and `written_bytes` are `None` when
    the kernel shows them for no member.
    """

    user_us: int
    system_us: int
    children: int
    memory_kib: float
    read_bytes: int | None
    written_bytes: int | None


class SystemSensors(Protocol):
    """The whole machine. Linux and psutil implement it."""

    def read(self) -> SystemReading:
        """Read everything; never raises: what cannot be read is `None`."""

    def close(self) -> None:
        """Give descriptors back."""


class TreeSensor(Protocol):
    """One process and its descendants. Linux and psutil implement it."""

    def read(self, *, forks: int, elapsed_s: float, reap_root: Reap | None = None) -> TreeReading:
        """Read the tree; `forks` is `SystemReading.forks` read just before, `elapsed_s` the row's length.

        `reap_root` is called once the root's zombie was read, and makes the reading exact.
        """

    def reaped(self, pid: int, usage: struct_rusage) -> None:
        """A member was waited for by this process: its exact total (with what it had reaped itself) is known."""

    def exclude(self, pid: int) -> None:
        """This child of the collector's own, and what it starts, is no part of the tree."""

    def root_alive(self) -> bool:
        """The root still runs: same pid, same start time, no zombie."""

    @property
    def pids(self) -> Collection[int]:
        """All members that the last reading saw."""

    @property
    def peak_kib(self) -> int:
        """The highest memory of the tree, or of one member, that was seen or that the kernel recorded."""

    def close(self) -> None:
        """Give descriptors back."""


class Accounting(Protocol):
    """A counter of the tree's CPU time that stands in for the ledger, such as a cgroup of the run's own."""

    @property
    def name(self) -> str:
        """What it is, for the run's metadata: `cgroup`, `perf`."""

    def growth_us(self) -> tuple[int, int] | None:
        """User and system microseconds of the tree since the last call; `None` when it went bad."""


class GpuReading(NamedTuple):
    """GPUs at one moment; a field that cannot be read is `None`.

    `*_usage` counts GPUs in use (0 to the number of GPUs), `*_vram_mib` is memory in MiB, `*_utilized` counts
    GPUs above zero. `process_*` is the share of the processes that were asked for, zero when none was.
    """

    system_usage: float | None = 0.0
    system_vram_mib: float | None = 0.0
    system_utilized: int | None = 0
    process_usage: float | None = 0.0
    process_vram_mib: float | None = 0.0
    process_utilized: int | None = 0


NO_GPU = GpuReading()
"""What a machine without a GPU reads."""


class GpuSensor(Protocol):
    """One kind of GPU, any number of devices."""

    def read(self, pids: Collection[int]) -> GpuReading:
        """Read all devices and what `pids` (the tracked tree; empty when nothing is tracked) use of them.

        Called once a row, on the sampler's thread: must not block (a device that hangs is waited for
        elsewhere) and must not raise; what cannot be read is `None`.
        """
