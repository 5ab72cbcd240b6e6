"""What is due, and who does it: one thread decides, a few workers do.

Everything follows from the spool and the clock: `next_step` says what a run needs, its destination says whether that
may be tried now. Nothing has to be remembered across a restart.
"""

import logging
import random
import threading

from sentinel_protocol.common.clock import Clock
from sentinel_uploader.delivery.backoff import EXPEDITED_DELAY_S
from sentinel_uploader.delivery.circuit_breaker import CircuitBreaker
from sentinel_uploader.delivery.due_queue import DueQueue
from sentinel_uploader.delivery.executor import StepExecutor
from sentinel_uploader.delivery.failure_log import FailureReporter
from sentinel_uploader.delivery.retry_policy import OutcomeHandler
from sentinel_uploader.delivery.wait_queues import WaitQueues
from sentinel_uploader.intake.loop import STALL_THRESHOLD_S, Intake
from sentinel_uploader.runs.delivery_error import DeliveryError
from sentinel_uploader.runs.lifecycle import RunState
from sentinel_uploader.runs.schedule import Policy, Step, next_step
from sentinel_uploader.spool.errors import SpoolError
from sentinel_uploader.spool.open_run import OpenRun, active_runs
from sentinel_uploader.spool.store import Spool
from sentinel_uploader.telemetry.counters import Counters
from sentinel_uploader.util.daemon_pool import DaemonThreadPool

log = logging.getLogger(__name__)

IO_WORKERS = 32
CPU_WORKERS = 2
"""Batches are cut by threads of their own: calls that hang must not keep memory from being bounded."""


class Scheduler:
    """Takes every open run to its end. Call `run_due` from one thread; `notify` from any."""

    def __init__(
        self,
        *,
        spool: Spool,
        executor: StepExecutor,
        intake: Intake,
        policy: Policy,
        clock: Clock,
        rng: random.Random,
        counters: Counters,
    ) -> None:
        self._spool = spool
        self._executor = executor
        self._intake = intake
        self._policy = policy
        self._clock = clock
        self._counters = counters
        self._io_pool = DaemonThreadPool(IO_WORKERS)
        self._cpu_pool = DaemonThreadPool(CPU_WORKERS)
        # Taken before the spool's lock, never while that is held.
        self._lock = threading.RLock()
        self._due = DueQueue()
        self._queues = WaitQueues(schedule=self._due.schedule, rng=rng)
        self._failures = FailureReporter(spool=spool, clock=clock)
        self._outcomes = OutcomeHandler(
            spool=spool,
            executor=executor,
            queues=self._queues,
            schedule=self._due.schedule,
            failures=self._failures,
            clock=clock,
            rng=rng,
            counters=counters,
        )
        self._ended: set[int] = set()
        self._in_flight = 0
        self._abandoned = False
        self._flush_frames_before = 0
        self.wakeup = threading.Event()
        """Set when `run_due` should be called before the time that it named."""
        for run in spool.runs.values():
            self._due.schedule(run.id, 0.0)

    def notify(self, run: OpenRun) -> None:
        """Something has happened to the run: look at it soon."""
        with self._lock:
            if run.id not in self._spool.runs:
                return
            if run.record.has_ended and run.id not in self._ended:
                self._ended.add(run.id)
                # Somebody may be waiting for the result.
                run.not_before = min(
                    run.not_before, max(self._clock.monotonic() + EXPEDITED_DELAY_S, run.retry_after_until)
                )
                self._queues.expedite(run.id)
            self._due.schedule(run.id, 0.0)
        self.wakeup.set()

    def flush(self) -> None:
        """Deliver the rows that are there now without waiting for the upload interval."""
        with self._lock:
            self._flush_frames_before = self._spool.next_frame_id
            for run in list(self._spool.runs.values()):
                self._due.schedule(run.id, 0.0)
        self.wakeup.set()

    def reset_backoff(self) -> None:
        """Try everything at once, whatever was being waited for, but for what a server has wished itself."""
        with self._lock:
            self._queues.reset_all()
            for run in list(self._spool.runs.values()):
                run.not_before, run.refresh_not_before = run.retry_after_until, 0.0
                self._due.schedule(run.id, 0.0)
        self.wakeup.set()

    def reset_backoff_of(self, destination: str) -> None:
        """Try a destination at once: what it refused us for has been changed."""
        with self._lock:
            self._queues.reset(destination)
        self.wakeup.set()

    def run_due(self) -> float:
        """Start what is due; return the monotonic time at which to come back (earlier when `wakeup` is set)."""
        while True:
            now = self._clock.monotonic()
            with self._lock:
                run_id = self._due.pop_due(now)
                if run_id is None:
                    return self._due.next_due()
                if run_id in self._spool.runs:
                    self._schedule_run(self._spool.runs[run_id], now)

    def pending_run_count(self) -> int:
        """Count the runs with something left to deliver: rows, or an end that is not accepted."""
        with self._spool.lock:
            return sum(1 for run in active_runs(self._spool.runs.values()) if _has_work(run))

    def is_flushed(self) -> bool:
        """Whether all that was there at the last `flush` is delivered, and every run that has ended since."""
        with self._spool.lock:
            return not any(
                run.record.has_ended or run.pending_batches or self._is_to_be_flushed(run)
                for run in active_runs(self._spool.runs.values())
            )

    def abandon_steps(self) -> None:
        """The process ends: whatever the steps under way come to is repeated after a restart, with the same effect."""
        with self._lock:
            self._abandoned = True

    @property
    def steps_in_flight(self) -> int:
        """Steps that have not ended, the telling of collectors included."""
        with self._lock:
            return self._in_flight

    def failing_destinations(self) -> int:
        """How many APIs and buckets are being waited for."""
        with self._lock:
            return self._queues.failing_count()

    def on_run_closed(self, run: OpenRun) -> None:
        """Forget a run that has ended, and let its collector know; called from any thread."""
        with self._lock:
            self._ended.discard(run.id)
            self._failures.forget(run)
            self._queues.dequeue(run.id, self._clock.monotonic())
        self._counters.ended.add(1, run.record.state)
        self._intake.notify(run)

    def _schedule_run(self, run: OpenRun, now: float) -> None:
        if run.in_flight:
            return
        step, look_again_at = self._next_step(run, now)
        if step is Step.CLOSE_STALE and now - self._intake.last_loop_at > STALL_THRESHOLD_S:
            # The intake has not listened lately: it decides first whether anybody was heard.
            step, look_again_at = None, now + STALL_THRESHOLD_S
        elif step is not None and now < run.not_before:
            step, look_again_at = None, run.not_before
        if step is None:
            self._queues.dequeue(run.id, now)
            self._due.schedule(run.id, look_again_at)
            return
        try:
            name = self._executor.backoff_key(run, step)
        except DeliveryError as error:
            self._outcomes.on_failure(run, step, None, error, now)
            self._notify_collector(run)
            self._queues.dequeue(run.id, now)
            self._due.schedule(run.id, run.not_before)
            return
        if name is None:
            self._queues.dequeue(run.id, now)
            self._start(run, step, None, now)
            return
        destination = self._queues.breaker(name)
        if destination.allows(run.id, now):
            destination.acquire()
            self._queues.dequeue(run.id, now)
            self._start(run, step, destination, now)
        else:
            self._enqueue(run, destination, now)

    def _enqueue(self, run: OpenRun, destination: CircuitBreaker, now: float) -> None:
        is_new = self._queues.waiting_for(run.id) is not destination
        self._queues.enqueue(run.id, destination, now)
        if is_new and destination.is_failing:
            # Not what was said of another run's call: that names the run, and its collector may be another client's.
            run.blocked_by = f"{destination.name}: {destination.error.partition(': ')[2]}"
            self._notify_collector(run)

    def _notify_collector(self, run: OpenRun) -> None:
        """A collector whose job is over may be waiting for the delivery; one whose run is parked need not."""
        if run.record.has_ended or run.record.state is RunState.QUARANTINED:
            self._intake.notify(run)

    def _next_step(self, run: OpenRun, now: float) -> tuple[Step | None, float]:
        needs = self._executor.needs_credentials(run)
        wants = not needs and self._executor.wants_refresh(run) and self._may_refresh(run, now)
        facts = run.scheduling_facts(
            listening_since=self._intake.receiving_since,
            flush=self._is_to_be_flushed(run),
            needs_credentials=needs,
            wants_refresh=wants,
        )
        return next_step(facts, self._policy, now)

    def _may_refresh(self, run: OpenRun, now: float) -> bool:
        """A refresh that is only wanted does not wait: the credentials at hand are still good."""
        name = self._executor.backoff_key(run, Step.REFRESH)
        return name is not None and now >= run.refresh_not_before and self._queues.breaker(name).allows(run.id, now)

    def _is_to_be_flushed(self, run: OpenRun) -> bool:
        return bool(run.frame_ids) and run.frame_ids[0] < self._flush_frames_before

    def _start(self, run: OpenRun, step: Step, destination: CircuitBreaker | None, now: float) -> None:
        run.in_flight = True
        run.blocked_by = ""
        self._in_flight += 1
        pool = self._cpu_pool if destination is None else self._io_pool
        pool.submit(lambda: self._execute(run, step, destination, now))

    def _execute(self, run: OpenRun, step: Step, destination: CircuitBreaker | None, began_at: float) -> None:
        error: Exception | None = None
        try:
            self._executor.execute(run, step)
        except (DeliveryError, SpoolError) as failure:
            error = failure
        except Exception as failure:
            if self._abandoned:
                return
            # A defect in one run's step must not take the others with it: it is shown, and tried again later.
            name = run.record.run_id or run.record.key
            log.exception("step failed unexpectedly run=%s step=%s", name, step, extra=run.record.log_fields)
            error = failure
        with self._lock:
            if self._abandoned:
                return
            if destination is not None:
                destination.in_flight -= 1
            try:
                if error is None:
                    self._outcomes.on_success(run, step, destination)
                else:
                    self._outcomes.on_failure(run, step, destination, error, began_at)
                    self._notify_collector(run)
            finally:
                run.in_flight = False
                if run.id in self._spool.runs:
                    self._due.schedule(run.id, 0.0)
                else:
                    self.on_run_closed(run)
                if destination is not None:
                    self._queues.admit_next(destination, self._clock.monotonic())
                self._in_flight -= 1
        self.wakeup.set()


def _has_work(run: OpenRun) -> bool:
    return run.record.has_ended or run.unbatched_rows > 0 or run.pending_batches > 0
