"""What the job's CPU time is read from: a cgroup of the run's own where that can be had, else `/proc`.

No perf counter stands in where there is no cgroup. An inherited task-clock loses what a process uses while it is
started, switched and ended: 2 % with children of 30 ms, 20 % with those of 1 ms, where `/proc` is exact; and it makes
each of the job's context switches dearer by about 1 µs. Imported before the job starts.
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
    """Counts what is started within `spawn_inside`, and cleans up at the end of the `with` block.

    `mode` is `auto`, `proc` (never a cgroup) or `cgroup` (as `auto`, and a warning where there is none). `counter` is
    `None` where the ledger has to do.
    """

    def __init__(self, mode: str, *, proc: str = "/proc") -> None:
        self.counter: RunCgroup | None = None
        self._unavailable_reason = ""
        self._mode = mode
        self._proc = proc

    def __enter__(self) -> RunCgroupScope:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def spawn_inside(self, start: Callable[[], T]) -> T:
        """Call `start` within a cgroup of the run's own where that can be had; raises only what `start` raises."""
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
        """Say what is used, and remove what collectors left behind that were killed."""
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
                # Our own time would be counted from now on.
                self._unavailable_reason = f"cannot leave {self.counter.path}: {error}"
                self._close()

    def _close(self) -> None:
        counter, self.counter = self.counter, None
        if counter is not None:
            counter.close()
