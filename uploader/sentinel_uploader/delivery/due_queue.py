"""Which run is to be looked at when: each at one time only, the latest that was named."""

import heapq
import itertools
import math


class Agenda:
    """Guarded by its owner's lock. Times are monotonic seconds; `len` counts the runs in it."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int]] = []
        self._tickets = itertools.count()
        self._ticket_of: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._ticket_of)

    def put(self, run_id: int, when: float) -> None:
        """Look at the run then, and not when it was said before; infinity: not at all."""
        if when == math.inf:
            self._ticket_of.pop(run_id, None)
            return
        ticket = next(self._tickets)
        self._ticket_of[run_id] = ticket
        heapq.heappush(self._heap, (when, ticket, run_id))

    def take_due(self, now: float) -> int | None:
        """Return a run whose time has come, `None` when there is none."""
        if self.next_at() > now:
            return None
        _, _, run_id = heapq.heappop(self._heap)
        del self._ticket_of[run_id]
        return run_id

    def next_at(self) -> float:
        """Return when the next run is due, infinity when there is none."""
        while self._heap:
            when, ticket, run_id = self._heap[0]
            if self._ticket_of.get(run_id) == ticket:
                return when
            # Named anew since.
            heapq.heappop(self._heap)
        return math.inf
