"""What an attempt has come to: for the run, for its destination, and for those that wait there."""

import logging
import random
from collections.abc import Callable

from sentinel_protocol.common.clock import Clock
from sentinel_uploader.delivery.backoff import MAX_DELAY_S, backoff, slow_backoff
from sentinel_uploader.delivery.circuit_breaker import CircuitBreaker
from sentinel_uploader.delivery.executor import StepExecutor, quarantine_run
from sentinel_uploader.delivery.failure_log import FailureReporter
from sentinel_uploader.delivery.wait_queues import WaitQueues
from sentinel_uploader.runs.delivery_error import DeliveryError, RetryAction
from sentinel_uploader.runs.lifecycle import RunState
from sentinel_uploader.runs.schedule import Step
from sentinel_uploader.spool.errors import SpoolError
from sentinel_uploader.spool.open_run import OpenRun
from sentinel_uploader.spool.store import Spool
from sentinel_uploader.telemetry.counters import Counters

log = logging.getLogger(__name__)

_WAKE_SPREAD_S = 1.0


class OutcomeHandler:
    """Sets when a run may be tried again; `schedule` takes a run's id and the monotonic time to look at it.

    Called with the scheduler's lock held. Steps without a destination (`None`) need nobody but the disk.
    """

    def __init__(
        self,
        *,
        spool: Spool,
        executor: StepExecutor,
        queues: WaitQueues,
        schedule: Callable[[int, float], None],
        failures: FailureReporter,
        clock: Clock,
        rng: random.Random,
        counters: Counters,
    ) -> None:
        self._spool = spool
        self._executor = executor
        self._queues = queues
        self._schedule = schedule
        self._failures = failures
        self._clock = clock
        self._rng = rng
        self._counters = counters

    def on_success(self, run: OpenRun, step: Step, destination: CircuitBreaker | None) -> None:
        """The step is done."""
        self._failures.step_succeeded(run, step)
        if destination is None:
            return
        run.failing_since = None
        run.attempts = 0
        run.not_before = run.retry_after_until = 0.0
        if step is Step.REFRESH:
            run.refresh_attempts = 0
        self._on_destination_ok(destination)

    def on_failure(
        self, run: OpenRun, step: Step, destination: CircuitBreaker | None, error: Exception, began_at: float
    ) -> None:
        """The step that began at `began_at` (monotonic) has failed: say when it is tried again, or park the run."""
        now = self._clock.monotonic()
        failing_since, run.failing_since = run.failing_since, run.failing_since or now
        run.attempts += 1
        if not isinstance(error, DeliveryError):
            run.not_before = now + backoff(run.attempts, rng=self._rng)
        elif error.retry_action is RetryAction.FAIL:
            self._quarantine(run, step, destination, error, now)
            return
        elif error.retry_action is RetryAction.REFRESH_CREDENTIALS:
            self._on_credentials_rejected(run, destination, error, now)
        elif destination is None:
            run.not_before = now + slow_backoff(run.attempts, rng=self._rng)
        else:
            self._apply_backoff(run, step, destination, error, now, began_at=began_at, failing_since=failing_since)
        self._counters.retries.add(1, step, _error_label(error))
        self._failures.step_failed(run, step, error, self._next_try(run))

    def _on_destination_ok(self, destination: CircuitBreaker) -> None:
        now = self._clock.monotonic()
        if not destination.record_success(now):
            return
        self._failures.destination_recovered(destination)
        for run_id in self._queues.drain(destination):
            waiting = self._spool.runs.get(run_id)
            if waiting is not None:
                waiting.blocked_by = ""
                # Another run's success does not take back what the server wished of this one.
                waiting.not_before = max(waiting.retry_after_until, now + self._rng.uniform(0.0, _WAKE_SPREAD_S))
                self._schedule(waiting.id, waiting.not_before)

    def _next_try(self, run: OpenRun) -> float:
        destination = self._queues.waiting_for(run.id)
        return run.not_before if destination is None else destination.next_try_at(run.id)

    def _apply_backoff(
        self,
        run: OpenRun,
        step: Step,
        destination: CircuitBreaker,
        error: DeliveryError,
        now: float,
        *,
        began_at: float,
        failing_since: float | None,
    ) -> None:
        needs_operator = error.retry_action is RetryAction.RETRY_SLOW
        # Authorisation at the API is the same for all runs; what storage refuses may be this run's own affair.
        is_destination_fault = (
            error.status_code is None or error.retry_after_s is not None or (needs_operator and step is not Step.PUT)
        )
        began = destination.record_failure(
            run.id,
            now,
            str(error),
            began_at=began_at,
            run_failing_since=failing_since,
            is_destination_fault=is_destination_fault,
            needs_operator=needs_operator,
            retry_after_s=error.retry_after_s,
        )
        if destination.is_failing:
            self._failures.destination_failed(destination, began=began)
        if step is Step.REFRESH and not self._executor.needs_credentials(run):
            # The credentials at hand are still good: uploads go on.
            run.refresh_attempts += 1
            run.refresh_not_before = now + backoff(
                run.refresh_attempts, rng=self._rng, retry_after_s=error.retry_after_s
            )
        elif destination.is_failing:
            # Back-off belongs to the destination now; this run queues up behind those that wait already.
            run.not_before = run.retry_after_until = (
                0.0 if error.retry_after_s is None else now + min(MAX_DELAY_S, error.retry_after_s)
            )
            self._queues.enqueue(run.id, destination, now)
        elif needs_operator:
            run.not_before = now + slow_backoff(run.attempts, rng=self._rng)
        else:
            run.not_before = now + backoff(run.attempts, rng=self._rng, retry_after_s=error.retry_after_s)
            run.retry_after_until = run.not_before if error.retry_after_s else 0.0

    def _on_credentials_rejected(
        self, run: OpenRun, destination: CircuitBreaker | None, error: DeliveryError, now: float
    ) -> None:
        run.credentials = None
        run.credentials_rejected += 1
        # The first refusal is what expiry looks like; new credentials that are refused as well are another matter.
        if run.credentials_rejected > 1:
            run.not_before = now + backoff(run.credentials_rejected, rng=self._rng)
        if destination is not None and error.status_code is not None:
            self._on_destination_ok(destination)

    def _quarantine(
        self, run: OpenRun, step: Step, destination: CircuitBreaker | None, error: DeliveryError, now: float
    ) -> None:
        if destination is not None and error.status_code is not None:
            self._on_destination_ok(destination)
        if run.record.state is RunState.QUARANTINED:
            # Rows that are damaged: they are what it waits for, or will be.
            run.not_before = now + slow_backoff(run.attempts, rng=self._rng)
            return
        try:
            quarantine_run(self._spool, run, error)
            self._counters.quarantined.add(1, step, _error_label(error))
        except SpoolError as failure:
            run.not_before = now + backoff(run.attempts, rng=self._rng)
            log.error(  # noqa: TRY400 -- no defect, no trace
                "cannot park run=%s error=%s", run.record.run_id, failure, extra=run.record.log_fields
            )


def _error_label(error: Exception) -> str:
    """What a failure is counted under."""
    if isinstance(error, DeliveryError):
        return "no-answer" if error.status_code is None else str(error.status_code)
    return "spool" if isinstance(error, SpoolError) else "defect"
