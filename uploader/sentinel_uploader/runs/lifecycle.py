"""A run's states and the transitions between them."""

from enum import StrEnum

from sentinel_protocol.common.errors import SentinelStreamError


class RunState(StrEnum):
    """A run's state. The values are stored in the spool and shown to users."""

    NEW = "new"
    """Not registered at the API yet."""
    REGISTERED = "registered"
    """The API has assigned a run id; objects are uploaded."""
    FINISHING = "finishing"
    """No more rows will come. The rest is delivered, and `finish` is sent until it is accepted."""
    FINISHED = "finished"
    STALE_CLOSED = "failed"
    """Closed because its collector was silent."""
    QUARANTINED = "parked"
    """A person must look at it. Its data is kept."""
    DISCARDED = "discarded"
    """A person gave it up. Its data is deleted."""


class Event(StrEnum):
    """What happens to a run."""

    REGISTERED = "registered"
    ENDED = "ended"
    """Its `Finish` is durable, or it was closed as stale."""
    ACCEPTED = "accepted"
    """The API accepted `finish`."""
    CLOSED_STALE = "closed-stale"
    """The API accepted the `finish` of a run that was closed as stale."""
    PERMANENT_FAILURE = "refused"
    """A response that no repetition will change."""
    REQUEUED = "retried"
    """A person has requested another attempt."""
    DISCARDED = "discarded"


class TransitionError(SentinelStreamError):
    """An event that the run's state does not allow."""


OPEN_STATES = frozenset({RunState.NEW, RunState.REGISTERED, RunState.FINISHING})
ENDED_STATES = frozenset({RunState.FINISHED, RunState.STALE_CLOSED, RunState.DISCARDED})

_TRANSITIONS: dict[tuple[RunState, Event], RunState] = {
    # A run may end before it is registered: it stays new, and the record has its end.
    (RunState.NEW, Event.ENDED): RunState.NEW,
    (RunState.NEW, Event.REGISTERED): RunState.REGISTERED,
    (RunState.REGISTERED, Event.ENDED): RunState.FINISHING,
    (RunState.FINISHING, Event.ACCEPTED): RunState.FINISHED,
    (RunState.FINISHING, Event.CLOSED_STALE): RunState.STALE_CLOSED,
    # A quarantined run may still end. Another attempt starts from the first state.
    (RunState.QUARANTINED, Event.ENDED): RunState.QUARANTINED,
    (RunState.QUARANTINED, Event.REQUEUED): RunState.NEW,
    (RunState.QUARANTINED, Event.DISCARDED): RunState.DISCARDED,
    **{(state, Event.PERMANENT_FAILURE): RunState.QUARANTINED for state in OPEN_STATES},
    **{(state, Event.DISCARDED): RunState.DISCARDED for state in OPEN_STATES},
}


def transition(state: RunState, event: Event) -> RunState:
    """Return the state after the event; raises `TransitionError` for a transition that is not allowed."""
    try:
        return _TRANSITIONS[state, event]
    except KeyError:
        raise TransitionError(f"a run that is {state} cannot be {event}") from None
