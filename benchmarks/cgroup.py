"""A cgroup as a CPU clock: nanoseconds of every process that was in it, also of those that the kernel reaped itself.

Cgroup v1 `cpuacct` and any v2 cgroup count, the latter without a controller too (`cpu.stat`, cgroup-v2.rst).
"""

import contextlib
import os
import time

UNIFIED = "unified"
"""The hierarchy of cgroup v2."""


class Cgroup:
    """A cgroup of the benchmark. `hierarchy` is a v1 controller's name or `UNIFIED`."""

    def __init__(self, path: str, hierarchy: str) -> None:
        self.path = path
        self.hierarchy = hierarchy

    @classmethod
    def make(cls, path: str, hierarchy: str) -> "Cgroup":
        """Make it; raises `OSError` where that is not allowed or no process could be moved into it."""
        os.mkdir(path)
        cgroup = cls(path, hierarchy)
        try:
            cgroup.cpu_s()
            if not os.access(f"{os.path.dirname(path)}/cgroup.procs", os.W_OK):
                raise PermissionError(path)
        except OSError:
            os.rmdir(path)
            raise
        return cgroup

    def add(self, pid: int) -> None:
        """Move a process, with all its threads, into it."""
        with open(f"{self.path}/cgroup.procs", "w", encoding="ascii") as file:
            file.write(str(pid))

    def cpu_s(self) -> float:
        """Return its CPU seconds so far."""
        if self.hierarchy != UNIFIED:
            with open(f"{self.path}/cpuacct.usage", encoding="ascii") as file:
                return int(file.read()) / 1e9
        with open(f"{self.path}/cpu.stat", encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("usage_usec")) / 1e6

    def remove(self) -> None:
        """Remove it after its last process has ended."""
        deadline = time.monotonic() + 2.0
        while os.path.isdir(self.path) and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                os.rmdir(self.path)
                return
            time.sleep(0.02)


def own_places(pid: int | str = "self") -> dict[str, str]:
    """Return, for each hierarchy that counts CPU time, the directory of the cgroup that a process is in."""
    mounted = _mounts()
    places = {}
    with open(f"/proc/{pid}/cgroup", encoding="ascii") as file:
        for line in file:
            _number, controllers, path = line.rstrip("\n").split(":", 2)
            hierarchy = UNIFIED if not controllers else "cpuacct" if "cpuacct" in controllers.split(",") else ""
            if hierarchy in mounted:
                places[hierarchy] = mounted[hierarchy] + path.rstrip("/")
    return places


def _mounts() -> dict[str, str]:
    found = {}
    with open("/proc/self/mounts", encoding="utf-8") as file:
        for line in file:
            _device, directory, kind, options = line.split()[:4]
            if kind == "cgroup2":
                found[UNIFIED] = directory
            elif kind == "cgroup" and "cpuacct" in options.split(","):
                found["cpuacct"] = directory
    return found
