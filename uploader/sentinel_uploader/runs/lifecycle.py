"""A run's states and the transitions between them."""

from enum import StrEnum

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
