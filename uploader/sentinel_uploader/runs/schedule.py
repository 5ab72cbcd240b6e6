"""When a run uploads, finishes or is closed as stale: the next step as a pure function of facts and time."""

from enum import StrEnum

import msgspec

from sentinel_uploader.runs.lifecycle import ENDED_STATES, RunState

_GOLDEN_RATIO = 0.6180339887498949
_CROWD = 64


class Step(StrEnum):
    """The next thing to do for a run. The values are metric labels and appear in log lines."""

    REGISTER = "register"
    SEAL_BATCH = "cut"
    """Turn unbatched rows into a batch, whose range and bytes are fixed from then on."""
    PUT = "put"
    REFRESH = "refresh"
    FINISH = "finish"
    CLOSE_STALE = "close-stale"


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """Intervals and limits that decide what is due."""

    upload_interval_s: float = 60.0
    stale_after_s: float = 900.0
    max_batch_rows: int = 3600
    max_batch_bytes: int = 1 << 20
    """Of encoded samples, about a third of it as CSV and a tenth as an object."""
    inline_limit_bytes: int = 0
    cloud_wait_s: float = 3.0

    def stale_deadline(self, *, silent_since: float, interval_s: float) -> float:
        """Return when (monotonic seconds) a collector that is silent since then counts as gone."""
        return silent_since + max(self.stale_after_s, 3 * interval_s)


class SchedulingFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The inputs of `next_step`. Times are monotonic seconds."""

    state: RunState
    has_ended: bool
    unbatched_rows: int
    unbatched_bytes: int
    pending_batches: int
    """Sealed, not confirmed."""
    total_csv_bytes: int
    """Upper estimate of the whole run as CSV."""
    upload_attempted: bool
    """An upload was attempted: the run is not delivered inline any more."""
    created_at: float
    sealed_at: float
    """When the last batch was sealed (or the run began)."""
    silent_since: float
    interval_s: float
    cloud_pending: bool
    upload_phase: float = 0.0
    """How much earlier than after a whole interval the first batch is due, as a part of the interval."""
    flush: bool = False
    """Deliver the stored rows without waiting for the upload interval."""
    needs_credentials: bool = False
    """Storage needs credentials, and there are no valid ones."""
    wants_refresh: bool = False
    """The credentials will expire soon."""


def next_step(facts: SchedulingFacts, policy: Policy, now: float) -> tuple[Step | None, float]:
    """Return the step that is due, or `None` and the time at which to look again."""
    if facts.state in ENDED_STATES:
        return None, float("inf")
    # Also for a quarantined run: it is not delivered, but still accepts rows, and its memory must stay bounded.
    if _batch_is_full(facts, policy):
        return Step.SEAL_BATCH, now
    if facts.state is RunState.QUARANTINED:
        return None, float("inf")
    if facts.state is RunState.NEW:
        return _next_for_new(facts, policy, now)
    if facts.state is RunState.FINISHING and should_inline(facts, policy):
        return Step.FINISH, now
    if facts.pending_batches:
        if facts.needs_credentials or facts.wants_refresh:
            return Step.REFRESH, now
        return Step.PUT, now
    if facts.unbatched_rows and (facts.flush or facts.state is RunState.FINISHING):
        return Step.SEAL_BATCH, now
    if facts.state is RunState.FINISHING:
        return Step.FINISH, now
    return _next_for_registered(facts, policy, now)


def should_inline(facts: SchedulingFacts, policy: Policy) -> bool:
    """Whether the rows are sent with `finish` itself, not as objects."""
    return not facts.upload_attempted and facts.total_csv_bytes <= policy.inline_limit_bytes


def _batch_is_full(facts: SchedulingFacts, policy: Policy) -> bool:
    return facts.unbatched_rows >= policy.max_batch_rows or facts.unbatched_bytes >= policy.max_batch_bytes


def upload_phase(run_id: int) -> float:
    """Return a run's `upload_phase`: runs that begin together are not due together, now or later.

    Multiples of the golden ratio are spread evenly, however many there are. The first few runs of a spool need little.
    """
    return (run_id - 1) * _GOLDEN_RATIO % 1.0 * min(1.0, (run_id - 1) / _CROWD)


def _next_for_new(facts: SchedulingFacts, policy: Policy, now: float) -> tuple[Step | None, float]:
    stale_at = policy.stale_deadline(silent_since=facts.silent_since, interval_s=facts.interval_s)
    if not facts.has_ended and now >= stale_at:
        return Step.CLOSE_STALE, now
    wait_until = facts.created_at + policy.cloud_wait_s
    if facts.cloud_pending and not facts.has_ended and now < wait_until:
        return None, wait_until
    return Step.REGISTER, now


def _next_for_registered(facts: SchedulingFacts, policy: Policy, now: float) -> tuple[Step | None, float]:
    stale_at = policy.stale_deadline(silent_since=facts.silent_since, interval_s=facts.interval_s)
    if now >= stale_at:
        return Step.CLOSE_STALE, now
    interval_s = policy.upload_interval_s * (1.0 - facts.upload_phase)
    if not facts.unbatched_rows:
        # Rows that come now are due one interval later at the earliest.
        return None, min(max(facts.sealed_at, now) + interval_s, stale_at)
    due = facts.sealed_at + interval_s
    if now >= due:
        return Step.SEAL_BATCH, now
    return None, min(due, stale_at)
