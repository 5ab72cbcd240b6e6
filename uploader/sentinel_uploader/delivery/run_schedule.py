"""When each run is looked at next, and when it may be tried."""

import heapq
import itertools
import math
from dataclasses import dataclass

from sentinel_uploader.spool.open_run import OpenRun


@dataclass(slots=True, eq=False)
class RunSchedule:
    """The delivery's state of one open run, rebuilt at a restart. Guarded by the scheduler's lock.

    Times are monotonic seconds.
    """

    run: OpenRun
    in_flight: bool = False
    """A step of the run is being executed; there is never a second one."""
    is_expedited: bool = False
    """The run's end has shortened its back-off already."""
    blocked_by: str = ""
    """The failing destination that the run waits for, where it has met no failure itself."""
    attempts: int = 0
    """Failures since the last success."""
    failing_since: float | None = None
    not_before: float = 0.0
    retry_after_until: float = 0.0
    """The server's own `Retry-After` for this run. It is never shortened."""
    refresh_attempts: int = 0
    refresh_not_before: float = 0.0
    """For a refresh ahead of expiry; uploads go on meanwhile."""


class DueQueue:
    """A priority queue with one time a run: the one that was set last. Guarded by its owner's lock.

    Times are monotonic seconds. A run that is scheduled anew leaves its old entry in the heap, which is skipped later.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int]] = []
        self._versions = itertools.count()
        self._version_of: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._version_of)

    def schedule(self, run_id: int, when: float) -> None:
        """Set when the run is due, in place of an earlier time; infinity: not at all."""
        if when == math.inf:
            self._version_of.pop(run_id, None)
            return
        version = next(self._versions)
        self._version_of[run_id] = version
        heapq.heappush(self._heap, (when, version, run_id))

    def pop_due(self, now: float) -> int | None:
        """Remove and return a run whose time has come, `None` when there is none."""
        if self.next_due() > now:
            return None
        _, _, run_id = heapq.heappop(self._heap)
        del self._version_of[run_id]
        return run_id

    def next_due(self) -> float:
        """Return when the next run is due, infinity when there is none."""
        while self._heap:
            when, version, run_id = self._heap[0]
            if self._version_of.get(run_id) == version:
                return when
            heapq.heappop(self._heap)
        return math.inf
