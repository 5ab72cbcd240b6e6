"""What is due, and who does it: one thread decides, a few workers do.

Everything follows from the spool and the clock: `next_step` says what a run needs, its destination says whether that
may be tried now. Nothing has to be remembered across a restart.
"""

import logging
import random
import threading

from sentinel_protocol.common.clock import Clock
from sentinel_uploader.delivery.circuit_breaker import HURRY_S, Destination
from sentinel_uploader.delivery.due_queue import Agenda
from sentinel_uploader.delivery.executor import Steps
from sentinel_uploader.delivery.failure_log import TroubleReport
from sentinel_uploader.delivery.retry_policy import Outcomes
from sentinel_uploader.delivery.wait_queues import Queues
from sentinel_uploader.intake.loop import STALL_THRESHOLD_S, Intake
from sentinel_uploader.runs.delivery_error import DeliveryError
from sentinel_uploader.runs.lifecycle import Policy, RunState, Step, next_step
from sentinel_uploader.spool.database import SpoolError
from sentinel_uploader.spool.run_record import Run, open_runs
from sentinel_uploader.spool.store import Spool
from sentinel_uploader.telemetry.counters import Counters
from sentinel_uploader.util.daemon_pool import WorkerPool

log = logging.getLogger(__name__)

CALL_WORKERS = 32
INNER_WORKERS = 2
"""Batches are cut by threads of their own: calls that hang must not keep memory from being bounded."""


class Dispatcher:
    """Takes every open run to its end. Call `step_due` from one thread; `wake` from any."""

    def __init__(
        self,
        *,
        spool: Spool,
        steps: Steps,
        intake: Intake,
        policy: Policy,
        clock: Clock,
        rng: random.Random,
        counters: Counters,
    ) -> None:
        self._spool = spool
        self._steps = steps
        self._intake = intake
        self._policy = policy
        self._clock = clock
        self._counters = counters
        self._calls = WorkerPool(CALL_WORKERS)
        self._inner = WorkerPool(INNER_WORKERS)
        # Taken before the spool's lock, never while that is held.
        self._lock = threading.RLock()
        self._agenda = Agenda()
        self._queues = Queues(schedule=self._agenda.put, rng=rng)
        self._trouble = TroubleReport(spool=spool, clock=clock)
        self._outcomes = Outcomes(
            spool=spool,
            steps=steps,
            queues=self._queues,
            schedule=self._agenda.put,
            trouble=self._trouble,
            clock=clock,
            rng=rng,
            counters=counters,
        )
        self._ended: set[int] = set()
        self._under_way = 0
        self._abandoned = False
        self._flush_frames_before = 0
        self.changed = threading.Event()
        """Set when `step_due` should be called before the time that it named."""
        for run in spool.runs.values():
            self._agenda.put(run.id, 0.0)

    def wake(self, run: Run) -> None:
        """Something has happened to the run: look at it soon."""
        with self._lock:
            if run.id not in self._spool.runs:
                return
            if run.record.has_ended and run.id not in self._ended:
                self._ended.add(run.id)
                # Somebody may be waiting for the result.
                run.not_before = min(run.not_before, max(self._clock.monotonic() + HURRY_S, run.not_sooner))
                self._queues.hurry(run.id)
            self._agenda.put(run.id, 0.0)
        self.changed.set()

    def flush(self) -> None:
        """Deliver the rows that are there now without waiting for the upload interval."""
        with self._lock:
            self._flush_frames_before = self._spool.next_frame_id
            for run in list(self._spool.runs.values()):
                self._agenda.put(run.id, 0.0)
        self.changed.set()

    def retry_all_now(self) -> None:
        """Try everything at once, whatever was being waited for, but for what a server has wished itself."""
        with self._lock:
            self._queues.forget_waits()
            for run in list(self._spool.runs.values()):
                run.not_before, run.refresh_not_before = run.not_sooner, 0.0
                self._agenda.put(run.id, 0.0)
        self.changed.set()

    def retry_now(self, destination: str) -> None:
        """Try a destination at once: what it refused us for has been changed."""
        with self._lock:
            self._queues.forget_wait(destination)
        self.changed.set()

    def step_due(self) -> float:
        """Start what is due; return the monotonic time at which to come back (earlier when `changed` is set)."""
        while True:
            now = self._clock.monotonic()
            with self._lock:
                run_id = self._agenda.take_due(now)
                if run_id is None:
                    return self._agenda.next_at()
                if run_id in self._spool.runs:
                    self._consider(self._spool.runs[run_id], now)

    def undelivered(self) -> int:
        """Count the runs with something left to deliver: rows, or an end that is not accepted."""
        with self._spool.lock:
            return sum(1 for run in open_runs(self._spool.runs.values()) if _has_work(run))

    def is_flushed(self) -> bool:
        """Whether all that was there at the last `flush` is delivered, and every run that has ended since."""
        with self._spool.lock:
            return not any(
                run.record.has_ended or run.waiting_batches or self._is_to_be_flushed(run)
                for run in open_runs(self._spool.runs.values())
            )

    def abandon(self) -> None:
        """The process ends: whatever the steps under way come to is repeated after a restart, with the same effect."""
        with self._lock:
            self._abandoned = True

    @property
    def steps_under_way(self) -> int:
        """Steps that have not ended, the telling of collectors included."""
        with self._lock:
            return self._under_way

    def failing_destinations(self) -> int:
        """How many APIs and buckets are being waited for."""
        with self._lock:
            return self._queues.failing()

    def run_is_over(self, run: Run) -> None:
        """Forget a run that has ended, and let its collector know; called from any thread."""
        with self._lock:
            self._ended.discard(run.id)
            self._trouble.forget(run)
            self._queues.leave(run.id, self._clock.monotonic())
        self._counters.ended.add(1, run.record.state)
        self._intake.notify(run)

    def _consider(self, run: Run, now: float) -> None:
        if run.busy:
            return
        step, look_again_at = self._next_step(run, now)
        if step is Step.CLOSE_STALE and now - self._intake.last_loop_at > STALL_THRESHOLD_S:
            # The intake has not listened lately: it decides first whether anybody was heard.
            step, look_again_at = None, now + STALL_THRESHOLD_S
        elif step is not None and now < run.not_before:
            step, look_again_at = None, run.not_before
        if step is None:
            self._queues.leave(run.id, now)
            self._agenda.put(run.id, look_again_at)
            return
        try:
            name = self._steps.destination(run, step)
        except DeliveryError as error:
            self._outcomes.failed(run, step, None, error, now)
            self._tell_who_waits(run)
            self._queues.leave(run.id, now)
            self._agenda.put(run.id, run.not_before)
            return
        if name is None:
            self._queues.leave(run.id, now)
            self._start(run, step, None, now)
            return
        destination = self._queues.destination(name)
        if destination.admits(run.id, now):
            destination.begin()
            self._queues.leave(run.id, now)
            self._start(run, step, destination, now)
        else:
            self._join(run, destination, now)

    def _join(self, run: Run, destination: Destination, now: float) -> None:
        is_new = self._queues.queued_at(run.id) is not destination
        self._queues.join(run.id, destination, now)
        if is_new and destination.is_failing:
            # Not what was said of another run's call: that names the run, and its collector may be another client's.
            run.trouble = f"{destination.name}: {destination.error.partition(': ')[2]}"
            self._tell_who_waits(run)

    def _tell_who_waits(self, run: Run) -> None:
        """A collector whose job is over may be waiting for the delivery; one whose run is parked need not."""
        if run.record.has_ended or run.record.state is RunState.PARKED:
            self._intake.notify(run)

    def _next_step(self, run: Run, now: float) -> tuple[Step | None, float]:
        needs = self._steps.needs_credentials(run)
        wants = not needs and self._steps.wants_refresh(run) and self._may_refresh(run, now)
        facts = run.facts(
            listening_since=self._intake.receiving_since,
            flush=self._is_to_be_flushed(run),
            needs_credentials=needs,
            wants_refresh=wants,
        )
        return next_step(facts, self._policy, now)

    def _may_refresh(self, run: Run, now: float) -> bool:
        """A refresh that is only wanted does not wait: the credentials at hand are still good."""
        name = self._steps.destination(run, Step.REFRESH)
        return name is not None and now >= run.refresh_not_before and self._queues.destination(name).admits(run.id, now)

    def _is_to_be_flushed(self, run: Run) -> bool:
        return bool(run.frames) and run.frames[0] < self._flush_frames_before

    def _start(self, run: Run, step: Step, destination: Destination | None, now: float) -> None:
        run.busy = True
        run.trouble = ""
        self._under_way += 1
        pool = self._inner if destination is None else self._calls
        pool.submit(lambda: self._do(run, step, destination, now))

    def _do(self, run: Run, step: Step, destination: Destination | None, began_at: float) -> None:
        error: Exception | None = None
        try:
            self._steps.perform(run, step)
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
                destination.calls -= 1
            try:
                if error is None:
                    self._outcomes.succeeded(run, step, destination)
                else:
                    self._outcomes.failed(run, step, destination, error, began_at)
                    self._tell_who_waits(run)
            finally:
                run.busy = False
                if run.id in self._spool.runs:
                    self._agenda.put(run.id, 0.0)
                else:
                    self.run_is_over(run)
                if destination is not None:
                    self._queues.wake(destination, self._clock.monotonic())
                self._under_way -= 1
        self.changed.set()


def _has_work(run: Run) -> bool:
    return run.record.has_ended or run.open_rows > 0 or run.waiting_batches > 0
