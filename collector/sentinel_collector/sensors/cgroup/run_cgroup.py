"""A cgroup of the run's own: it counts the exact CPU time of the job and its descendants.

It is a child of the collector's own cgroup, and is made only where this changes nothing for the job:

* v1: the `cpuacct` hierarchy, if it is mounted alone. Together with `cpu`, the child would be a scheduling group with
  a weight and without real-time time.
* v2: if our cgroup passes no controller on to its children, and has no limit. A program that reads the limits of its
  own cgroup only (many runtimes do) would not see those of its parent.

`memory` and `blkio` are not used. Their peak includes the page cache, and their totals leave out buffered writes (v1).
The columns mean something else. Such a group would also change reclaim and I/O weights, hide limits, and exist as long
as one of its pages is cached.

The collector moves itself in, starts the job and moves back out. Its own time inside is subtracted. Imported before the
job starts.
"""

from __future__ import annotations

import os
import resource

from sentinel_collector.procfs import STAT_START, STAT_STATE, read_stat, read_whole
from sentinel_collector.sensors.cgroup.cpu import CpuCounter
from sentinel_collector.sensors.cgroup.hierarchy import CgroupMount, find_mounts
from sentinel_protocol.common.errors import SentinelStreamError

_PREFIX = "sentinel-stream"
_LIMITS = ("cpu.max", "memory.max", "memory.high")


class CgroupUnavailableError(SentinelStreamError):
    """No cgroup can be made, or not without a change for the job."""


class RunCgroup:
    """`Accounting` from a cgroup that this process is in while it spawns the job.

    This process has one thread until `leave`.
    """

    name = "cgroup"

    def __init__(self, path: str, *, is_v2: bool) -> None:
        """Make the cgroup and enter it; raises `OSError` or `ValueError`, and then leaves nothing behind."""
        self.path = path
        # A single thread moves through `tasks` without the kernel's lock over all forks, which takes 8 ms and more to
        # get. v2 has no such file.
        self._membership_file = "cgroup.procs" if is_v2 else "tasks"
        self._own_us = 0
        self._reported = (0, 0)
        self._lock_fd = -1
        os.mkdir(path)
        try:
            self._cpu = CpuCounter(path, is_v2=is_v2)
            try:
                _move_self(f"{path}/{self._membership_file}")
                self._own_before_us = _own_us()
                self._before_us = self._cpu.total_us()
            except (OSError, ValueError):
                self._cpu.close()
                raise
        except (OSError, ValueError):
            _move_out(os.path.dirname(path), self._membership_file)
            _rmdir(path)
            raise

    def leave(self) -> None:
        """Move back to the parent; raises `OSError` when that is refused: the counter then includes our own time."""
        self._lock_fd = _hold(self.path)
        # Nobody else was in it before, so all of its time until now is ours.
        self._own_us = self._before_us + _own_us() - self._own_before_us
        _move_self(f"{os.path.dirname(self.path)}/{self._membership_file}")

    def growth_us(self) -> tuple[int, int] | None:
        """User and system microseconds of the tree since the last call; `None` when the cgroup is gone."""
        try:
            times = self._cpu.times_us(without_us=self._own_us)
        except (OSError, ValueError):
            return None
        reported, self._reported = self._reported, times
        return times[0] - reported[0], times[1] - reported[1]

    def close(self) -> None:
        """Remove the cgroup. While daemons of the job are in it, it stays, and a later collector removes it."""
        self._cpu.close()
        remove_stale(self.path)
        _rmdir(self.path)
        self._release()

    def _release(self) -> None:
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def enter_cgroup(*, proc: str = "/proc") -> RunCgroup:
    """Make a cgroup for the run and move into it; raises `CgroupUnavailableError` with the reasons."""
    reasons = []
    try:
        # v1 first: it costs 0.1 ms.
        for mount in sorted(_cpu_mounts(proc), key=lambda mount: mount.is_v2):
            reason = _unsuitable_reason(mount)
            if not reason:
                try:
                    # Identifies this collector: pid name space, pid, and start time in ticks after boot.
                    name = f"{_PREFIX}.{_pid_namespace(proc)}.{os.getpid()}.{_start(proc, 'self')}"
                    return RunCgroup(f"{mount.directory}/{name}", is_v2=mount.is_v2)
                except (OSError, ValueError) as error:
                    reason = str(error)
            reasons.append(reason)
    except (OSError, ValueError, IndexError) as error:
        reasons.append(str(error))
    raise CgroupUnavailableError("; ".join(reasons) or "no cgroup hierarchy counts CPU time here")


def remove_orphaned_cgroups(*, proc: str = "/proc") -> None:
    """Remove the cgroups of killed collectors from each of our own cgroups."""
    for mount in _cpu_mounts(proc):
        remove_stale(mount.directory, proc=proc)


def remove_stale(directory: str, *, proc: str = "/proc") -> None:
    """Remove the cgroups of ended collectors from `directory`, except those with processes in them."""
    try:
        names = os.listdir(directory)
    except OSError:
        return
    for name in names:
        if name.startswith(f"{_PREFIX}.") and _is_stale(directory, name, proc):
            remove_stale(f"{directory}/{name}", proc=proc)
            _rmdir(f"{directory}/{name}")


def _cpu_mounts(proc: str) -> list[CgroupMount]:
    return [mount for mount in find_mounts(proc) if mount.is_v2 or "cpuacct" in mount.controllers]


def _unsuitable_reason(mount: CgroupMount) -> str:
    """Return why a child of our own cgroup would change something for the job; empty when it would not."""
    directory = mount.directory
    if not mount.is_v2:
        others = ", ".join(sorted(mount.controllers - {"cpuacct"}))
        return f"cpuacct is mounted together with {others}" if others else ""
    if read_whole(f"{directory}/cgroup.type").strip() not in {b"", b"domain"}:
        return f"{directory} is threaded"
    if controllers := read_whole(f"{directory}/cgroup.subtree_control").split():
        return f"{directory} enables {b', '.join(controllers).decode()} for its children"
    for name in _LIMITS:
        if read_whole(f"{directory}/{name}").split()[:1] not in ([], [b"max"]):
            return f"the job would not see {directory}/{name}"
    return ""


def _is_stale(directory: str, name: str, proc: str) -> bool:
    """Whether its collector has ended. A collector in another pid name space cannot be seen, but its lock can."""
    parts = name.split(".")
    if len(parts) != 4 or not parts[2].isdigit():
        return False
    if parts[1] != _pid_namespace(proc):
        return _is_unheld(f"{directory}/{name}")
    return _start(proc, parts[2]) != parts[3]


def _hold(path: str) -> int:
    """Lock a cgroup for as long as this process, or one that inherits the descriptor, lives; -1 where that fails.

    The job runs by now. Before that, nobody can remove the cgroup, because this process is in it.
    """
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return -1
    return descriptor


def _is_unheld(path: str) -> bool:
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _start(proc: str, pid: str) -> str:
    """The process' start in ticks after boot, empty when it has ended."""
    try:
        fields = read_stat(pid, STAT_START + 1, proc=proc)
    except (OSError, ValueError):
        return ""
    return "" if fields[STAT_STATE] in {b"Z", b"X"} else fields[STAT_START].decode()


def _pid_namespace(proc: str) -> str:
    target = os.readlink(f"{proc}/self/ns/pid")
    return target[target.index("[") + 1 : -1]


def _own_us() -> int:
    """Return our own CPU time so far. The call makes the scheduler charge open time to the cgroup that we are in."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return round(usage.ru_utime * 1e6) + round(usage.ru_stime * 1e6)


def _move_self(path: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, b"0")
    finally:
        os.close(descriptor)


def _move_out(directory: str, door: str) -> None:
    try:
        _move_self(f"{directory}/{door}")
    except OSError:
        return


def _rmdir(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError:
        return
