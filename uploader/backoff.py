"""When to try again: per destination, because an API or a bucket is away for all runs at once.

A destination counts as failing when it cannot be reached at all, or when two different runs have failed there with no
success between: one run that fails by itself never holds up the others. While a destination is failing, one run at a
time tries it; the others wait for that one's success and are woken spread over a moment.
"""

import random
from collections import OrderedDict

CAP_S = 300.0
BASE_S = 1.0
SLOW_BASE_S = 10.0
FLOOR_S = 0.25
HURRY_S = 1.0


def backoff(attempt: int, *, base_s: float = BASE_S, rng: random.Random, retry_after_s: float | None = None) -> float:
    """Return the seconds to wait after failure number `attempt` (from 1): exponential, full jitter, capped.

    A server's own wish is a lower bound, up to the same cap.
    """
    ceiling = min(CAP_S, base_s * 2.0 ** min(attempt, 30))
    wait = max(FLOOR_S, rng.uniform(0.0, ceiling))
    if retry_after_s is not None:
        # Everybody got the same wish: come back after it, not all at once.
        wait = max(wait, min(CAP_S, retry_after_s) + rng.uniform(0.0, min(1.0, ceiling)))
    return wait


def slow_backoff(attempt: int, *, rng: random.Random) -> float:
    """Return the seconds to wait for somebody to change something, such as a token: never close to zero."""
    ceiling = min(CAP_S, SLOW_BASE_S * 2.0 ** min(attempt - 1, 30))
    return rng.uniform(ceiling / 2, ceiling)


class Destination:
    """What is known of one API or bucket. Times are monotonic seconds; guarded by the dispatcher's lock."""

    def __init__(self, name: str, *, most_calls: int, rng: random.Random) -> None:
        self.name = name
        self.attempts = 0
        """Failures in a row while failing; 0: not failing."""
        self.not_before = 0.0
        self.failing_since = 0.0
        self.error = ""
        self.calls = 0
        """Calls under way."""
        self.waiting: OrderedDict[int, None] = OrderedDict()
        """Runs that wait for a success, or for a place, in the order of their arrival."""
        self._most_calls = most_calls
        self._rng = rng
        self._failed_run: int | None = None
        self._tried_at = 0.0
        self._failed_at = 0.0

    @property
    def is_failing(self) -> bool:
        """Whether only one run at a time may try."""
        return self.attempts > 0

    def admits(self, now: float) -> bool:
        """Whether a call may start now."""
        if self.is_failing:
            return self.calls == 0 and now >= self.not_before
        return self.calls < self._most_calls

    def begin(self, now: float) -> None:
        """A call starts at `now`, which `failed` wants to hear again."""
        self.calls += 1
        self._tried_at = now

    def succeeded(self) -> bool:
        """A call has succeeded; True when the destination was failing until now."""
        recovered = self.is_failing
        self.attempts = 0
        self.error = ""
        self._failed_run = None
        return recovered

    def failed(
        self,
        run_id: int,
        now: float,
        error: str,
        *,
        began_at: float,
        certain: bool,
        slowly: bool,
        retry_after_s: float | None,
    ) -> bool:
        """A call has failed; True when the destination counts as failing from now on.

        `certain`: the failure is the destination's own (no connection, no authorisation), whatever the run.
        """
        known = self.is_failing
        if known and began_at < self._failed_at:
            # It was under way already when the trouble became known: one outage, not one more failed try.
            return False
        if not known and not certain and self._failed_run in {None, run_id}:
            self._failed_run = run_id
            return False
        if not known:
            self.failing_since = now
        self.attempts += 1
        self._failed_at = now
        self.error = error
        if slowly:
            wait = slow_backoff(self.attempts, rng=self._rng)
        else:
            wait = backoff(self.attempts, rng=self._rng, retry_after_s=retry_after_s)
        self.not_before = now + wait
        return not known

    def hurry(self, now: float) -> None:
        """Somebody is waiting for a result: try soon, but not again right after the last try."""
        self.not_before = min(self.not_before, max(now, self._tried_at + HURRY_S))
