"""Chooses the source of the job's CPU time: a cgroup of the run's own where one can be made, else `/proc`.

A perf counter is no substitute for the cgroup. An inherited task-clock loses the time of starting, switching and ending
a process: 2 % with children of 30 ms, 20 % with children of 1 ms, where `/proc` is exact. It also makes each of
the job's context switches about 1 µs slower. Imported before the job starts.
"""

from __future__ import annotations

from sentinel_collector.sensors.cgroup.run_cgroup import (
    CgroupUnavailableError,
    RunCgroup,
    enter_cgroup,
    remove_orphaned_cgroups,
)

TYPE_CHECKING = False  # `typing` itself would cost milliseconds of the job's start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from sentinel_collector.console import Console

    T = TypeVar("T")

PROC = "proc"
CGROUP = "cgroup"


class RunCgroupScope:
    """Counts the CPU time of the job that `spawn_inside` starts. The `with` block removes the cgroup at its end.

    `mode` is `auto`, `proc` (never a cgroup) or `cgroup` (like `auto`, with a warning where there is none). `counter`
    is `None` where the ledger counts alone.
    """

    def __init__(self, mode: str, *, proc: str = "/proc") -> None:
        self.counter: RunCgroup | None = None
        self._unavailable_reason = ""
        self._mode = mode
        self._proc = proc

    def __enter__(self) -> RunCgroupScope:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def spawn_inside(self, start: Callable[[], T]) -> T:
        """Call `start` within the run's own cgroup where one can be made; raises only the errors of `start`."""
        if self._mode != PROC:
            try:
                self.counter = enter_cgroup(proc=self._proc)
            except CgroupUnavailableError as error:
                self._unavailable_reason = str(error)
        try:
            return start()
        finally:
            self._leave()

    def report(self, console: Console) -> None:
        """Report the source, and remove the cgroups of collectors that were killed."""
        if self.counter is not None:
            console.debug(f"CPU time is read from {self.counter.path}")
        elif self._mode == CGROUP:
            console.warn(f"no cgroup for the run, CPU time is read from /proc: {self._unavailable_reason}")
        elif self._unavailable_reason:
            console.debug(f"CPU time is read from /proc: {self._unavailable_reason}")
        remove_orphaned_cgroups(proc=self._proc)

    def _leave(self) -> None:
        if self.counter is not None:
            try:
                self.counter.leave()
            except OSError as error:
                # The counter would include our own time from now on.
                self._unavailable_reason = f"cannot leave {self.counter.path}: {error}"
                self.close()

    def close(self) -> None:
        """Remove the cgroup; may be called twice."""
        counter, self.counter = self.counter, None
        if counter is not None:
            counter.close()
