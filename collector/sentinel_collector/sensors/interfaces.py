"""The sensors that the sampler reads, and their readings. Times are integer microseconds, so that no sum drifts."""

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple, Protocol


class RUsage(Protocol):
    """The part of `struct_rusage` that is used: CPU seconds of a process and its reaped children, and its peak."""

    @property
    def ru_utime(self) -> float:
        """User seconds."""

    @property
    def ru_stime(self) -> float:
        """System seconds."""

    @property
    def ru_maxrss(self) -> int:
        """Highest resident set in KiB."""


class Usage(NamedTuple):
    """`RUsage` of a process that another process has waited for."""

    ru_utime: float
    ru_stime: float
    ru_maxrss: int


Reap = Callable[[], RUsage | None]
"""Waits for the root (`wait4`) and returns its totals; `None` when another process has waited for it."""
TakeReaped = Callable[[], Iterable[tuple[int, RUsage]]]
"""Returns the orphans that were reaped since the last call, by pid, with their totals (pid 0: of several)."""


class MemoryReading(NamedTuple):
    """`/proc/meminfo` in KiB; `used` is total less available, `cached` includes reclaimable slab."""

    free: int | None = None
    used: int | None = None
    buffers: int | None = None
    cached: int | None = None
    active: int | None = None
    inactive: int | None = None


class CpuReading(NamedTuple):
    """`user_us` is user and nice, guests included; `system_us` is system mode without interrupts.

    `cpus` counts the processors that are online, `forks` the processes and threads since boot (0: unknown).
    """

    cpus: int
    forks: int
    user_us: int | None
    system_us: int | None


class SystemReading(NamedTuple):
    """The whole machine, or the container: growth since the previous reading, and levels now; `None`: unknown.

    `disk` is bytes read and written, `network` bytes received and sent since the previous reading. `space` is total,
    used and free bytes of all mounted real file systems.
    """

    cpu: CpuReading
    processes: int | None
    memory: MemoryReading
    disk: tuple[int | None, int | None]
    space: tuple[int, int, int] | None
    network: tuple[int | None, int | None]


class TreeReading(NamedTuple):
    """The tracked tree: growth since the previous reading, and levels now. `None`: a process cannot be seen.

    Growth that a row does not show is part of the next one that shows it.

    `memory_kib` is PSS, moved by the change of RSS since it was read. `read_bytes` and `written_bytes` are `None` when
    the kernel shows them for no process.
    """

    user_us: int | None
    system_us: int | None
    children: int | None
    memory_kib: float | None
    read_bytes: int | None
    written_bytes: int | None


class SystemSensors(Protocol):
    """The whole machine. Linux and psutil implement it."""

    def read(self) -> SystemReading:
        """Read everything; never raises. A figure that cannot be read is `None`."""

    def close(self) -> None:
        """Give descriptors back."""


class TreeSensor(Protocol):
    """One process and its descendants. Linux and psutil implement it."""

    def read(self, *, forks: int, elapsed_s: float, reap_root: Reap | None = None) -> TreeReading:
        """Read the tree; `forks` is `CpuReading.forks` of the same row, `elapsed_s` the row's length.

        `reap_root` is called after the root's zombie was read, and makes the reading exact.
        """

    def reaped(self, pid: int, usage: RUsage) -> None:
        """Take the exact totals of a process that this process waited for; its reaped children are included."""

    def exclude(self, pid: int) -> None:
        """Leave this child of the collector, and its descendants, out of the tree."""

    def root_alive(self) -> bool:
        """Whether the root still runs: same pid, same start time, no zombie."""

    @property
    def pids(self) -> Collection[int]:
        """All processes of the last reading."""

    @property
    def peak_kib(self) -> int:
        """The highest memory of the tree in a row, or of one process as the kernel recorded it."""

    def close(self) -> None:
        """Give descriptors back."""


class Accounting(Protocol):
    """A counter of the tree's CPU time that replaces the ledger, such as the run's own cgroup."""

    @property
    def name(self) -> str:
        """Its name in the run's metadata: `cgroup`."""

    def growth_us(self) -> tuple[int, int] | None:
        """Return user and system microseconds of the tree since the last call; `None` when the counter is gone."""


class GpuReading(NamedTuple):
    """All GPUs at one moment; a figure that cannot be read is `None`.

    `*_usage` counts GPUs in use (0 to the number of GPUs), `*_vram_mib` is memory in MiB, `*_utilized` counts GPUs
    with a usage above zero. `process_*` is the share of the given processes, zero when there are none.
    """

    system_usage: float | None = 0.0
    system_vram_mib: float | None = 0.0
    system_utilized: int | None = 0
    process_usage: float | None = 0.0
    process_vram_mib: float | None = 0.0
    process_utilized: int | None = 0


NO_GPU = GpuReading()
"""The reading of a machine without a GPU."""


class GpuSensor(Protocol):
    """All GPUs of the machine."""

    def read(self, pids: Collection[int]) -> GpuReading:
        """Read all devices, and the share of `pids` (the tracked tree; empty when nothing is tracked).

        Called once a row on the sampler's thread. It must not block on a device that hangs, and must not raise.
        """
