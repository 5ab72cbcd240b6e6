"""What is due, and who does it: one thread decides, a few workers do.

Everything follows from the spool and the clock: `next_step` says what a run needs, its destination says whether that
may be tried now. Nothing has to be remembered across a restart.
"""

import heapq
import itertools
import logging
import random
import threading

from protocol.clock import Clock
from uploader.backoff import HURRY_S, Destination, backoff, slow_backoff
from uploader.database import SpoolError
from uploader.failures import DeliveryError, Remedy
from uploader.intake import LATE_S, Intake
from uploader.pool import WorkerPool
from uploader.records import Run
from uploader.run import Policy, RunState, Step, next_step
from uploader.spool import Spool, open_runs
from uploader.steps import Steps, park

log = logging.getLogger(__name__)

WORKERS = 16
MAX_CALLS_PER_DESTINATION = 8
_LOG_INTERVAL_S = 60.0
_WAKE_SPREAD_S = 1.0


class Dispatcher:
    """Takes every open run to its end. Call `step_due` from one thread; `wake` from any."""

    def __init__(
        self, *, spool: Spool, steps: Steps, intake: Intake, policy: Policy, clock: Clock, rng: random.Random
    ) -> None:
        self._spool = spool
        self._steps = steps
        self._intake = intake
        self._policy = policy
        self._clock = clock
        self._rng = rng
        self._pool = WorkerPool(WORKERS)
        self._lock = threading.RLock()
        self._heap: list[tuple[float, int, int]] = []
        self._tickets = itertools.count()
        self._ticket_of: dict[int, int] = {}
        self._destinations: dict[str, Destination] = {}
        self._logged_at: dict[str, float] = {}
        self._ended: set[int] = set()
        self._flush = False
        self.changed = threading.Event()
        """Set when `step_due` should be called before the time that it named."""
        for run in spool.runs.values():
            self._schedule(run, 0.0)

    def wake(self, run: Run) -> None:
        """Something has happened to the run: look at it soon."""
        with self._lock:
            if run.record.has_ended and run.id not in self._ended:
                self._ended.add(run.id)
                self._hurry(run)
            self._schedule(run, 0.0)
        self.changed.set()

    def flush(self) -> None:
        """Deliver what is there without waiting for the upload interval, from now on."""
        with self._lock:
            self._flush = True
            for run in list(self._spool.runs.values()):
                self._schedule(run, 0.0)
        self.changed.set()

    def retry_all_now(self) -> None:
        """Try everything at once, whatever was being waited for."""
        with self._lock:
            for destination in self._destinations.values():
                destination.not_before = 0.0
            for run in list(self._spool.runs.values()):
                run.not_before = 0.0
                self._schedule(run, 0.0)
        self.changed.set()

    def step_due(self) -> float:
        """Start what is due; return the monotonic time at which to come back (earlier when `changed` is set)."""
        while True:
            now = self._clock.monotonic()
            with self._lock:
                run = self._pop_due(now)
                if run is None:
                    return self._heap[0][0] if self._heap else float("inf")
                self._consider(run, now)

    def undelivered(self) -> int:
        """Count the runs with something left to deliver: rows, or an end that is not accepted."""
        with self._spool.lock:
            return sum(1 for run in open_runs(self._spool.runs.values()) if _has_work(run))

    def busy(self) -> bool:
        """Whether a step is under way."""
        with self._lock:
            return any(run.busy for run in list(self._spool.runs.values()))

    # -- deciding ----------------------------------------------------------------------------------------------

    def _pop_due(self, now: float) -> Run | None:
        while self._heap:
            when, ticket, run_id = self._heap[0]
            if self._ticket_of.get(run_id) != ticket:
                heapq.heappop(self._heap)
                continue
            if when > now:
                return None
            heapq.heappop(self._heap)
            del self._ticket_of[run_id]
            run = self._spool.runs.get(run_id)
            if run is not None:
                return run
        return None

    def _consider(self, run: Run, now: float) -> None:
        if run.busy:
            return
        step, look_again_at = self._next_step(run, now)
        if step is None:
            self._schedule(run, look_again_at)
            return
        if step is Step.CLOSE_STALE and now - self._intake.looped_at > LATE_S:
            # The intake has not listened lately: it decides first whether anybody was heard.
            self._schedule(run, now + LATE_S)
            return
        name = self._steps.destination(run, step)
        if name is None:
            self._start(run, step, None, now)
            return
        if now < run.not_before:
            self._schedule(run, run.not_before)
            return
        destination = self._destination(name)
        if destination.admits(now):
            destination.waiting.pop(run.id, None)
            destination.begin(now)
            self._start(run, step, destination, now)
        else:
            destination.waiting[run.id] = None
            self._schedule_probe(destination)

    def _next_step(self, run: Run, now: float) -> tuple[Step | None, float]:
        needs = self._steps.needs_credentials(run)
        wants = not needs and self._steps.wants_refresh(run) and self._api_admits(run, now)
        facts = run.facts(
            listening_since=self._intake.listening_since,
            flush=self._flush,
            needs_credentials=needs,
            wants_refresh=wants,
        )
        return next_step(facts, self._policy, now)

    def _api_admits(self, run: Run, now: float) -> bool:
        """A refresh that is only wanted does not wait: the credentials at hand are still good."""
        name = self._steps.destination(run, Step.REFRESH)
        return name is not None and now >= run.not_before and not self._destination(name).is_failing

    def _schedule(self, run: Run, when: float) -> None:
        if when == float("inf"):
            self._ticket_of.pop(run.id, None)
            return
        ticket = next(self._tickets)
        self._ticket_of[run.id] = ticket
        heapq.heappush(self._heap, (when, ticket, run.id))

    def _schedule_probe(self, destination: Destination) -> None:
        """One of those that wait tries a failing destination when its time has come."""
        if destination.is_failing and not destination.calls and destination.waiting:
            run = self._spool.runs.get(next(iter(destination.waiting)))
            if run is None:
                destination.waiting.popitem(last=False)
                self._schedule_probe(destination)
            else:
                self._schedule(run, destination.not_before)

    def _destination(self, name: str) -> Destination:
        if name not in self._destinations:
            self._destinations[name] = Destination(name, most_calls=MAX_CALLS_PER_DESTINATION, rng=self._rng)
        return self._destinations[name]

    def _hurry(self, run: Run) -> None:
        """The run has ended and somebody may be waiting for it."""
        now = self._clock.monotonic()
        run.not_before = min(run.not_before, now + HURRY_S)
        for destination in self._destinations.values():
            if run.id in destination.waiting:
                destination.hurry(now)
                destination.waiting.move_to_end(run.id, last=False)
                self._schedule_probe(destination)

    # -- doing -------------------------------------------------------------------------------------------------

    def _start(self, run: Run, step: Step, destination: Destination | None, now: float) -> None:
        run.busy = True
        self._pool.submit(lambda: self._do(run, step, destination, now))

    def _do(self, run: Run, step: Step, destination: Destination | None, began_at: float) -> None:
        error: Exception | None = None
        try:
            self._steps.perform(run, step)
        except (DeliveryError, SpoolError) as failure:
            error = failure
        except Exception as failure:
            # A defect in one run's step must not take the others with it: it is shown, and tried again later.
            log.exception("step failed unexpectedly run=%s step=%s", run.record.run_id or run.record.key, step)
            error = failure
        with self._lock:
            now = self._clock.monotonic()
            if destination is not None:
                destination.calls -= 1
            if error is None:
                self._succeeded(run, destination)
            else:
                self._failed(run, step, destination, error, began_at)
            run.busy = False
            if run.id in self._spool.runs:
                self._schedule(run, 0.0)
            else:
                self._ended.discard(run.id)
                self._intake.run_is_over(run)
            if destination is not None:
                self._wake_waiting(destination, now)
        self.changed.set()

    def _succeeded(self, run: Run, destination: Destination | None) -> None:
        if destination is None:
            return
        run.attempts = 0
        run.not_before = 0.0
        if destination.succeeded():
            now = self._clock.monotonic()
            log.info(
                "destination is back destination=%s after_s=%.0f", destination.name, now - destination.failing_since
            )
            self._logged_at.pop(destination.name, None)
            self._show(destination, now)
            for run_id in destination.waiting:
                waiting = self._spool.runs.get(run_id)
                if waiting is not None:
                    waiting.not_before = now + self._rng.uniform(0.0, _WAKE_SPREAD_S)
                    self._schedule(waiting, waiting.not_before)
            destination.waiting.clear()

    def _failed(self, run: Run, step: Step, destination: Destination | None, error: Exception, began_at: float) -> None:
        now = self._clock.monotonic()
        run.attempts += 1
        if not isinstance(error, DeliveryError) or destination is None:
            run.not_before = now + backoff(run.attempts, rng=self._rng)
            self._note(run, step, error, run.not_before)
            return
        if error.remedy is Remedy.GIVE_UP:
            self._park(run, error)
            return
        if error.remedy is Remedy.REFRESH:
            self._credentials_refused(run, error, now, step)
            return
        slowly = error.remedy is Remedy.RETRY_SLOWLY
        wait = (
            slow_backoff(run.attempts, rng=self._rng)
            if slowly
            else backoff(run.attempts, rng=self._rng, retry_after_s=error.retry_after_s)
        )
        run.not_before = now + wait
        # Authorisation at the API is the same for all runs; what storage refuses may be this run's own affair.
        certain = error.status_code is None or (slowly and step is not Step.PUT)
        began = destination.failed(
            run.id,
            now,
            str(error),
            began_at=began_at,
            certain=certain,
            slowly=slowly,
            retry_after_s=error.retry_after_s,
        )
        if destination.is_failing:
            # Back-off belongs to the destination now; this run queues up behind those that wait already.
            run.not_before = 0.0
            destination.waiting[run.id] = None
            destination.waiting.move_to_end(run.id)
            self._log_destination(destination, now, began=began)
            self._note(run, step, error, destination.not_before)
        else:
            self._note(run, step, error, run.not_before)

    def _credentials_refused(self, run: Run, error: Exception, now: float, step: Step) -> None:
        run.credentials = None
        run.credentials_refused += 1
        # The first refusal is what expiry looks like; new credentials that are refused as well are another matter.
        if run.credentials_refused > 1:
            run.not_before = now + backoff(run.credentials_refused, rng=self._rng)
        self._note(run, step, error, run.not_before)

    def _park(self, run: Run, error: Exception) -> None:
        try:
            park(self._spool, run, error)
        except SpoolError as failure:
            run.not_before = self._clock.monotonic() + backoff(run.attempts, rng=self._rng)
            log.error("cannot park run=%s error=%s", run.record.run_id, failure)  # noqa: TRY400 -- no defect, no trace

    def _wake_waiting(self, destination: Destination, now: float) -> None:
        if destination.is_failing:
            self._schedule_probe(destination)
        elif destination.waiting:
            run = self._spool.runs.get(destination.waiting.popitem(last=False)[0])
            if run is not None:
                self._schedule(run, now)

    # -- telling -----------------------------------------------------------------------------------------------

    def _note(self, run: Run, step: Step, error: Exception, next_try: float) -> None:
        """Show the failure to `status`, and log it unless the destination's own line says it already."""
        now = self._clock.monotonic()
        wall = self._clock.now()
        name = run.record.run_id or run.record.key
        key = f"run:{run.id}"
        if now - self._logged_at.get(key, -_LOG_INTERVAL_S) >= _LOG_INTERVAL_S:
            self._logged_at[key] = now
            log.warning("step failed run=%s step=%s next_try_in_s=%.1f error=%s", name, step, next_try - now, error)
        if run.record.state is RunState.PARKED or run.id not in self._spool.runs:
            return
        try:
            self._spool.update(
                run, last_error=str(error), last_error_at=wall, next_try_at=wall + max(0.0, next_try - now)
            )
        except SpoolError as failure:
            log.warning("cannot note a failed step run=%s error=%s", name, failure)

    def _log_destination(self, destination: Destination, now: float, *, began: bool) -> None:
        self._show(destination, now)
        if began or now - self._logged_at.get(destination.name, 0.0) >= _LOG_INTERVAL_S:
            self._logged_at[destination.name] = now
            log.warning(
                "destination is failing destination=%s attempts=%d next_try_in_s=%.1f error=%s",
                destination.name,
                destination.attempts,
                destination.not_before - now,
                destination.error,
            )

    def _show(self, destination: Destination, now: float) -> None:
        wall = self._clock.now()
        try:
            self._spool.note_destination(
                destination.name,
                attempts=destination.attempts,
                next_try_at=wall + destination.not_before - now,
                error=destination.error,
                since=wall + destination.failing_since - now,
            )
        except SpoolError as error:
            log.warning("cannot note the state of a destination destination=%s error=%s", destination.name, error)


def _has_work(run: Run) -> bool:
    return run.record.has_ended or run.open_rows > 0 or run.waiting_batches > 0
