"""Decides what is due and has workers do it: one thread decides, a few workers execute.

Everything follows from the spool and the clock: `next_step` says what a run needs, its destination's circuit breaker
whether that may be tried now. Nothing has to be remembered across a restart.
"""

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from sentinel_protocol.common.clock import Clock
from sentinel_uploader.delivery.backoff import EXPEDITED_DELAY_S, backoff
from sentinel_uploader.delivery.circuit_breaker import CircuitBreaker
from sentinel_uploader.delivery.executor import StepExecutor, quarantine_run
from sentinel_uploader.delivery.failure_log import FailureReporter
from sentinel_uploader.delivery.retry_policy import Outcome, OutcomeHandler, error_label
from sentinel_uploader.delivery.run_schedule import DueQueue, RunSchedule
from sentinel_uploader.delivery.wait_queues import WaitQueues
from sentinel_uploader.runs.delivery_error import DeliveryError
from sentinel_uploader.runs.lifecycle import RunState
from sentinel_uploader.runs.schedule import Policy, Step, next_step
from sentinel_uploader.spool.errors import SpoolError
from sentinel_uploader.spool.open_run import OpenRun
from sentinel_uploader.spool.store import Spool
from sentinel_uploader.telemetry.counters import Counters
from sentinel_uploader.util.daemon_pool import DaemonThreadPool

log = logging.getLogger(__name__)

IO_WORKERS = 32
CPU_WORKERS = 2
"""Batches are sealed by threads of their own: calls that hang must not keep memory from being bounded."""
_STALLED_RECHECK_S = 3.0


class CollectorPresence(Protocol):
    """What delivery needs to know of collectors, and tells them. Used from any thread; nothing blocks."""

    @property
    def receiving_since(self) -> float:
        """Since when messages have been received without a pause (monotonic seconds); silence counts from here."""

    def is_stalled(self, now: float) -> bool:
        """Whether messages may lie unread: no run is closed as stale meanwhile."""

    def notify(self, run: OpenRun) -> None:
        """Tell the run's collector how the run ended, or what keeps it from being delivered."""


@dataclass(kw_only=True)
class Scheduler:
    """Takes every open run to its end. Call `run_due` from one thread, everything else from any.

    `_lock` guards everything declared below it. It is held for decisions only: no disk write, no call to the outside
    and no lock of the spool under it.
    """

    spool: Spool
    executor: StepExecutor
    presence: CollectorPresence
    policy: Policy
    clock: Clock
    rng: random.Random
    counters: Counters

    def __post_init__(self) -> None:
        self._io_pool = DaemonThreadPool(IO_WORKERS)
        self._cpu_pool = DaemonThreadPool(CPU_WORKERS)
        self._failures = FailureReporter(spool=self.spool, clock=self.clock)
        self.wakeup = threading.Event()
        """Set when `run_due` should be called before the time that it returned."""
        self._lock = threading.Lock()
        self._schedules: dict[int, RunSchedule] = {}
        self._due = DueQueue()
        self._queues = WaitQueues(schedule=self._due.schedule, rng=self.rng)
        self._outcomes = OutcomeHandler(
            executor=self.executor,
            queues=self._queues,
            schedules=self._schedules,
            clock=self.clock,
            rng=self.rng,
        )
        self._steps_in_flight = 0
        self._is_abandoned = False
        self._flush_before_frame = 0
        for run in self.spool.view(lambda run: run):
            self._schedule_of(run)
            self._due.schedule(run.id, 0.0)

    def notify(self, run: OpenRun) -> None:
        """Look at the run soon: rows or its end have come."""
        with self._lock:
            if run.record.is_over:
                return
            schedule = self._schedule_of(run)
            if run.record.has_ended and not schedule.is_expedited:
                schedule.is_expedited = True
                # A collector may be waiting for the result.
                soon = max(self.clock.monotonic() + EXPEDITED_DELAY_S, schedule.retry_after_until)
                schedule.not_before = min(schedule.not_before, soon)
                self._queues.expedite(run.id)
            self._due.schedule(run.id, 0.0)
        self.wakeup.set()

    def requeue(self, run: OpenRun) -> None:
        """Try a run at once that was quarantined."""
        with self._lock:
            schedule = self._schedule_of(run)
            schedule.not_before = 0.0
            schedule.attempts = 0
        self.notify(run)

    def flush(self) -> None:
        """Deliver the rows that are stored now without waiting for the upload interval."""
        next_frame_id = self.spool.next_frame_id
        with self._lock:
            self._flush_before_frame = next_frame_id
            for run_id in self._schedules:
                self._due.schedule(run_id, 0.0)
        self.wakeup.set()

    def reset_backoff(self) -> None:
        """Try everything at once, except where a server's `Retry-After` says later."""
        with self._lock:
            self._queues.reset_all()
            for run_id, schedule in self._schedules.items():
                schedule.not_before = schedule.retry_after_until
                schedule.refresh_not_before = 0.0
                self._due.schedule(run_id, 0.0)
        self.wakeup.set()

    def reset_backoff_of(self, destination: str) -> None:
        """Try a destination at once: the rejected token has been replaced."""
        with self._lock:
            self._queues.reset(destination)
        self.wakeup.set()

    def run_due(self) -> float:
        """Start what is due; return the monotonic time at which to call again (earlier when `wakeup` is set)."""
        while True:
            now = self.clock.monotonic()
            with self._lock:
                run_id = self._due.pop_due(now)
                if run_id is None:
                    return self._due.next_due()
                schedule = self._schedules.get(run_id)
                if schedule is None or schedule.in_flight:
                    # A run in flight is looked at again when its step ends.
                    continue
                then = self._decide(schedule, now)
            if then is not None:
                then()

    def pending_run_count(self) -> int:
        """Count the runs with something left to deliver: rows, or an end that is not accepted."""
        return sum(self.spool.view(_has_work))

    def is_flushed(self) -> bool:
        """Whether all rows of the last `flush` are delivered, and every run that has ended since."""
        with self._lock:
            before = self._flush_before_frame
        return not any(self.spool.view(lambda run: _is_to_be_flushed(run, before)))

    def abandon_steps(self) -> None:
        """The process ends. Steps in flight are repeated after a restart, with the same effect."""
        with self._lock:
            self._is_abandoned = True

    @property
    def steps_in_flight(self) -> int:
        """Steps that have not ended, the notification of collectors included."""
        with self._lock:
            return self._steps_in_flight

    def is_in_flight(self, run: OpenRun) -> bool:
        """Whether a step of the run is being executed."""
        with self._lock:
            schedule = self._schedules.get(run.id)
            return schedule is not None and schedule.in_flight

    def blocked_by(self, run: OpenRun) -> str:
        """Return the failing destination that the run waits for; empty when its own step has failed, or none."""
        with self._lock:
            schedule = self._schedules.get(run.id)
            return "" if schedule is None else schedule.blocked_by

    def failing_destinations(self) -> int:
        """How many APIs and buckets are failing."""
        with self._lock:
            return self._queues.failing_count()

    def on_run_closed(self, run: OpenRun) -> None:
        """Forget a closed run, and let its collector know."""
        with self._lock:
            self._schedules.pop(run.id, None)
            self._due.schedule(run.id, float("inf"))
            self._queues.dequeue(run.id, self.clock.monotonic())
        self.executor.forget(run)
        self._failures.forget(run)
        self.counters.ended.add(1, run.record.state)
        self.presence.notify(run)

    def _schedule_of(self, run: OpenRun) -> RunSchedule:
        return self._schedules.setdefault(run.id, RunSchedule(run))

    def _decide(self, schedule: RunSchedule, now: float) -> Callable[[], None] | None:
        """Have a worker execute the run's next step, have the run wait for its destination, or look at it again later.

        Returns what to call once the lock is released.
        """
        run = schedule.run
        step, look_again_at = self._next_step(schedule, now)
        if step is None:
            self._queues.dequeue(run.id, now)
            self._due.schedule(run.id, look_again_at)
            return None
        try:
            key = self.executor.backoff_key(run, step)
        except DeliveryError as error:
            # The run's address is malformed. A worker records that.
            self._begin(schedule, now)
            return partial(self._cpu_pool.submit, partial(self._conclude, schedule, step, None, error, now))
        breaker = None if key is None else self._queues.breaker(key)
        if breaker is not None:
            if not breaker.allows(run.id, now):
                return partial(self._notify_collector, run) if self._enqueue(schedule, breaker, now) else None
            breaker.in_flight += 1
        self._begin(schedule, now)
        pool = self._cpu_pool if breaker is None else self._io_pool
        return partial(pool.submit, partial(self._execute, schedule, step, breaker, now))

    def _begin(self, schedule: RunSchedule, now: float) -> None:
        self._queues.dequeue(schedule.run.id, now)
        schedule.in_flight = True
        schedule.blocked_by = ""
        self._steps_in_flight += 1

    def _enqueue(self, schedule: RunSchedule, breaker: CircuitBreaker, now: float) -> bool:
        """Wait for the destination; True when it is failing and the run's collector does not know."""
        run_id = schedule.run.id
        is_new = self._queues.waiting_for(run_id) is not breaker
        self._queues.enqueue(run_id, breaker, now)
        if not is_new or not breaker.is_failing:
            return False
        # Without the call's name: that names another run, whose collector may be another client's.
        schedule.blocked_by = f"{breaker.name}: {breaker.error.partition(': ')[2]}"
        return True

    def _next_step(self, schedule: RunSchedule, now: float) -> tuple[Step | None, float]:
        run = schedule.run
        needs = self.executor.needs_credentials(run)
        wants = not needs and self.executor.wants_refresh(run) and self._may_refresh(schedule, now)
        facts = run.scheduling_facts(
            receiving_since=self.presence.receiving_since,
            flush=run.has_frame_before(self._flush_before_frame),
            needs_credentials=needs,
            wants_refresh=wants,
        )
        step, look_again_at = next_step(facts, self.policy, now)
        if step is Step.CLOSE_STALE and self.presence.is_stalled(now):
            return None, now + _STALLED_RECHECK_S
        if step is not None and now < schedule.not_before:
            return None, schedule.not_before
        return step, look_again_at

    def _may_refresh(self, schedule: RunSchedule, now: float) -> bool:
        """A refresh ahead of expiry does not wait: the present credentials are still good."""
        key = self.executor.backoff_key(schedule.run, Step.REFRESH)
        return (
            key is not None
            and now >= schedule.refresh_not_before
            and self._queues.breaker(key).allows(schedule.run.id, now)
        )

    def _notify_collector(self, run: OpenRun) -> None:
        """A collector whose job is over may be waiting for the delivery; that of a quarantined run need not."""
        if run.record.has_ended or run.record.state is RunState.QUARANTINED:
            self.presence.notify(run)

    def _execute(self, schedule: RunSchedule, step: Step, breaker: CircuitBreaker | None, began_at: float) -> None:
        run = schedule.run
        error: Exception | None = None
        try:
            self.executor.execute(run, step)
        except (DeliveryError, SpoolError) as failure:
            error = failure
        except Exception as failure:
            if self._is_abandoned:
                return
            # A defect in one run's step must not stop the other runs: it is logged, and tried again later.
            name = run.record.run_id or run.record.key
            log.exception("step failed unexpectedly run=%s step=%s", name, step, extra=run.record.log_fields)
            error = failure
        self._conclude(schedule, step, breaker, error, began_at)

    def _conclude(
        self,
        schedule: RunSchedule,
        step: Step,
        breaker: CircuitBreaker | None,
        error: Exception | None,
        began_at: float,
    ) -> None:
        try:
            with self._lock:
                if self._is_abandoned:
                    return
                if breaker is not None:
                    breaker.in_flight -= 1
                if error is None:
                    outcome = self._outcomes.on_success(schedule, step, breaker)
                else:
                    outcome = self._outcomes.on_failure(schedule, step, breaker, error, began_at)
                if breaker is not None:
                    self._queues.admit_next(breaker, self.clock.monotonic())
            self._record(schedule, step, error, outcome)
        finally:
            self._end_step(schedule, has_failed=error is not None)

    def _record(self, schedule: RunSchedule, step: Step, error: Exception | None, outcome: Outcome) -> None:
        """Write down what the step has come to. The run is still in flight: nothing else is done for it meanwhile."""
        run = schedule.run
        if error is None:
            self._failures.step_succeeded(run, step)
        if outcome.destination is not None:
            self._failures.destination_changed(outcome.destination)
        if error is None:
            return
        if outcome.quarantine:
            try:
                quarantine_run(self.spool, run, error)
                self.counters.quarantined.add(1, step, error_label(error))
            except SpoolError as failure:
                # The spool did not take the new state: the step is repeated, and fails again.
                with self._lock:
                    schedule.not_before = self.clock.monotonic() + backoff(schedule.attempts, rng=self.rng)
                log.error(  # noqa: TRY400 -- no defect, no trace
                    "cannot park run=%s error=%s", run.record.run_id, failure, extra=run.record.log_fields
                )
        elif outcome.next_try_at is not None:
            self.counters.retries.add(1, step, error_label(error))
            self._failures.step_failed(run, step, error, outcome.next_try_at)

    def _end_step(self, schedule: RunSchedule, *, has_failed: bool) -> None:
        run = schedule.run
        with self._lock:
            if self._is_abandoned:
                return
            schedule.in_flight = False
            is_over = run.record.is_over
            if not is_over:
                self._due.schedule(run.id, 0.0)
        if is_over:
            self.on_run_closed(run)
        elif has_failed:
            self._notify_collector(run)
        with self._lock:
            self._steps_in_flight -= 1
        self.wakeup.set()


def _has_work(run: OpenRun) -> bool:
    return run.is_active and (run.record.has_ended or run.unbatched_rows > 0 or run.pending_batches > 0)


def _is_to_be_flushed(run: OpenRun, before: int) -> bool:
    has_rows = run.pending_batches > 0 or run.has_frame_before(before)
    return run.is_active and (run.record.has_ended or has_rows)
