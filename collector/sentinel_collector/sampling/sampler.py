"""Makes one row of everything that the sensors read.

CPU time and bytes of a row are the counters' growth since the row before. The first row's growth is measured against
the baseline. Sums over a run's rows are exact: growth that a row may not show is carried into the next.
"""

import os
from collections.abc import Callable
from typing import Any

from sentinel_collector.procfs import peak_rss_kib
from sentinel_collector.sampling.carry_over import ByteCarryOver, CpuCarryOver
from sentinel_collector.sampling.cpu_source import CpuTimeSource
from sentinel_collector.sampling.timestamps import MonotonicTimestamps
from sentinel_collector.sensors.baseline import Baseline
from sentinel_collector.sensors.cgroup.container_view import ContainerView
from sentinel_collector.sensors.interfaces import (
    NO_GPU,
    Accounting,
    CpuReading,
    GpuReading,
    GpuSensor,
    Reap,
    RUsage,
    SystemSensors,
    TakeReaped,
    TreeReading,
    TreeSensor,
)
from sentinel_collector.sensors.process_tree.pss_estimator import DEFAULT_SHARE
from sentinel_protocol.common.clock import Clock
from sentinel_protocol.wire.sample import Sample


class Sampler:
    """Rows of one run, in order. Not thread-safe.

    * `baseline`: captured before the job was started.
    * `root_pid`: the tracked process; `None` records the host alone.
    * `own_child`: the root was started after the baseline.
    * `adopter_pid`, `take_reaped`: the sub-reaper that started the root, and the orphans that it has reaped.
    * `accounting`: a counter of the tree's CPU time that replaces the ledger.
    * `container`: the system columns are this container's (Linux only).
    * `host_root`: where a container that records the whole machine has the machine's root directory; empty for `/`.
    * `pss_share`: the part of the time that reading PSS may take.
    * `warn`: gets a line when a sensor hangs.

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
        adopter_pid: int = 0,
        take_reaped: TakeReaped = tuple,
        pss_share: float = DEFAULT_SHARE,
        host_root: str = "",
        warn: Callable[[str], None] = lambda _: None,
        proc: str = "/proc",
        sys: str = "/sys",
    ) -> None:
        self._clock = clock
        self._gpu = gpu
        self._cpu_source = CpuTimeSource(accounting)
        self._root_pid = root_pid
        self._system: SystemSensors
        self._tree: TreeSensor | None = None
        # long: the one place that knows both kinds of sensors and all that each is made from.
        if os.path.exists(f"{proc}/stat"):
            from sentinel_collector.sensors.linux.system import LinuxSystem
            from sentinel_collector.sensors.process_tree.tree import ProcessTree

            self._system = LinuxSystem(
                baseline=baseline,
                container=container,
                host_root=host_root,
                warn=warn,
                on_started=self.exclude,
                proc=proc,
                sys=sys,
            )
            if root_pid is not None:
                self._tree = ProcessTree(
                    clock=clock,
                    root_pid=root_pid,
                    own_child=own_child,
                    adopter_pid=adopter_pid,
                    take_reaped=take_reaped,
                    interval_s=interval_s,
                    pss_share=pss_share,
                    inherited_kib=_own_peak_kib(baseline) if own_child or adopter_pid else 0,
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
        """Return the row of the time since the last one. Fields that cannot be read are empty; nothing is raised."""
        return self._row(reap=None, is_last=False)

    def final(self, reap: Reap | None = None) -> Sample | None:
        """Return the last row; `None` when it was made before.

        The tree is read while its root is still a zombie. Then `reap` waits for the root and returns the kernel's exact
        total (`wait4`). The sum over all rows agrees with that total to the microsecond. A tree that has ended has no
        memory, so the row repeats the last figure; without one, it shows the highest resident set that the kernel
        recorded.
        """
        if self._is_over:
            if reap is not None:
                reap()
            return None
        self._is_over = True
        return self._row(reap=reap, is_last=True)

    def reaped(self, pid: int, usage: RUsage) -> None:
        """Take the totals of a process of the tree that this process waited for outside `final`."""
        if self._tree is not None:
            self._tree.reaped(pid, usage)

    def exclude(self, pid: int) -> None:
        """Keep a child of this process out of the tree, such as an uploader that it started."""
        if self._tree is not None:
            self._tree.exclude(pid)

    def root_alive(self) -> bool:
        """Whether the tracked process still runs: not another one with its pid, and no zombie."""
        return self._tree is not None and self._tree.root_alive()

    def advance_past(self, timestamp: float) -> None:
        """Give the next rows time stamps after `timestamp` (UNIX seconds), that of the run's last row so far."""
        self._timestamps.advance_past(timestamp, monotonic=self._clock.monotonic())

    def left_running(self) -> list[int]:
        """Return the processes of the tree that were alive in the last reading, without the root."""
        return [] if self._tree is None else [pid for pid in self._tree.pids if pid != self._root_pid]

    @property
    def living(self) -> int:
        """Processes of the tree in the last reading, zombies included; 0 when nothing is tracked."""
        return len(self._tree.pids) if self._tree is not None else 0

    @property
    def peak_memory_mib(self) -> float | None:
        """The tree's highest memory in MiB: of a row, or of one process as the kernel recorded it between rows.

        `None` where nothing is tracked or nothing was seen. Reads a file of each living process: call it at the end of
        a run, not for every row.
        """
        peak_kib = 0 if self._tree is None else self._tree.peak_kib
        return _mib(peak_kib) if peak_kib else None

    @property
    def accounting(self) -> str:
        """The source of the tree's CPU time: `proc` (the ledger), or the name of the counter that replaces it."""
        return self._cpu_source.name

    def close(self) -> None:
        """Give all descriptors back."""
        self._system.close()
        if self._tree is not None:
            self._tree.close()

    def _row(self, *, reap: Reap | None, is_last: bool) -> Sample:
        clock = self._clock
        machine = self._system.read()
        # Between the readings of the CPU and of the tree: both intervals are this one to within microseconds.
        monotonic = clock.monotonic()
        wall = clock.now()
        elapsed_s = monotonic - self._last_monotonic
        self._last_monotonic = monotonic
        tree = None
        if self._tree is not None:
            tree = self._tree.read(forks=machine.cpu.forks, elapsed_s=elapsed_s, reap_root=reap)
        elif reap is not None:
            reap()
        gpu = NO_GPU if self._gpu is None else self._gpu.read(() if self._tree is None else self._tree.pids)
        cpus = machine.cpu.cpus
        limit_us = None if is_last else max(0, int(cpus * elapsed_s * 1e6))
        system_utime, system_stime, system_cpu_usage = self._system_cpu_figures(machine.cpu, limit_us, elapsed_s)
        memory = machine.memory
        disk_read, disk_written = machine.disk
        space_total, space_used, space_free = machine.space or (None, None, None)
        net_received, net_sent = machine.network
        return Sample(
            timestamp=self._timestamps.next(wall=wall, monotonic=monotonic),
            system_processes=machine.processes,
            system_utime=system_utime,
            system_stime=system_stime,
            system_cpu_usage=system_cpu_usage,
            system_memory_free_mib=_mib(memory.free),
            system_memory_used_mib=_mib(memory.used),
            system_memory_buffers_mib=_mib(memory.buffers),
            system_memory_cached_mib=_mib(memory.cached),
            system_memory_active_mib=_mib(memory.active),
            system_memory_inactive_mib=_mib(memory.inactive),
            system_disk_read_bytes=disk_read,
            system_disk_write_bytes=disk_written,
            system_disk_space_total_gb=_gb(space_total),
            system_disk_space_used_gb=_gb(space_used),
            system_disk_space_free_gb=_gb(space_free),
            system_net_recv_bytes=net_received,
            system_net_sent_bytes=net_sent,
            system_gpu_usage=gpu.system_usage,
            system_gpu_vram_mib=gpu.system_vram_mib,
            system_gpu_utilized=gpu.system_utilized,
            **(self._tree_columns(tree, gpu, cpus, limit_us, elapsed_s) if tree is not None else {}),
        )

    def _system_cpu_figures(
        self, cpu: CpuReading, limit_us: int | None, elapsed_s: float
    ) -> tuple[float | None, float | None, float | None]:
        """Return user and system seconds, and the cores in use."""
        if cpu.user_us is None or cpu.system_us is None:
            return None, None, None
        user_us, system_us = self._system_cpu.for_row((cpu.user_us, cpu.system_us), limit_us)
        return user_us / 1e6, system_us / 1e6, _cores(user_us + system_us, elapsed_s, cpu.cpus)

    def _tree_columns(
        self, tree: TreeReading, gpu: GpuReading, cpus: int, limit_us: int | None, elapsed_s: float
    ) -> dict[str, Any]:
        ledger_us = None if tree.user_us is None or tree.system_us is None else (tree.user_us, tree.system_us)
        grown_us = self._cpu_source.growth_us(ledger_us)
        user_us, system_us = (None, None) if grown_us is None else self._tree_cpu.for_row(grown_us, limit_us)
        memory_kib = tree.memory_kib
        if memory_kib:
            self._last_memory_kib = memory_kib
        elif limit_us is None and self._tree is not None:
            # A job that ended before the first look at it has left no figure of its own.
            memory_kib = self._last_memory_kib or self._tree.peak_kib or None
        return {
            "process_pid": self._root_pid,
            "process_children": tree.children,
            "process_utime": None if user_us is None else user_us / 1e6,
            "process_stime": None if system_us is None else system_us / 1e6,
            "process_cpu_usage": None
            if user_us is None or system_us is None
            else _cores(user_us + system_us, elapsed_s, cpus),
            "process_memory_mib": None if memory_kib is None else _mib(int(memory_kib)),
            "process_disk_read_bytes": self._read_bytes.for_row(tree.read_bytes),
            "process_disk_write_bytes": self._written_bytes.for_row(tree.written_bytes),
            "process_gpu_usage": gpu.process_usage,
            "process_gpu_vram_mib": gpu.process_vram_mib,
            "process_gpu_utilized": gpu.process_utilized,
        }


def _cores(used_us: int, elapsed_s: float, cpus: int) -> float:
    """Return the cores in use. A row of a few milliseconds holds whole ticks, hence the bound."""
    return round(min(used_us / 1e6 / elapsed_s, float(cpus)), 4) if elapsed_s > 0 else 0.0


def _mib(kib: int | None) -> float | None:
    """Round to thousandths, a half upwards, in integers: `round` goes through decimal text."""
    return (kib * 1000 + 512 >> 10) / 1000 if kib is not None else None


def _gb(size: int | None) -> float | None:
    return (size + 500_000) // 1_000_000 / 1000 if size is not None else None


def _own_peak_kib(baseline: Baseline) -> int:
    """Return this process' own peak when the baseline was captured, and 1 MiB for its growth until the start."""
    peak_kib = peak_rss_kib(baseline.status)
    return peak_kib + 1024 if peak_kib else 0
