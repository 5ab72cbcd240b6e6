"""A run's states, what moves it from one to the next, and what it needs next: pure functions of facts and time."""

from enum import StrEnum

import msgspec

from sentinel_protocol.common.errors import SentinelStreamError


class RunState(StrEnum):
    """Where a run is in its life."""

    NEW = "new"
    """Known here, not yet at the API."""
    REGISTERED = "registered"
    """Has its run id; objects are uploaded."""
    FINISHING = "finishing"
    """Nothing more will come; the rest is delivered and `finish` said until it is accepted."""
    FINISHED = "finished"
    STALE_CLOSED = "failed"
    """Closed because its collector had gone silent."""
    QUARANTINED = "parked"
    """A person must look at it; its data is kept."""
    DISCARDED = "discarded"
    """A person gave it up; its data is gone."""


class Event(StrEnum):
    """What happens to a run."""

    REGISTERED = "registered"
    ENDED = "ended"
    """Its `Finish` is durable, or it was closed as stale."""
    ACCEPTED = "accepted"
    """The API took `finish`."""
    CLOSED_STALE = "closed-stale"
    """The API took the `finish` of a run whose collector is gone."""
    PERMANENT_FAILURE = "refused"
    """An answer that no repetition changes."""
    REQUEUED = "retried"
    """A person wants it tried again."""
    DISCARDED = "discarded"


class TransitionError(SentinelStreamError):
    """An event that the run's state does not allow."""


OPEN_STATES = frozenset({RunState.NEW, RunState.REGISTERED, RunState.FINISHING})
ENDED_STATES = frozenset({RunState.FINISHED, RunState.STALE_CLOSED, RunState.DISCARDED})

_TRANSITIONS: dict[tuple[RunState, Event], RunState] = {
    # A run may end before the API has ever answered: it stays new, and knows that it has ended.
    (RunState.NEW, Event.ENDED): RunState.NEW,
    (RunState.NEW, Event.REGISTERED): RunState.REGISTERED,
    (RunState.REGISTERED, Event.ENDED): RunState.FINISHING,
    (RunState.FINISHING, Event.ACCEPTED): RunState.FINISHED,
    (RunState.FINISHING, Event.CLOSED_STALE): RunState.STALE_CLOSED,
    (RunState.NEW, Event.PERMANENT_FAILURE): RunState.QUARANTINED,
    (RunState.REGISTERED, Event.PERMANENT_FAILURE): RunState.QUARANTINED,
    (RunState.FINISHING, Event.PERMANENT_FAILURE): RunState.QUARANTINED,
    # A parked run may still hear that it ended, and goes through its states anew when it is tried again.
    (RunState.QUARANTINED, Event.ENDED): RunState.QUARANTINED,
    (RunState.QUARANTINED, Event.REQUEUED): RunState.NEW,
    (RunState.NEW, Event.DISCARDED): RunState.DISCARDED,
    (RunState.REGISTERED, Event.DISCARDED): RunState.DISCARDED,
    (RunState.FINISHING, Event.DISCARDED): RunState.DISCARDED,
    (RunState.QUARANTINED, Event.DISCARDED): RunState.DISCARDED,
}


def transition(state: RunState, event: Event) -> RunState:
    """Return the state after the event; raises `TransitionError` when it is not allowed."""
    try:
        return _TRANSITIONS[state, event]
    except KeyError:
        raise TransitionError(f"a run that is {state} cannot be {event}") from None


class Step(StrEnum):
    """One effect on the outside, or one decision, that a run needs."""

    REGISTER = "register"
    SEAL_BATCH = "cut"
    """Freeze the open rows into a batch."""
    PUT = "put"
    REFRESH = "refresh"
    FINISH = "finish"
    CLOSE_STALE = "close-stale"


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers behind what is due."""

    upload_interval_s: float = 60.0
    stale_after_s: float = 900.0
    max_batch_rows: int = 3600
    max_batch_bytes: int = 1 << 20
    """Of encoded samples, about a third of it as CSV and a tenth as an object."""
    inline_limit_bytes: int = 0
    cloud_wait_s: float = 3.0


class SchedulingFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a run, all times monotonic seconds."""

    state: RunState
    has_ended: bool
    unbatched_rows: int
    unbatched_bytes: int
    pending_batches: int
    """Frozen, not confirmed."""
    total_csv_bytes: int
    """Upper estimate of the whole run as CSV."""
    upload_attempted: bool
    """A PUT was tried: the run stays with storage."""
    created_at: float
    sealed_at: float
    """When rows were last frozen (or the run began)."""
    silent_since: float
    interval_s: float
    cloud_pending: bool
    flush: bool
    """The uploader is told to deliver what is there."""
    needs_credentials: bool
    """Storage wants credentials and none are at hand."""
    wants_refresh: bool
    """The credentials at hand are good for a little while only."""


def next_step(facts: SchedulingFacts, policy: Policy, now: float) -> tuple[Step | None, float]:
    """Return the step that is due, or `None` and the time at which to look again."""
    if facts.state in ENDED_STATES:
        return None, float("inf")
    # A parked run's as well: nothing of it is delivered, but it goes on taking rows.
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
    """Whether the run's rows are delivered with `finish` itself."""
    return not facts.upload_attempted and facts.total_csv_bytes <= policy.inline_limit_bytes


def _batch_is_full(facts: SchedulingFacts, policy: Policy) -> bool:
    return facts.unbatched_rows >= policy.max_batch_rows or facts.unbatched_bytes >= policy.max_batch_bytes


def stale_deadline(policy: Policy, *, silent_since: float, interval_s: float) -> float:
    """Return when (monotonic) a collector that has been silent since then is taken for gone."""
    return silent_since + max(policy.stale_after_s, 3 * interval_s)


def _stale_deadline(facts: SchedulingFacts, policy: Policy) -> float:
    return stale_deadline(policy, silent_since=facts.silent_since, interval_s=facts.interval_s)


def _next_for_new(facts: SchedulingFacts, policy: Policy, now: float) -> tuple[Step | None, float]:
    if not facts.has_ended and now >= _stale_deadline(facts, policy):
        return Step.CLOSE_STALE, now
    wait_until = facts.created_at + policy.cloud_wait_s
    if facts.cloud_pending and not facts.has_ended and now < wait_until:
        return None, wait_until
    return Step.REGISTER, now


def _next_for_registered(facts: SchedulingFacts, policy: Policy, now: float) -> tuple[Step | None, float]:
    if now >= _stale_deadline(facts, policy):
        return Step.CLOSE_STALE, now
    if not facts.unbatched_rows:
        # Rows that come later are looked at when they could be due at the earliest.
        return None, min(max(facts.sealed_at, now) + policy.upload_interval_s, _stale_deadline(facts, policy))
    due = facts.sealed_at + policy.upload_interval_s
    if now >= due:
        return Step.SEAL_BATCH, now
    return None, min(due, _stale_deadline(facts, policy))
