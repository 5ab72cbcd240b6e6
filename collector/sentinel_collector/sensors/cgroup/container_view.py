"""The container that we are in, as its cgroups show it: processors, memory, CPU time and processes.

A limit may be set in our own cgroup or in any visible one above it. The strictest one counts, and usage is read from
the cgroup that has it. Without a limit, usage is read from the topmost visible cgroup where only a part of the
hierarchy is mounted (that part is the container), else from our own. Files: kernel's
`Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/{memory,cpuacct,cpusets}.rst`, `scheduler/sched-bwc.rst`.

It is read before the job starts, because the first row's growth is measured against that. Imports `os` alone.
"""

from __future__ import annotations

import os

from sentinel_collector.procfs import INITIAL_PID_NAMESPACE, link_target, read_whole
from sentinel_collector.sensors.cgroup.cpu import CpuCounter
from sentinel_collector.sensors.cgroup.hierarchy import CgroupMount, find_mounts

TYPE_CHECKING = False  # `typing` itself would cost milliseconds of the job's start
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sentinel_collector.sensors.interfaces import MemoryReading

AUTO = "auto"
HOST = "host"
CONTAINER = "container"

_INITIAL_NAMESPACES = {"cgroup": "cgroup:[4026531835]", "pid": INITIAL_PID_NAMESPACE}
"""The first is `PROC_CGROUP_INIT_INO`, a constant of the kernel."""
_MARKS = (".dockerenv", "run/.containerenv")
_MARKING_VARIABLES = ("KUBERNETES_SERVICE_HOST", "container")
_MEMORY_STAT = (
    b"inactive_file",
    b"active_file",
    b"inactive_anon",
    b"active_anon",
    b"file",
    b"slab_reclaimable",
)
_MEMORY_STAT_V1 = (
    b"total_inactive_file",
    b"total_active_file",
    b"total_inactive_anon",
    b"total_active_anon",
    b"total_cache",
    b"",
)


class ContainerView:
    """The limits and the usage.

    `vcpus` is the quota, rounded up, or the number of processors in the cpuset where that is less. `memory_mib` is the
    memory limit (`None`: no limit). `limited` says whether there is a quota or a memory limit, `has_cpu` and
    `has_memory` whether CPU time and memory are counted.
    """

    def __init__(self, *, proc: str = "/proc") -> None:
        mounts = find_mounts(proc)
        memory, quota = _mount_of(mounts, "memory"), _mount_of(mounts, "cpu")
        host_bytes = int(read_whole(f"{proc}/meminfo").split(None, 2)[1]) * 1024
        limit_bytes, memory_level = _strictest_limit(memory, _memory_limit)
        if limit_bytes >= host_bytes:
            # v1 writes "no limit" as a huge number.
            limit_bytes, memory_level = 0, ""
        self._limit_bytes = int(limit_bytes)
        cores, quota_level = _strictest_limit(quota, _quota_cores)
        self.limited = bool(self._limit_bytes or cores)
        self.memory_mib = round(self._limit_bytes / (1 << 20), 3) if self._limit_bytes else None
        processors = _processors(_mount_of(mounts, "cpuset"))
        self.vcpus = max(1, min(processors, -int(-cores // 1))) if cores else processors
        self._memory_is_v2 = memory is not None and memory.is_v2
        self._memory_cgroup = memory_level or _own_cgroup(memory)
        if _integer(self._memory_file()) is None:
            self._memory_cgroup = ""
        self.has_memory = bool(self._memory_cgroup)
        self._cpu = _cpu_counter(_mount_of(mounts, "cpuacct"), quota, quota_level)
        self.has_cpu = self._cpu is not None
        self._last_us = self._cpu_times()
        self._count_cgroup = ""
        if link_target(f"{proc}/self/ns/pid") == INITIAL_PID_NAMESPACE:
            # In a name space of its own, /proc lists the container's processes and no others.
            self._count_cgroup = self._memory_cgroup or quota_level

    def cpu_growth_us(self) -> tuple[int, int] | None:
        """Return user and system microseconds since the last call or since `__init__`; `None` when unreadable."""
        last, self._last_us = self._last_us, self._cpu_times()
        if last is None or self._last_us is None:
            return None
        return self._last_us[0] - last[0], self._last_us[1] - last[1]

    def memory(self) -> MemoryReading | None:
        """Read the levels now; `None` when they cannot be read.

        `used` is the working set that docker and kubectl show: all but the inactive file cache. `free` is the rest of
        the limit, `None` without one. `cached` includes reclaimable slab where it is known (v2).
        """
        from sentinel_collector.sensors.interfaces import MemoryReading

        current = _integer(self._memory_file())
        words = read_whole(f"{self._memory_cgroup}/memory.stat").split()
        if current is None or not words:
            return None
        values = dict(zip(words[::2], words[1::2], strict=False))
        names = _MEMORY_STAT if self._memory_is_v2 else _MEMORY_STAT_V1
        inactive_file, active_file, inactive_anon, active_anon, cached, slab = (
            int(values.get(name, b"0")) for name in names
        )
        return MemoryReading(
            free=max(0, self._limit_bytes - current) // 1024 if self._limit_bytes else None,
            used=max(0, current - inactive_file) // 1024,
            cached=(cached + slab) // 1024,
            active=(active_file + active_anon) // 1024,
            inactive=(inactive_file + inactive_anon) // 1024,
        )

    def processes(self) -> int | None:
        """Return the number of processes in the cgroup and below; `None` where `/proc` lists these and no others.

        `pids.current` is not used: it counts threads.
        """
        return _count_processes(self._count_cgroup) if self._count_cgroup else None

    def close(self) -> None:
        """Give descriptors back."""
        if self._cpu is not None:
            self._cpu.close()

    def _memory_file(self) -> str:
        return f"{self._memory_cgroup}/{'memory.current' if self._memory_is_v2 else 'memory.usage_in_bytes'}"

    def _cpu_times(self) -> tuple[int, int] | None:
        try:
            return None if self._cpu is None else self._cpu.times_us()
        except (OSError, ValueError):
            return None


def detect_container(
    scope: str,
    environ: Mapping[str, str],
    *,
    records_host: bool = False,
    proc: str = "/proc",
    root: str = "/",
) -> ContainerView | None:
    """Return the view of the container, `None` where the host is recorded; never raises.

    With `scope` `container` it is used wherever cgroups have counters. With `auto` it is used in a container that has a
    CPU quota or a memory limit (without one it may use the whole host), unless the container `records_host`.
    """
    if scope == HOST or (scope == AUTO and records_host):
        return None
    if scope == AUTO and not is_in_container(environ, proc=proc, root=root):
        return None
    try:
        view = ContainerView(proc=proc)
    except (OSError, ValueError, IndexError):
        return None
    if (view.has_cpu or view.has_memory) and (view.limited or scope == CONTAINER):
        return view
    view.close()
    return None


def is_in_container(environ: Mapping[str, str], *, proc: str = "/proc", root: str = "/") -> bool:
    """Whether this is a container: it has its own cgroup or pid name space, or the mark of an engine.

    The mark is a file (Docker, Podman) or a variable (Kubernetes; `container` of systemd's container interface).
    """
    for name, initial in _INITIAL_NAMESPACES.items():
        if link_target(f"{proc}/self/ns/{name}") not in {"", initial}:
            return True
    if any(environ.get(name) for name in _MARKING_VARIABLES):
        return True
    return any(os.path.exists(os.path.join(root, mark)) for mark in _MARKS)


def _mount_of(mounts: list[CgroupMount], controller: str) -> CgroupMount | None:
    """Return the hierarchy that has the controller: v1 where it exists, else v2."""
    for mount in mounts:
        if controller in mount.controllers:
            return mount
    return next((mount for mount in mounts if mount.is_v2), None)


def _strictest_limit(mount: CgroupMount | None, limit_of: Callable[[str], float]) -> tuple[float, str]:
    """Return the smallest limit and the nearest cgroup that has it; 0 and an empty path without a limit."""
    found, level = 0.0, ""
    for directory in mount.ancestors() if mount is not None else ():
        limit = limit_of(directory)
        if limit and (not found or limit < found):
            found, level = limit, directory
    return found, level


def _own_cgroup(mount: CgroupMount | None) -> str:
    if mount is None:
        return ""
    levels = mount.ancestors()
    return next(iter(levels if mount.is_root_visible else levels[::-1]), "")


def _memory_limit(directory: str) -> float:
    return _integer(f"{directory}/memory.max") or _integer(f"{directory}/memory.limit_in_bytes") or 0


def _quota_cores(directory: str) -> float:
    words = read_whole(f"{directory}/cpu.max").split() or [
        read_whole(f"{directory}/cpu.cfs_quota_us").strip(),
        read_whole(f"{directory}/cpu.cfs_period_us").strip(),
    ]
    if len(words) != 2 or not words[0].isdigit() or not words[1].isdigit():
        return 0.0
    return int(words[0]) / int(words[1]) if int(words[1]) else 0.0


def _processors(mount: CgroupMount | None) -> int:
    if mount is not None:
        for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
            if listed := read_whole(f"{mount.directory}/{name}").strip():
                return _list_length(listed)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _list_length(text: bytes) -> int:
    """Return how many numbers a list such as `0-3,7` has."""
    count = 0
    for part in text.split(b","):
        first, _, last = part.partition(b"-")
        count += int(last or first) - int(first) + 1
    return count


def _cpu_counter(mount: CgroupMount | None, quota: CgroupMount | None, quota_level: str) -> CpuCounter | None:
    """Return the counter of the cgroup with the quota, by its path where `cpuacct` is mounted apart from `cpu`."""
    if mount is None:
        return None
    candidates = [_own_cgroup(mount)]
    if quota is not None and quota_level:
        candidates.insert(0, mount.top + quota_level[len(quota.top) :])
    for directory in candidates:
        try:
            return CpuCounter(directory, is_v2=mount.is_v2) if directory else None
        except OSError:
            continue
    return None


def _count_processes(directory: str) -> int:
    count = read_whole(f"{directory}/cgroup.procs").count(b"\n")
    try:
        # The link count tells whether a cgroup has children, so that most need no listing.
        if os.stat(directory).st_nlink <= 2:
            return count
        with os.scandir(directory) as entries:
            children = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return count
    return count + sum(map(_count_processes, children))


def _integer(path: str) -> int | None:
    text = read_whole(path).strip()
    return int(text) if text.isdigit() else None
