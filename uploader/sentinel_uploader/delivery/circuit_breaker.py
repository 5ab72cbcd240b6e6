"""A circuit breaker for each destination: an outage of an API or a bucket concerns all runs at once.

A destination counts as failing when it is unreachable or sends `Retry-After`, or when two different runs have failed
there without a success in between. A run that fails alone does not block the others: once another run has succeeded
since its first failure, its failures are its own. While a destination is failing, one run at a time probes it. The
others wait, and are released over a moment when the probe succeeds. While only one run has failed, another one probes
soon.
"""

import math
import random
from collections import OrderedDict
from typing import NamedTuple

from sentinel_uploader.delivery.backoff import EXPEDITED_DELAY_S, MAX_DELAY_S, SLOW_BASE_DELAY_S, backoff, slow_backoff
from sentinel_uploader.runs.delivery_error import DeliveryError, RetryAction


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
        """Consecutive failures while failing; 0: not failing."""
        self.not_before = 0.0
        self.failing_since = 0.0
        self.error = ""
        self.in_flight = 0
        """Calls in flight."""
        self.waiting: OrderedDict[int, None] = OrderedDict()
        """Runs that wait for a success or a free slot, in the order of their arrival."""
        self.max_concurrent = max_concurrent
        self._rng = rng
        self._failed_run: int | None = None
        self._failed_at = 0.0
        self._succeeded_at = -math.inf
        self._sole_failing_run: int | None = None
        """The only run that has failed since the destination is failing; `None`: there were several."""
        self._expedited_at = 0.0
        """The earliest next attempt of an expedited run."""
        self._retry_after_until = 0.0
        self._version = 0

    @property
    def is_failing(self) -> bool:
        """Whether only one run at a time may call."""
        return self.attempts > 0

    def allows(self, run_id: int, now: float) -> bool:
        """Whether the run's call may start now."""
        if self.is_failing:
            return self.in_flight == 0 and now >= self.next_try_at(run_id)
        return self.in_flight < self.max_concurrent

    def next_try_at(self, run_id: int) -> float:
        """When a run may call a failing destination (monotonic seconds).

        While only one run has failed, any other one may find out soon whether the destination is at fault.
        """
        if self._sole_failing_run in {None, run_id}:
            return self.not_before
        return min(self.not_before, self._expedited_at)

    def state(self, *, began: bool = False) -> BreakerState:
        """Return the state for publishing."""
        self._version += 1
        return BreakerState(
            self.name, self._version, self.attempts, self.not_before, self.failing_since, self.error, began
        )

    def record_success(self, now: float) -> bool:
        """A call got a response; True when the destination was failing until now."""
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
        error: DeliveryError,
        *,
        began_at: float,
        run_failing_since: float | None,
        is_destination_fault: bool,
    ) -> bool:
        """A call has failed; True when the destination counts as failing from now on.

        `run_failing_since`: the run's first failure since its last success; `None`: this one.
        `is_destination_fault`: the failure does not depend on the run (no connection, no authorisation).
        """
        known = self.is_failing
        if known and run_id != self._sole_failing_run:
            self._sole_failing_run = None
        if known and began_at < self._failed_at:
            # The call began before the failure was known: the same outage, not another failed attempt.
            return False
        if not known and self._is_run_specific(run_id, run_failing_since, is_destination_fault=is_destination_fault):
            return False
        if not known:
            self.failing_since = now
            self._sole_failing_run = run_id if self._failed_run in {None, run_id} else None
        self.attempts += 1
        self._failed_at = now
        self.error = str(error)
        if error.retry_action is RetryAction.RETRY_SLOW:
            wait = slow_backoff(self.attempts, rng=self._rng)
            self._expedited_at = now + min(wait, SLOW_BASE_DELAY_S / 2)
        else:
            wait = backoff(self.attempts, rng=self._rng, retry_after_s=error.retry_after_s)
            # `Retry-After` is never shortened.
            self._expedited_at = now + (wait if error.retry_after_s else min(wait, EXPEDITED_DELAY_S))
        self._retry_after_until = 0.0 if error.retry_after_s is None else now + min(MAX_DELAY_S, error.retry_after_s)
        self.not_before = now + wait
        return not known

    def reset(self) -> None:
        """Allow the next attempt at once, or when the server's `Retry-After` is over."""
        self.not_before = self._retry_after_until

    def expedite(self) -> None:
        """Allow an attempt soon, but not right after the last one."""
        self.not_before = min(self.not_before, self._expedited_at)

    def _is_run_specific(self, run_id: int, run_failing_since: float | None, *, is_destination_fault: bool) -> bool:
        if run_failing_since is not None and self._succeeded_at >= run_failing_since:
            return True
        if not is_destination_fault and self._failed_run in {None, run_id}:
            self._failed_run = run_id
            return True
        return False
