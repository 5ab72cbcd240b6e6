"""Shows failures: to `status` through the spool, and in the log, at once and then at most once a minute."""

import logging
import threading
from dataclasses import dataclass

from sentinel_protocol.common.clock import Clock
from sentinel_uploader.delivery.circuit_breaker import BreakerState
from sentinel_uploader.runs.lifecycle import RunState
from sentinel_uploader.runs.schedule import Step
from sentinel_uploader.spool.errors import SpoolError
from sentinel_uploader.spool.open_run import OpenRun
from sentinel_uploader.spool.store import Spool
from sentinel_uploader.util.json_safe import to_json_safe
from sentinel_uploader.util.log_throttle import LogThrottle

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _FailureStreak:
    """Failures of one step without a success in between."""

    began_at: float
    throttle: LogThrottle
    failures: int = 0


@dataclass(kw_only=True)
class FailureReporter:
    """Writes to the spool, so it is never called under the scheduler's lock.

    `_lock` guards everything declared below it, and keeps the order in which a destination's states are published.
    A failure that cannot be recorded is only logged.
    """

    spool: Spool
    clock: Clock

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._steps: dict[int, dict[Step, _FailureStreak]] = {}
        """By run: one step's failures must not hide another's."""
        self._throttle = LogThrottle(self.clock)
        """Of destinations."""
        self._published: dict[str, int] = {}
        """The newest published version of each destination's state."""

    def step_failed(self, run: OpenRun, step: Step, error: Exception, next_try: float) -> None:
        """Record on the run what failed and when it is tried again (`next_try`: monotonic seconds)."""
        now, wall = self.clock.monotonic(), self.clock.now()
        wait_s = max(0.0, next_try - now)
        text = to_json_safe(str(error))
        name = run.record.run_id or run.record.key
        with self._lock:
            streaks = self._steps.setdefault(run.id, {})
            streak = streaks.setdefault(step, _FailureStreak(now, LogThrottle(self.clock)))
            streak.failures += 1
            should_log = streak.throttle.is_due()
        if should_log:
            log.warning(
                "step failed run=%s step=%s next_try_in_s=%.1f error=%s",
                name,
                step,
                wait_s,
                text,
                extra=run.record.log_fields,
            )
        if run.record.state is RunState.QUARANTINED or run.record.is_over:
            return
        try:
            self.spool.update(run, last_error=text, last_error_at=wall, next_try_at=wall + wait_s)
        except SpoolError as failure:
            log.debug("cannot note a failed step run=%s error=%s", name, failure)

    def step_succeeded(self, run: OpenRun, step: Step) -> None:
        """A step has succeeded, perhaps after failures."""
        with self._lock:
            streaks = self._steps.get(run.id)
            streak = None if streaks is None else streaks.pop(step, None)
        if streak is not None:
            name = run.record.run_id or run.record.key
            after_s = self.clock.monotonic() - streak.began_at
            log.info("step works again run=%s step=%s failures=%d after_s=%.1f", name, step, streak.failures, after_s)

    def destination_changed(self, state: BreakerState) -> None:
        """A destination fails, or has recovered. A state older than the published one is ignored."""
        with self._lock:
            if state.version <= self._published.get(state.name, 0):
                return
            self._published[state.name] = state.version
            if state.attempts:
                self._log_failing(state)
            else:
                after_s = self.clock.monotonic() - state.failing_since
                log.info("destination is back destination=%s after_s=%.0f", state.name, after_s)
                self._throttle.reset(state.name)
            self._persist(state)

    def forget(self, run: OpenRun) -> None:
        """The run is closed."""
        with self._lock:
            self._steps.pop(run.id, None)

    def _log_failing(self, state: BreakerState) -> None:
        if state.began:
            self._throttle.reset(state.name)
        if self._throttle.is_due(state.name):
            log.warning(
                "destination is failing destination=%s attempts=%d next_try_in_s=%.1f error=%s",
                state.name,
                state.attempts,
                max(0.0, state.not_before - self.clock.monotonic()),
                state.error,
            )

    def _persist(self, state: BreakerState) -> None:
        from_monotonic = self.clock.now() - self.clock.monotonic()
        try:
            self.spool.control.publish_backoff(
                state.name,
                attempts=state.attempts,
                next_try_at=state.not_before + from_monotonic,
                error=to_json_safe(state.error),
                since=state.failing_since + from_monotonic,
            )
        except SpoolError as error:
            log.debug("cannot note the state of a destination destination=%s error=%s", state.name, error)
