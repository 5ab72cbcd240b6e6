"""When to try again: per destination, because an API or a bucket is away for all runs at once.

A destination counts as failing when it cannot be reached at all or says itself when to come back, or when two different
runs have failed there with no success between. One run that fails by itself never holds up the others: once another has
succeeded since its first failure, its failures are its own. While a destination is failing, one run at a time tries it;
the others wait for that one's success and are woken spread over a moment. Trouble that a single run has met so far is
tried by another one soon.
"""

import math
import random
from collections import OrderedDict
from typing import NamedTuple

from sentinel_uploader.delivery.backoff import EXPEDITED_DELAY_S, MAX_DELAY_S, SLOW_BASE_DELAY_S, backoff, slow_backoff


class BreakerState(NamedTuple):
    """A breaker at one moment. Times are monotonic seconds."""

    name: str
    version: int
    """Counts up with each state: of two, the one with the higher number is newer."""
    attempts: int
    not_before: float
    failing_since: float
    error: str
    began: bool
    """The destination counts as failing only since now."""


class CircuitBreaker:
    """One API or bucket. Times are monotonic seconds; guarded by the scheduler's lock."""

    def __init__(self, name: str, *, max_concurrent: int, rng: random.Random) -> None:
        self.name = name
        self.attempts = 0
        """Failures in a row while failing; 0: not failing."""
        self.not_before = 0.0
        self.failing_since = 0.0
        self.error = ""
        self.in_flight = 0
        """Calls under way."""
        self.waiting: OrderedDict[int, None] = OrderedDict()
        """Runs that wait for a success, or for a place, in the order of their arrival."""
        self._max_concurrent = max_concurrent
        self._rng = rng
        self._failed_run: int | None = None
        self._failed_at = 0.0
        self._succeeded_at = -math.inf
        self._sole_failing_run: int | None = None
        """The run that has failed since the trouble began, `None` when there were several."""
        self._expedited_at = 0.0
        """The earliest next try, however much somebody is in a hurry."""
        self._retry_after_until = 0.0
        self._version = 0

    @property
    def is_failing(self) -> bool:
        """Whether only one run at a time may try."""
        return self.attempts > 0

    def allows(self, run_id: int, now: float) -> bool:
        """Whether the run's call may start now."""
        if self.is_failing:
            return self.in_flight == 0 and now >= self.next_try_at(run_id)
        return self.in_flight < self._max_concurrent

    def next_try_at(self, run_id: int) -> float:
        """When a run may try a failing destination.

        As long as a single run has met the trouble, the first other one finds out soon whose trouble it is.
        """
        if self._sole_failing_run in {None, run_id}:
            return self.not_before
        return min(self.not_before, self._expedited_at)

    def acquire(self) -> None:
        """A call starts."""
        self.in_flight += 1

    def release(self) -> None:
        """A call has ended."""
        self.in_flight -= 1

    def state(self, *, began: bool = False) -> BreakerState:
        """Return the state for publishing."""
        self._version += 1
        return BreakerState(
            self.name, self._version, self.attempts, self.not_before, self.failing_since, self.error, began
        )

    @property
    def free_slots(self) -> int:
        """How many calls may start beside those under way while it is not failing."""
        return self._max_concurrent - self.in_flight

    def record_success(self, now: float) -> bool:
        """A call was answered; True when the destination was failing until now."""
        recovered = self.is_failing
        self._succeeded_at = now
        self.attempts = 0
        self.error = ""
        self._failed_run = None
        return recovered

    def record_failure(
        self,
        run_id: int,
        now: float,
        error: str,
        *,
        began_at: float,
        run_failing_since: float | None,
        is_destination_fault: bool,
        needs_operator: bool,
        retry_after_s: float | None,
    ) -> bool:
        """A call has failed; True when the destination counts as failing from now on.

        `run_failing_since`: when the run's first failure without a success since was, `None` if this is it.
        `certain`: the failure is the destination's own (no connection, no authorisation), whatever the run.
        """
        known = self.is_failing
        if known and run_id != self._sole_failing_run:
            self._sole_failing_run = None
        if known and began_at < self._failed_at:
            # It was under way already when the trouble became known: one outage, not one more failed try.
            return False
        if not known and self._is_run_specific(run_id, run_failing_since, is_destination_fault=is_destination_fault):
            return False
        if not known:
            self.failing_since = now
            self._sole_failing_run = run_id if self._failed_run in {None, run_id} else None
        self.attempts += 1
        self._failed_at = now
        self.error = error
        if needs_operator:
            wait = slow_backoff(self.attempts, rng=self._rng)
            self._expedited_at = now + min(wait, SLOW_BASE_DELAY_S / 2)
        else:
            wait = backoff(self.attempts, rng=self._rng, retry_after_s=retry_after_s)
            # A wish of the server's is never shortened.
            self._expedited_at = now + (wait if retry_after_s else min(wait, EXPEDITED_DELAY_S))
        self._retry_after_until = 0.0 if retry_after_s is None else now + min(MAX_DELAY_S, retry_after_s)
        self.not_before = now + wait
        return not known

    def reset(self) -> None:
        """Try at once, or as soon as the server itself wants to be asked again."""
        self.not_before = self._retry_after_until

    def expedite(self) -> None:
        """Somebody is waiting for a result: try soon, but not again right after the last try."""
        self.not_before = min(self.not_before, self._expedited_at)

    def _is_run_specific(self, run_id: int, run_failing_since: float | None, *, is_destination_fault: bool) -> bool:
        if run_failing_since is not None and self._succeeded_at >= run_failing_since:
            return True
        if not is_destination_fault and self._failed_run in {None, run_id}:
            self._failed_run = run_id
            return True
        return False
