"""Runs that wait for a destination: for a place while it works, for somebody's success while it is failing."""

import itertools
import random
from collections.abc import Callable

from sentinel_uploader.delivery.circuit_breaker import Destination

MAX_CALLS_PER_DESTINATION = 8


class Queues:
    """All destinations and who waits there; guarded by the dispatcher's lock.

    `schedule(run_id, when)` has a run considered at a monotonic time; those it is called for stay in their queue until
    they `leave` it. Nobody is ever left behind: whoever leaves without a call lets the next one have its turn.
    """

    def __init__(self, *, schedule: Callable[[int, float], None], rng: random.Random) -> None:
        self._schedule = schedule
        self._rng = rng
        self._destinations: dict[str, Destination] = {}
        self._queued_at: dict[int, Destination] = {}

    def destination(self, name: str) -> Destination:
        """Return the destination of that name."""
        if name not in self._destinations:
            self._destinations[name] = Destination(name, most_calls=MAX_CALLS_PER_DESTINATION, rng=self._rng)
        return self._destinations[name]

    def queued_at(self, run_id: int) -> Destination | None:
        """Return what a run waits for."""
        return self._queued_at.get(run_id)

    def __len__(self) -> int:
        """How many runs wait."""
        return len(self._queued_at)

    def failing(self) -> int:
        """How many destinations are failing."""
        return sum(destination.is_failing for destination in self._destinations.values())

    def forget_waits(self) -> None:
        """Every destination may be tried at once, unless the server itself has said when."""
        for destination in self._destinations.values():
            destination.forget_wait()

    def forget_wait(self, name: str) -> None:
        """One destination may be tried at once, unless the server itself has said when."""
        destination = self.destination(name)
        destination.forget_wait()
        self._schedule_probe(destination)

    def join(self, run_id: int, destination: Destination, now: float) -> None:
        """Wait there, behind those that wait already; a run that does so keeps its place."""
        if self._queued_at.get(run_id) is not destination:
            self.leave(run_id, now)
            self._queued_at[run_id] = destination
            destination.waiting[run_id] = None
        self._schedule_probe(destination)

    def leave(self, run_id: int, now: float) -> None:
        """Wait no longer, whatever for."""
        destination = self._queued_at.pop(run_id, None)
        if destination is not None:
            del destination.waiting[run_id]
            self.wake(destination, now)

    def hurry(self, run_id: int) -> None:
        """Somebody waits for this run: it comes first, and soon."""
        destination = self._queued_at.get(run_id)
        if destination is not None:
            destination.hurry()
            destination.waiting.move_to_end(run_id, last=False)
            self._schedule_probe(destination)

    def wake(self, destination: Destination, now: float) -> None:
        """A place may have become free."""
        if destination.is_failing:
            self._schedule_probe(destination)
            return
        # With no call under way nobody would come by later and wake the rest.
        most = destination.free_places if destination.calls else len(destination.waiting)
        for run_id in list(itertools.islice(destination.waiting, most)):
            self._schedule(run_id, now)

    def release(self, destination: Destination) -> list[int]:
        """Let all go that wait there; returns who they are."""
        run_ids = list(destination.waiting)
        destination.waiting.clear()
        for run_id in run_ids:
            del self._queued_at[run_id]
        return run_ids

    def _schedule_probe(self, destination: Destination) -> None:
        """One of those that wait tries a failing destination when its time has come."""
        if destination.is_failing and not destination.calls and destination.waiting:
            # At most one run has to wait longer than the others.
            run_id = min(itertools.islice(destination.waiting, 2), key=destination.next_try_at)
            self._schedule(run_id, destination.next_try_at(run_id))
