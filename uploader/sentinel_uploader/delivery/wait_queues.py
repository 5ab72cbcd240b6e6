"""Runs that wait for a destination: for a free slot while it works, for a success while it is failing."""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

from sentinel_uploader.delivery.circuit_breaker import CircuitBreaker

MAX_CALLS_PER_DESTINATION = 8


@dataclass(kw_only=True)
class WaitQueues:
    """The destinations' circuit breakers and the runs that wait there. Guarded by the scheduler's lock.

    `schedule(run_id, when)` has a run considered at a monotonic time. A scheduled run stays in its queue until it is
    dequeued. Leaving the queue without a call always wakes the next waiter.
    """

    schedule: Callable[[int, float], None]
    rng: random.Random

    def __post_init__(self) -> None:
        self._breakers: dict[str, CircuitBreaker] = {}
        self._waiting_for: dict[int, CircuitBreaker] = {}

    def breaker(self, name: str) -> CircuitBreaker:
        """Return the breaker of a destination."""
        if name not in self._breakers:
            self._breakers[name] = CircuitBreaker(name, max_concurrent=MAX_CALLS_PER_DESTINATION, rng=self.rng)
        return self._breakers[name]

    def waiting_for(self, run_id: int) -> CircuitBreaker | None:
        """Return the breaker that a run waits for."""
        return self._waiting_for.get(run_id)

    def __len__(self) -> int:
        return len(self._waiting_for)

    def failing_count(self) -> int:
        """Return the number of failing destinations."""
        return sum(destination.is_failing for destination in self._breakers.values())

    def reset_all(self) -> None:
        """Allow an attempt at every destination at once, except where `Retry-After` says later."""
        for destination in self._breakers.values():
            destination.reset()

    def reset(self, name: str) -> None:
        """The same for one destination."""
        destination = self.breaker(name)
        destination.reset()
        self._schedule_probe(destination)

    def enqueue(self, run_id: int, destination: CircuitBreaker, now: float) -> None:
        """Add the run at the end of the queue. A run that waits there already keeps its place."""
        if self._waiting_for.get(run_id) is not destination:
            self.dequeue(run_id, now)
            self._waiting_for[run_id] = destination
            destination.waiting[run_id] = None
        self._schedule_probe(destination)

    def dequeue(self, run_id: int, now: float) -> None:
        """Remove the run from its queue, if any."""
        destination = self._waiting_for.pop(run_id, None)
        if destination is not None:
            del destination.waiting[run_id]
            self.admit_next(destination, now)

    def expedite(self, run_id: int) -> None:
        """Move the run to the front, and have it try soon: a collector waits for it."""
        destination = self._waiting_for.get(run_id)
        if destination is not None:
            destination.expedite()
            destination.waiting.move_to_end(run_id, last=False)
            self._schedule_probe(destination)

    def admit_next(self, destination: CircuitBreaker, now: float) -> None:
        """A slot may have become free: schedule the runs that are next."""
        if destination.is_failing:
            self._schedule_probe(destination)
            return
        # With no call in flight, nothing would wake the rest later.
        most = destination.max_concurrent - destination.in_flight if destination.in_flight else len(destination.waiting)
        for run_id in list(itertools.islice(destination.waiting, most)):
            self.schedule(run_id, now)

    def drain(self, destination: CircuitBreaker) -> list[int]:
        """Empty the queue and return its runs."""
        run_ids = list(destination.waiting)
        destination.waiting.clear()
        for run_id in run_ids:
            del self._waiting_for[run_id]
        return run_ids

    def _schedule_probe(self, destination: CircuitBreaker) -> None:
        """Schedule the one run that probes a failing destination."""
        if destination.is_failing and not destination.in_flight and destination.waiting:
            # At most one run, the sole failing one, has to wait longer than the others.
            run_id = min(itertools.islice(destination.waiting, 2), key=destination.next_try_at)
            self.schedule(run_id, destination.next_try_at(run_id))
