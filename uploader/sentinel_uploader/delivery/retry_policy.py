"""What the outcome of a step means: for the run's schedule, for its destination, and for the runs that wait there."""

import random
from dataclasses import dataclass
from typing import NamedTuple

from sentinel_protocol.common.clock import Clock
from sentinel_uploader.delivery.backoff import MAX_DELAY_S, backoff, slow_backoff
from sentinel_uploader.delivery.circuit_breaker import BreakerState, CircuitBreaker
from sentinel_uploader.delivery.executor import StepExecutor
from sentinel_uploader.delivery.run_schedule import RunSchedule
from sentinel_uploader.delivery.wait_queues import WaitQueues
from sentinel_uploader.runs.delivery_error import DeliveryError, RetryAction
from sentinel_uploader.runs.lifecycle import RunState
from sentinel_uploader.runs.schedule import Step
from sentinel_uploader.spool.errors import SpoolError

_WAKE_SPREAD_S = 1.0


class Outcome(NamedTuple):
    """What is left to write down, once the scheduler's lock is released."""

    destination: BreakerState | None = None
    """The destination's state, where it has changed."""
    quarantine: bool = False
    """The run cannot be delivered without a person."""
    next_try_at: float | None = None
    """When the failed step is tried again (monotonic seconds); `None`: nothing is recorded."""


@dataclass(kw_only=True)
class OutcomeHandler:
    """Sets when a run may be tried again. All methods are called with the scheduler's lock held, and do no I/O.

    `schedules` are the open runs by id. A step without a destination (`None`) depends on the disk alone.
    """

    executor: StepExecutor
    queues: WaitQueues
    schedules: dict[int, RunSchedule]
    clock: Clock
    rng: random.Random

    def on_success(self, run: RunSchedule, step: Step, destination: CircuitBreaker | None) -> Outcome:
        """The step is done."""
        if destination is None:
            return Outcome()
        run.failing_since = None
        run.attempts = 0
        run.not_before = run.retry_after_until = 0.0
        if step is Step.REFRESH:
            run.refresh_attempts = 0
        return Outcome(self._on_destination_ok(destination))

    def on_failure(
        self, run: RunSchedule, step: Step, destination: CircuitBreaker | None, error: Exception, began_at: float
    ) -> Outcome:
        """The step that began at `began_at` (monotonic seconds) has failed."""
        now = self.clock.monotonic()
        failing_since, run.failing_since = run.failing_since, run.failing_since or now
        run.attempts += 1
        state: BreakerState | None = None
        if not isinstance(error, DeliveryError):
            run.not_before = now + backoff(run.attempts, rng=self.rng)
        elif error.retry_action is RetryAction.FAIL:
            return self._on_permanent_failure(run, destination, error, now)
        elif error.retry_action is RetryAction.REFRESH_CREDENTIALS:
            state = self._on_credentials_rejected(run, destination, error, now)
        elif destination is None:
            run.not_before = now + slow_backoff(run.attempts, rng=self.rng)
        else:
            state = self._apply_backoff(
                run, step, destination, error, now, began_at=began_at, failing_since=failing_since
            )
        waits_for = self.queues.waiting_for(run.run.id)
        next_try_at = run.not_before if waits_for is None else waits_for.next_try_at(run.run.id)
        return Outcome(state, next_try_at=next_try_at)

    def _on_destination_ok(self, destination: CircuitBreaker) -> BreakerState | None:
        now = self.clock.monotonic()
        if not destination.record_success(now):
            return None
        for run_id in self.queues.drain(destination):
            waiting = self.schedules.get(run_id)
            if waiting is not None:
                waiting.blocked_by = ""
                # Another run's success does not shorten this one's `Retry-After`.
                waiting.not_before = max(waiting.retry_after_until, now + self.rng.uniform(0.0, _WAKE_SPREAD_S))
                self.queues.schedule(run_id, waiting.not_before)
        return destination.state()

    def _apply_backoff(
        self,
        run: RunSchedule,
        step: Step,
        destination: CircuitBreaker,
        error: DeliveryError,
        now: float,
        *,
        began_at: float,
        failing_since: float | None,
    ) -> BreakerState | None:
        needs_operator = error.retry_action is RetryAction.RETRY_SLOW
        # Authorisation at the API is the same for all runs. What storage rejects may concern this run alone.
        is_destination_fault = (
            error.status_code is None or error.retry_after_s is not None or (needs_operator and step is not Step.PUT)
        )
        began = destination.record_failure(
            run.run.id,
            now,
            error,
            began_at=began_at,
            run_failing_since=failing_since,
            is_destination_fault=is_destination_fault,
        )
        state = destination.state(began=began) if destination.is_failing else None
        if step is Step.REFRESH and not self.executor.needs_credentials(run.run):
            # The present credentials are still good: uploads go on.
            run.refresh_attempts += 1
            run.refresh_not_before = now + backoff(
                run.refresh_attempts, rng=self.rng, retry_after_s=error.retry_after_s
            )
        elif destination.is_failing:
            # The destination backs off for all runs; this one waits behind those that wait already.
            run.not_before = run.retry_after_until = (
                0.0 if error.retry_after_s is None else now + min(MAX_DELAY_S, error.retry_after_s)
            )
            self.queues.enqueue(run.run.id, destination, now)
        elif needs_operator:
            run.not_before = now + slow_backoff(run.attempts, rng=self.rng)
        else:
            run.not_before = now + backoff(run.attempts, rng=self.rng, retry_after_s=error.retry_after_s)
            run.retry_after_until = run.not_before if error.retry_after_s else 0.0
        return state

    def _on_credentials_rejected(
        self, run: RunSchedule, destination: CircuitBreaker | None, error: DeliveryError, now: float
    ) -> BreakerState | None:
        rejections = self.executor.reject_credentials(run.run)
        # The first rejection looks like expiry. New credentials that are rejected as well are backed off.
        if rejections > 1:
            run.not_before = now + backoff(rejections, rng=self.rng)
        return self._on_response(destination, error)

    def _on_permanent_failure(
        self, run: RunSchedule, destination: CircuitBreaker | None, error: DeliveryError, now: float
    ) -> Outcome:
        state = self._on_response(destination, error)
        if run.run.record.state is RunState.QUARANTINED:
            # Damaged rows: the run waits for a person already.
            run.not_before = now + slow_backoff(run.attempts, rng=self.rng)
            return Outcome(state)
        return Outcome(state, quarantine=True)

    def _on_response(self, destination: CircuitBreaker | None, error: DeliveryError) -> BreakerState | None:
        """An error response shows that the destination works."""
        if destination is None or error.status_code is None:
            return None
        return self._on_destination_ok(destination)


def error_label(error: Exception) -> str:
    """Return the label under which a failure is counted."""
    if isinstance(error, DeliveryError):
        return "no-answer" if error.status_code is None else str(error.status_code)
    return "spool" if isinstance(error, SpoolError) else "defect"
