"""Which run is to be looked at when: each at one time only, the latest that was named."""

import heapq
import itertools
import math


class DueQueue:
    """Guarded by its owner's lock. Times are monotonic seconds; `len` counts the runs in it."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int]] = []
        self._versions = itertools.count()
        self._version_of: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._version_of)

    def schedule(self, run_id: int, when: float) -> None:
        """Look at the run then, and not when it was said before; infinity: not at all."""
        if when == math.inf:
            self._version_of.pop(run_id, None)
            return
        ticket = next(self._versions)
        self._version_of[run_id] = ticket
        heapq.heappush(self._heap, (when, ticket, run_id))

    def pop_due(self, now: float) -> int | None:
        """Return a run whose time has come, `None` when there is none."""
        if self.next_due() > now:
            return None
        _, _, run_id = heapq.heappop(self._heap)
        del self._version_of[run_id]
        return run_id

    def next_due(self) -> float:
        """Return when the next run is due, infinity when there is none."""
        while self._heap:
            when, ticket, run_id = self._heap[0]
            if self._version_of.get(run_id) == ticket:
                return when
            # Named anew since.
            heapq.heappop(self._heap)
        return math.inf
