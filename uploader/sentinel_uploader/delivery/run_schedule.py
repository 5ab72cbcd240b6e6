"""When a run may be tried next."""

from sentinel_uploader.spool.open_run import OpenRun


class RunSchedule:
    """The delivery's state of one open run, rebuilt at a restart. Guarded by the scheduler's lock.

    Times are monotonic seconds.
    """

    __slots__ = (
        "attempts",
        "blocked_by",
        "failing_since",
        "in_flight",
        "is_expedited",
        "not_before",
        "refresh_attempts",
        "refresh_not_before",
        "retry_after_until",
        "run",
    )

    def __init__(self, run: OpenRun) -> None:
        self.run = run
        self.in_flight = False
        """A step of the run is being executed; there is never a second one."""
        self.is_expedited = False
        """The run's end has shortened its back-off already."""
        self.blocked_by = ""
        """The failing destination that the run waits for, where it has met no failure itself."""
        self.attempts = 0
        """Failures since the last success."""
        self.failing_since: float | None = None
        self.not_before = 0.0
        self.retry_after_until = 0.0
        """The server's own `Retry-After` for this run. It is never shortened."""
        self.refresh_attempts = 0
        self.refresh_not_before = 0.0
        """For a refresh ahead of expiry; uploads go on meanwhile."""

    def reset_backoff(self) -> None:
        """Allow the next attempt as soon as the server's `Retry-After` permits."""
        self.not_before = self.retry_after_until
        self.refresh_not_before = 0.0
