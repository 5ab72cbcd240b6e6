"""Makes one row of everything the sensors read.

CPU time and bytes of a row are what the counters grew by since the row before; the first row's growth is measured
against the base line. Sums over a run's rows are exact: what a row may not show is carried into the next.
"""

import os
from resource import struct_rusage

from sentinel_collector.procfs import peak_rss_kib
from sentinel_collector.sampling.carry_over import ByteCarryOver, CpuCarryOver
from sentinel_collector.sampling.cpu_source import CpuTimeSource
from sentinel_collector.sampling.timestamps import MonotonicTimestamps
from sentinel_collector.sensors.baseline import Baseline
from sentinel_collector.sensors.cgroup.container_view import ContainerView
from sentinel_collector.sensors.interfaces import (
    NO_GPU,
    Accounting,
    GpuReading,
    GpuSensor,
    Reap,
    SystemReading,
    SystemSensors,
    TreeReading,
    TreeSensor,
)
from sentinel_collector.sensors.process_tree.pss_estimator import DEFAULT_SHARE
from sentinel_protocol.common.clock import Clock
from sentinel_protocol.wire.sample import Sample

_Int = int | None
_Float = float | None
_SystemColumns = tuple[
    _Int, _Float, _Float, _Float, _Float, _Float, _Float, _Float, _Float, _Float,
    _Int, _Int, _Float, _Float, _Float, _Int, _Int,
]  # fmt: skip
_TreeColumns = tuple[_Int, _Int, _Float, _Float, _Float, _Float, _Int, _Int, _Float, _Float, _Int]
_NO_TREE: _TreeColumns = (None, None, None, None, None, None, None, None, None, None, None)


class Sampler:
    """Rows of one run, in order. Not thread-safe: one thread reads.

    `baseline` was taken before the job was started. `root_pid` is the tracked process (`None`: the host alone);
    `own_child` says that this process started it after the base line; `adopt_orphans` that this process is a
    sub-reaper (`set_subreaper`). `accounting` stands in for the ledger's CPU time. With `container` (Linux only) the
    system columns are the container's; `host_root` is where the machine's root directory is mounted in a container that
    records the whole machine, empty where that is `/`. `pss_share` is the part of the time that reading PSS may take.
    Where `proc` is no Linux `/proc`, psutil reads.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        baseline: Baseline,
        root_pid: int | None,
        own_child: bool,
        interval_s: float,
        gpu: GpuSensor | None = None,
        accounting: Accounting | None = None,
        container: ContainerView | None = None,
        adopt_orphans: bool = False,
        pss_share: float = DEFAULT_SHARE,
        host_root: str = "",
        proc: str = "/proc",
        sys: str = "/sys",
    ) -> None:
        self._clock = clock
        self._gpu = gpu
        self._cpu_source = CpuTimeSource(accounting)
        self._root_pid = root_pid
        self._system: SystemSensors
        self._tree: TreeSensor | None = None
        if os.path.exists(f"{proc}/stat"):
            from sentinel_collector.sensors.linux.system import LinuxSystem
            from sentinel_collector.sensors.process_tree.tree import ProcessTree

            self._system = LinuxSystem(baseline=baseline, container=container, host_root=host_root, proc=proc, sys=sys)
            if root_pid is not None:
                self._tree = ProcessTree(
                    clock=clock,
                    root_pid=root_pid,
                    own_child=own_child,
                    adopt_orphans=adopt_orphans,
                    interval_s=interval_s,
                    pss_share=pss_share,
                    inherited_kib=_own_peak_kib(baseline) if own_child else 0,
                    proc=proc,
                )
        else:
            from sentinel_collector.sensors.psutil_fallback.system_and_tree import PsutilSystem, PsutilTree

            self._system = PsutilSystem()
            if root_pid is not None:
                self._tree = PsutilTree(root_pid=root_pid, own_child=own_child)
        self._timestamps = MonotonicTimestamps(wall=baseline.wall, monotonic=baseline.monotonic)
        self._last_monotonic = baseline.monotonic
        self._system_cpu = CpuCarryOver()
        self._tree_cpu = CpuCarryOver()
        self._read_bytes = ByteCarryOver()
        self._written_bytes = ByteCarryOver()
        self._last_memory_kib = 0.0
        self._is_over = False

    def sample(self) -> Sample:
        """Return the row of the time since the last one. Never raises for what cannot be read: its fields are empty."""
        return self._row(reap=None, is_last=False)

    def final(self, reap: Reap | None = None) -> Sample | None:
        """Return the last row; `None` when it was made before.

        The tree is read while its root is still a zombie, then `reap` is called, which waits for it (`wait4`) and
        returns what it got: the kernel's exact total, with which the sum over all rows agrees to the microsecond.
        A tree that is over has no memory, so the row repeats what was seen last; where nothing was seen before,
        it shows the highest resident set that the kernel recorded.
        """
        if self._is_over:
            if reap is not None:
                reap()
            return None
        self._is_over = True
        return self._row(reap=reap, is_last=True)

    def reaped(self, pid: int, usage: struct_rusage) -> None:
        """Tell of a member of the tree that this process waited for outside `final`."""
        if self._tree is not None:
            self._tree.reaped(pid, usage)

    def exclude(self, pid: int) -> None:
        """Keep a child of this process, such as an uploader it started, out of the tree; see `adopt_orphans`."""
        if self._tree is not None:
            self._tree.exclude(pid)

    def root_alive(self) -> bool:
        """The tracked process still runs: the same one, not another with its pid, and no zombie."""
        return self._tree is not None and self._tree.root_alive()

    def advance_past(self, timestamp: float) -> None:
        """Rows to come are stamped after `timestamp` (UNIX seconds), that of the run's last row so far."""
        self._timestamps.advance_past(timestamp, monotonic=self._clock.monotonic())

    @property
    def living(self) -> int:
        """Members of the tree in the last reading, zombies included; 0 when nothing is tracked."""
        return len(self._tree.pids) if self._tree is not None else 0

    @property
    def peak_memory_mib(self) -> float | None:
        """The tree's highest memory in MiB: of a row, or of one process as the kernel recorded it between rows.

        `None` where nothing is tracked, or nothing was seen of what was. Reads a file of each living member: meant for
        the end of a run, not for every row.
        """
        peak_kib = 0 if self._tree is None else self._tree.peak_kib
        return _mib(peak_kib) if peak_kib else None

    @property
    def accounting(self) -> str:
        """What the tree's CPU time is read from: `proc` (the ledger), or the name of what stands in for it."""
        return self._cpu_source.name

    def close(self) -> None:
        """Give all descriptors back."""
        self._system.close()
        if self._tree is not None:
            self._tree.close()

    def _row(self, *, reap: Reap | None, is_last: bool) -> Sample:
        clock = self._clock
        machine = self._system.read()
        # Between the CPU's reading and the tree's: both intervals are this one, but for microseconds.
        monotonic = clock.monotonic()
        wall = clock.now()
        elapsed_s = monotonic - self._last_monotonic
        self._last_monotonic = monotonic
        tree = None
        if self._tree is not None:
            tree = self._tree.read(forks=machine.forks, elapsed_s=elapsed_s, reap_root=reap)
        elif reap is not None:
            reap()
        gpu = NO_GPU if self._gpu is None else self._gpu.read(() if self._tree is None else self._tree.pids)
        limit_us = max(0, int(machine.cpus * elapsed_s * 1e6))
        row_limit_us = None if is_last else limit_us
        return Sample(
            self._timestamps.next(wall=wall, monotonic=monotonic),
            *self._system_columns(machine, row_limit_us, elapsed_s),
            gpu.system_usage,
            gpu.system_vram_mib,
            gpu.system_utilized,
            *(self._tree_columns(tree, gpu, machine.cpus, row_limit_us, elapsed_s) if tree is not None else _NO_TREE),
        )

    def _system_columns(self, machine: SystemReading, limit_us: int | None, elapsed_s: float) -> _SystemColumns:
        user_s = system_s = usage = None
        if machine.user_us is not None and machine.system_us is not None:
            user_us, system_us = self._system_cpu.for_row((machine.user_us, machine.system_us), limit_us)
            user_s, system_s = user_us / 1e6, system_us / 1e6
            usage = _cores(user_us + system_us, elapsed_s, machine.cpus)
        memory = machine.memory
        return (
            machine.processes,
            user_s,
            system_s,
            usage,
            _mib(memory.free),
            _mib(memory.used),
            _mib(memory.buffers),
            _mib(memory.cached),
            _mib(memory.active),
            _mib(memory.inactive),
            machine.disk_read,
            machine.disk_written,
            _gb(machine.space_total),
            _gb(machine.space_used),
            _gb(machine.space_free),
            machine.net_received,
            machine.net_sent,
        )

    def _tree_columns(
        self, tree: TreeReading, gpu: GpuReading, cpus: int, limit_us: int | None, elapsed_s: float
    ) -> _TreeColumns:
        grown_us = self._cpu_source.growth_us((tree.user_us, tree.system_us))
        user_us, system_us = self._tree_cpu.for_row(grown_us, limit_us)
        memory_kib = tree.memory_kib
        if memory_kib > 0:
            self._last_memory_kib = memory_kib
        elif limit_us is None and self._tree is not None:
            memory_kib = self._last_memory_kib or self._tree.peak_kib
        return (
            self._root_pid,
            tree.children,
            user_us / 1e6,
            system_us / 1e6,
            _cores(user_us + system_us, elapsed_s, cpus),
            # A job that was gone before anybody could look has left no figure of its own.
            _mib(int(memory_kib)) if memory_kib > 0 or limit_us is not None else None,
            self._read_bytes.for_row(tree.read_bytes),
            self._written_bytes.for_row(tree.written_bytes),
            gpu.process_usage,
            gpu.process_vram_mib,
            gpu.process_utilized,
        )


def _cores(used_us: int, elapsed_s: float, cpus: int) -> float:
    """Cores in use; a row of a few milliseconds holds whole ticks, hence the bound."""
    return round(min(used_us / 1e6 / elapsed_s, float(cpus)), 4) if elapsed_s > 0 else 0.0


def _mib(kib: int | None) -> float | None:
    """Thousandths, a half upwards, by whole numbers: `round` takes the way through decimal text."""
    return (kib * 1000 + 512 >> 10) / 1000 if kib is not None else None


def _gb(size: int | None) -> float | None:
    return (size + 500_000) // 1_000_000 / 1000 if size is not None else None


def _own_peak_kib(baseline: Baseline) -> int:
    """This process' own peak when the base line was taken, and a little for what it did until the start."""
    peak_kib = peak_rss_kib(baseline.status)
    return peak_kib + 1024 if peak_kib else 0
