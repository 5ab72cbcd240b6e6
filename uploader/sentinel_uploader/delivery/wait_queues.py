"""Runs that wait for a destination: for a place while it works, for somebody's success while it is failing."""

import itertools
import random
from collections.abc import Callable

from sentinel_uploader.delivery.circuit_breaker import CircuitBreaker

MAX_CALLS_PER_DESTINATION = 8


class WaitQueues:
    """All destinations and who waits there; guarded by the scheduler's lock.

    `schedule(run_id, when)` has a run considered at a monotonic time; those it is called for stay in their queue until
    they `dequeue`. Nobody is ever left behind: whoever leaves without a call lets the next one have its turn.
    """

    def __init__(self, *, schedule: Callable[[int, float], None], rng: random.Random) -> None:
        self._schedule = schedule
        self._rng = rng
        self._breakers: dict[str, CircuitBreaker] = {}
        self._waiting_for: dict[int, CircuitBreaker] = {}

    def breaker(self, name: str) -> CircuitBreaker:
        """Return the destination of that name."""
        if name not in self._breakers:
            self._breakers[name] = CircuitBreaker(name, max_concurrent=MAX_CALLS_PER_DESTINATION, rng=self._rng)
        return self._breakers[name]

    def waiting_for(self, run_id: int) -> CircuitBreaker | None:
        """Return what a run waits for."""
        return self._waiting_for.get(run_id)

    def __len__(self) -> int:
        """How many runs wait."""
        return len(self._waiting_for)

    def failing_count(self) -> int:
        """How many destinations are failing."""
        return sum(destination.is_failing for destination in self._breakers.values())

    def reset_all(self) -> None:
        """Every destination may be tried at once, unless the server itself has said when."""
        for destination in self._breakers.values():
            destination.reset()

    def reset(self, name: str) -> None:
        """One destination may be tried at once, unless the server itself has said when."""
        destination = self.breaker(name)
        destination.reset()
        self._schedule_probe(destination)

    def enqueue(self, run_id: int, destination: CircuitBreaker, now: float) -> None:
        """Wait there, behind those that wait already; a run that does so keeps its place."""
        if self._waiting_for.get(run_id) is not destination:
            self.dequeue(run_id, now)
            self._waiting_for[run_id] = destination
            destination.waiting[run_id] = None
        self._schedule_probe(destination)

    def dequeue(self, run_id: int, now: float) -> None:
        """Wait no longer, whatever for."""
        destination = self._waiting_for.pop(run_id, None)
        if destination is not None:
            del destination.waiting[run_id]
            self.admit_next(destination, now)

    def expedite(self, run_id: int) -> None:
        """Somebody waits for this run: it comes first, and soon."""
        destination = self._waiting_for.get(run_id)
        if destination is not None:
            destination.expedite()
            destination.waiting.move_to_end(run_id, last=False)
            self._schedule_probe(destination)

    def admit_next(self, destination: CircuitBreaker, now: float) -> None:
        """A place may have become free."""
        if destination.is_failing:
            self._schedule_probe(destination)
            return
        # With no call under way nobody would come by later and wake the rest.
        most = destination.free_slots if destination.in_flight else len(destination.waiting)
        for run_id in list(itertools.islice(destination.waiting, most)):
            self._schedule(run_id, now)

    def drain(self, destination: CircuitBreaker) -> list[int]:
        """Let all go that wait there; returns who they are."""
        run_ids = list(destination.waiting)
        destination.waiting.clear()
        for run_id in run_ids:
            del self._waiting_for[run_id]
        return run_ids

    def _schedule_probe(self, destination: CircuitBreaker) -> None:
        """One of those that wait tries a failing destination when its time has come."""
        if destination.is_failing and not destination.in_flight and destination.waiting:
            # At most one run has to wait longer than the others.
            run_id = min(itertools.islice(destination.waiting, 2), key=destination.next_try_at)
            self._schedule(run_id, destination.next_try_at(run_id))
