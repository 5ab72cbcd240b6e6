"""Shows failures: to `status` through the spool, and in the log, once at the beginning and then now and then."""

import logging
import math

from sentinel_protocol.common.clock import Clock
from sentinel_uploader.delivery.circuit_breaker import CircuitBreaker
from sentinel_uploader.runs.lifecycle import RunState
from sentinel_uploader.runs.schedule import Step
from sentinel_uploader.spool.errors import SpoolError
from sentinel_uploader.spool.open_run import OpenRun
from sentinel_uploader.spool.store import Spool
from sentinel_uploader.util.json_safe import to_json_safe

log = logging.getLogger(__name__)

_LOG_INTERVAL_S = 60.0


class _FailureStreak:
    """Times in monotonic seconds."""

    __slots__ = ("began_at", "failures", "logged_at")

    def __init__(self, now: float) -> None:
        self.began_at = now
        self.logged_at = -math.inf
        self.failures = 0


class FailureReporter:
    """Guarded by the scheduler's lock. A spool that takes no notes is no more than a line in the log."""

    def __init__(self, *, spool: Spool, clock: Clock) -> None:
        self._spool = spool
        self._clock = clock
        self._steps: dict[int, dict[Step, _FailureStreak]] = {}
        """By run: one step's failures must not hide another's."""
        self._destinations: dict[str, _FailureStreak] = {}

    def step_failed(self, run: OpenRun, step: Step, error: Exception, next_try: float) -> None:
        """Note on the run what failed and when it is tried again (`next_try`: monotonic seconds)."""
        now, wall = self._clock.monotonic(), self._clock.now()
        wait_s = max(0.0, next_try - now)
        text = to_json_safe(str(error))
        name = run.record.run_id or run.record.key
        if _should_log(self._steps.setdefault(run.id, {}).setdefault(step, _FailureStreak(now)), now):
            log.warning(
                "step failed run=%s step=%s next_try_in_s=%.1f error=%s",
                name,
                step,
                wait_s,
                text,
                extra=run.record.log_fields,
            )
        if run.record.state is RunState.QUARANTINED or run.id not in self._spool.runs:
            return
        try:
            self._spool.update(run, last_error=text, last_error_at=wall, next_try_at=wall + wait_s)
        except SpoolError as failure:
            log.debug("cannot note a failed step run=%s error=%s", name, failure)

    def step_succeeded(self, run: OpenRun, step: Step) -> None:
        """A step has worked, perhaps again."""
        troubles = self._steps.get(run.id)
        trouble = None if troubles is None else troubles.pop(step, None)
        if trouble is not None:
            name = run.record.run_id or run.record.key
            after_s = self._clock.monotonic() - trouble.began_at
            log.info("step works again run=%s step=%s failures=%d after_s=%.1f", name, step, trouble.failures, after_s)

    def destination_failed(self, destination: CircuitBreaker, *, began: bool) -> None:
        """A destination is failing; `began`: since now."""
        now = self._clock.monotonic()
        self._persist(destination, now)
        if began:
            self._destinations.pop(destination.name, None)
        if _should_log(self._destinations.setdefault(destination.name, _FailureStreak(now)), now):
            log.warning(
                "destination is failing destination=%s attempts=%d next_try_in_s=%.1f error=%s",
                destination.name,
                destination.attempts,
                max(0.0, destination.not_before - now),
                destination.error,
            )

    def destination_recovered(self, destination: CircuitBreaker) -> None:
        """A destination has stopped failing."""
        now = self._clock.monotonic()
        after_s = now - destination.failing_since
        log.info("destination is back destination=%s after_s=%.0f", destination.name, after_s)
        self._destinations.pop(destination.name, None)
        self._persist(destination, now)

    def forget(self, run: OpenRun) -> None:
        """The run is over."""
        self._steps.pop(run.id, None)

    def _persist(self, destination: CircuitBreaker, now: float) -> None:
        wall = self._clock.now()
        try:
            self._spool.control.publish_backoff(
                destination.name,
                attempts=destination.attempts,
                next_try_at=wall + destination.not_before - now,
                error=to_json_safe(destination.error),
                since=wall + destination.failing_since - now,
            )
        except SpoolError as error:
            log.debug("cannot note the state of a destination destination=%s error=%s", destination.name, error)


def _should_log(trouble: _FailureStreak, now: float) -> bool:
    trouble.failures += 1
    if now - trouble.logged_at < _LOG_INTERVAL_S:
        return False
    trouble.logged_at = now
    return True
