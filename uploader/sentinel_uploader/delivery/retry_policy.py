"""What an attempt has come to: for the run, for its destination, and for those that wait there."""

import logging
import random
from collections.abc import Callable

from sentinel_protocol.common.clock import Clock
from sentinel_uploader.delivery.circuit_breaker import CAP_S, Destination, backoff, slow_backoff
from sentinel_uploader.delivery.executor import Steps, park
from sentinel_uploader.delivery.failure_log import TroubleReport
from sentinel_uploader.delivery.wait_queues import Queues
from sentinel_uploader.runs.delivery_error import DeliveryError, Remedy
from sentinel_uploader.runs.lifecycle import RunState, Step
from sentinel_uploader.spool.database import SpoolError
from sentinel_uploader.spool.run_record import Run
from sentinel_uploader.spool.store import Spool
from sentinel_uploader.telemetry.counters import Counters

log = logging.getLogger(__name__)

_WAKE_SPREAD_S = 1.0


class Outcomes:
    """Sets when a run may be tried again; `schedule` takes a run's id and the monotonic time to look at it.

    Called with the dispatcher's lock held. Steps without a destination (`None`) need nobody but the disk.
    """

    def __init__(
        self,
        *,
        spool: Spool,
        steps: Steps,
        queues: Queues,
        schedule: Callable[[int, float], None],
        trouble: TroubleReport,
        clock: Clock,
        rng: random.Random,
        counters: Counters,
    ) -> None:
        self._spool = spool
        self._steps = steps
        self._queues = queues
        self._schedule = schedule
        self._trouble = trouble
        self._clock = clock
        self._rng = rng
        self._counters = counters

    def succeeded(self, run: Run, step: Step, destination: Destination | None) -> None:
        """The step is done."""
        self._trouble.step_succeeded(run, step)
        if destination is None:
            return
        run.failing_since = None
        run.attempts = 0
        run.not_before = run.not_sooner = 0.0
        if step is Step.REFRESH:
            run.refresh_attempts = 0
        self._answered(destination)

    def failed(self, run: Run, step: Step, destination: Destination | None, error: Exception, began_at: float) -> None:
        """The step that began at `began_at` (monotonic) has failed: say when it is tried again, or park the run."""
        now = self._clock.monotonic()
        failing_since, run.failing_since = run.failing_since, run.failing_since or now
        run.attempts += 1
        if not isinstance(error, DeliveryError):
            run.not_before = now + backoff(run.attempts, rng=self._rng)
        elif error.remedy is Remedy.GIVE_UP:
            self._give_up(run, step, destination, error, now)
            return
        elif error.remedy is Remedy.REFRESH:
            self._credentials_refused(run, destination, error, now)
        elif destination is None:
            run.not_before = now + slow_backoff(run.attempts, rng=self._rng)
        else:
            self._delay(run, step, destination, error, now, began_at=began_at, failing_since=failing_since)
        self._counters.retries.add(1, step, _code(error))
        self._trouble.step_failed(run, step, error, self._next_try(run))

    def _answered(self, destination: Destination) -> None:
        now = self._clock.monotonic()
        if not destination.succeeded(now):
            return
        self._trouble.destination_is_back(destination)
        for run_id in self._queues.release(destination):
            waiting = self._spool.runs.get(run_id)
            if waiting is not None:
                waiting.trouble = ""
                # Another run's success does not take back what the server wished of this one.
                waiting.not_before = max(waiting.not_sooner, now + self._rng.uniform(0.0, _WAKE_SPREAD_S))
                self._schedule(waiting.id, waiting.not_before)

    def _next_try(self, run: Run) -> float:
        destination = self._queues.queued_at(run.id)
        return run.not_before if destination is None else destination.next_try_at(run.id)

    def _delay(
        self,
        run: Run,
        step: Step,
        destination: Destination,
        error: DeliveryError,
        now: float,
        *,
        began_at: float,
        failing_since: float | None,
    ) -> None:
        slowly = error.remedy is Remedy.RETRY_SLOWLY
        # Authorisation at the API is the same for all runs; what storage refuses may be this run's own affair.
        certain = error.status_code is None or error.retry_after_s is not None or (slowly and step is not Step.PUT)
        began = destination.failed(
            run.id,
            now,
            str(error),
            began_at=began_at,
            run_failing_since=failing_since,
            certain=certain,
            slowly=slowly,
            retry_after_s=error.retry_after_s,
        )
        if destination.is_failing:
            self._trouble.destination_failed(destination, began=began)
        if step is Step.REFRESH and not self._steps.needs_credentials(run):
            # The credentials at hand are still good: uploads go on.
            run.refresh_attempts += 1
            run.refresh_not_before = now + backoff(
                run.refresh_attempts, rng=self._rng, retry_after_s=error.retry_after_s
            )
        elif destination.is_failing:
            # Back-off belongs to the destination now; this run queues up behind those that wait already.
            run.not_before = run.not_sooner = (
                0.0 if error.retry_after_s is None else now + min(CAP_S, error.retry_after_s)
            )
            self._queues.join(run.id, destination, now)
        elif slowly:
            run.not_before = now + slow_backoff(run.attempts, rng=self._rng)
        else:
            run.not_before = now + backoff(run.attempts, rng=self._rng, retry_after_s=error.retry_after_s)
            run.not_sooner = run.not_before if error.retry_after_s else 0.0

    def _credentials_refused(self, run: Run, destination: Destination | None, error: DeliveryError, now: float) -> None:
        run.credentials = None
        run.credentials_refused += 1
        # The first refusal is what expiry looks like; new credentials that are refused as well are another matter.
        if run.credentials_refused > 1:
            run.not_before = now + backoff(run.credentials_refused, rng=self._rng)
        if destination is not None and error.status_code is not None:
            self._answered(destination)

    def _give_up(self, run: Run, step: Step, destination: Destination | None, error: DeliveryError, now: float) -> None:
        if destination is not None and error.status_code is not None:
            self._answered(destination)
        if run.record.state is RunState.PARKED:
            # Rows that are damaged: they are what it waits for, or will be.
            run.not_before = now + slow_backoff(run.attempts, rng=self._rng)
            return
        try:
            park(self._spool, run, error)
            self._counters.parked.add(1, step, _code(error))
        except SpoolError as failure:
            run.not_before = now + backoff(run.attempts, rng=self._rng)
            log.error(  # noqa: TRY400 -- no defect, no trace
                "cannot park run=%s error=%s", run.record.run_id, failure, extra=run.record.log_fields
            )


def _code(error: Exception) -> str:
    """What a failure is counted under."""
    if isinstance(error, DeliveryError):
        return "no-answer" if error.status_code is None else str(error.status_code)
    return "spool" if isinstance(error, SpoolError) else "defect"
