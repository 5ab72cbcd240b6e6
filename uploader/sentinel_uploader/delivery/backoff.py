"""Delays before another attempt: exponential, with jitter, capped."""

import random

MAX_DELAY_S = 300.0
BASE_DELAY_S = 1.0
SLOW_BASE_DELAY_S = 10.0
MIN_DELAY_S = 0.25
EXPEDITED_DELAY_S = 1.0


def backoff(attempt: int, *, rng: random.Random, retry_after_s: float | None = None) -> float:
    """Return the seconds to wait after failure number `attempt` (from 1): exponential, full jitter, capped.

    The server's `Retry-After` is a lower bound, up to the same cap.
    """
    ceiling = min(MAX_DELAY_S, BASE_DELAY_S * 2.0 ** min(attempt, 30))
    wait = max(MIN_DELAY_S, rng.uniform(0.0, ceiling))
    if retry_after_s is not None:
        # All runs got the same `Retry-After`: spread their attempts.
        wait = max(wait, min(MAX_DELAY_S, retry_after_s) + rng.uniform(0.0, min(1.0, ceiling)))
    return wait


def slow_backoff(attempt: int, *, rng: random.Random) -> float:
    """Return the seconds to wait for a person to change something, such as a token: never close to zero."""
    ceiling = min(MAX_DELAY_S, SLOW_BASE_DELAY_S * 2.0 ** min(attempt - 1, 30))
    return rng.uniform(ceiling / 2, ceiling)
