"""A run's states and what it needs next: pure decisions over facts and time."""

import itertools
import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from sentinel_uploader.runs.lifecycle import (
    ENDED_STATES,
    OPEN_STATES,
    Event,
    RunState,
    TransitionError,
    transition,
)
from sentinel_uploader.runs.schedule import Policy, SchedulingFacts, Step, next_step, should_inline, upload_phase

ALLOWED = {
    (RunState.NEW, Event.ENDED): RunState.NEW,
    (RunState.NEW, Event.REGISTERED): RunState.REGISTERED,
    (RunState.NEW, Event.PERMANENT_FAILURE): RunState.QUARANTINED,
    (RunState.NEW, Event.DISCARDED): RunState.DISCARDED,
    (RunState.REGISTERED, Event.ENDED): RunState.FINISHING,
    (RunState.REGISTERED, Event.PERMANENT_FAILURE): RunState.QUARANTINED,
    (RunState.REGISTERED, Event.DISCARDED): RunState.DISCARDED,
    (RunState.FINISHING, Event.ACCEPTED): RunState.FINISHED,
    (RunState.FINISHING, Event.CLOSED_STALE): RunState.STALE_CLOSED,
    (RunState.FINISHING, Event.PERMANENT_FAILURE): RunState.QUARANTINED,
    (RunState.FINISHING, Event.DISCARDED): RunState.DISCARDED,
    (RunState.QUARANTINED, Event.ENDED): RunState.QUARANTINED,
    (RunState.QUARANTINED, Event.REQUEUED): RunState.NEW,
    (RunState.QUARANTINED, Event.DISCARDED): RunState.DISCARDED,
}
POLICY = Policy(upload_interval_s=60.0, stale_after_s=900.0, inline_limit_bytes=5 << 20)
FACTS = SchedulingFacts(
    state=RunState.REGISTERED,
    has_ended=False,
    unbatched_rows=0,
    unbatched_bytes=0,
    pending_batches=0,
    total_csv_bytes=600,
    upload_attempted=False,
    created_at=1000.0,
    sealed_at=1000.0,
    silent_since=1000.0,
    interval_s=1.0,
    cloud_pending=False,
    flush=False,
    needs_credentials=False,
    wants_refresh=False,
)


def test_runs_that_begin_together_are_due_spread_over_the_interval() -> None:
    due = []
    for run_id in range(1001, 2001):
        rows = replace(FACTS, unbatched_rows=1, upload_phase=upload_phase(run_id))
        due.append(next_step(rows, POLICY, 1000.0)[1] - 1000.0)
    assert 0.0 <= min(due) < 1.0
    assert 59.0 < max(due) <= 60.0
    a_second = Counter(int(when) for when in due)
    assert max(a_second.values()) < 2 * 1000 / 60
    assert upload_phase(1) == 0.0


@pytest.mark.parametrize(("state", "event"), list(itertools.product(RunState, Event)))
def test_only_the_transitions_of_the_table_are_allowed(state: RunState, event: Event) -> None:
    expected = ALLOWED.get((state, event))
    if expected is not None:
        assert transition(state, event) is expected
    else:
        with pytest.raises(TransitionError, match=f"a run that is {state} cannot be {event}"):
            transition(state, event)


def test_nothing_leads_out_of_an_end() -> None:
    assert not [pair for pair in ALLOWED if pair[0] in ENDED_STATES]


def step(now: float = 1001.0, policy: Policy = POLICY, **changes: Any) -> Step | None:
    return next_step(replace(FACTS, **changes), policy, now)[0]


def look_at(now: float = 1001.0, policy: Policy = POLICY, **changes: Any) -> float:
    found, when = next_step(replace(FACTS, **changes), policy, now)
    assert found is None
    return when


def test_new_run_is_registered_at_once_unless_its_cloud_is_still_being_asked() -> None:
    assert step(state=RunState.NEW) is Step.REGISTER
    assert look_at(state=RunState.NEW, cloud_pending=True) == 1000.0 + POLICY.cloud_wait_s
    assert step(1003.0, state=RunState.NEW, cloud_pending=True) is Step.REGISTER
    assert step(state=RunState.NEW, cloud_pending=True, has_ended=True) is Step.REGISTER


def test_rows_are_cut_at_the_interval_and_then_put() -> None:
    assert look_at(1059.9, unbatched_rows=1) == 1060.0
    assert step(1060.0, unbatched_rows=1) is Step.SEAL_BATCH
    assert step(1060.0, unbatched_rows=1, pending_batches=1) is Step.PUT
    assert look_at(1060.0) == 1120.0


@pytest.mark.parametrize("state", sorted({*OPEN_STATES, RunState.QUARANTINED}))
def test_rows_are_cut_before_they_are_too_many_whatever_else_is_due(state: RunState) -> None:
    assert step(state=state, unbatched_rows=POLICY.max_batch_rows) is Step.SEAL_BATCH
    assert step(state=state, unbatched_rows=1, unbatched_bytes=POLICY.max_batch_bytes) is Step.SEAL_BATCH


def test_credentials_come_before_a_put_and_only_then() -> None:
    assert step(pending_batches=1, needs_credentials=True) is Step.REFRESH
    assert step(pending_batches=1, wants_refresh=True) is Step.REFRESH
    assert step(needs_credentials=True) is None
    assert step(wants_refresh=True) is None


def test_flush_cuts_now_and_puts() -> None:
    assert step(unbatched_rows=1, flush=True) is Step.SEAL_BATCH
    assert step(pending_batches=1, flush=True) is Step.PUT
    assert step(flush=True) is None


def test_end_is_told_after_the_last_row_or_with_it() -> None:
    end: dict[str, Any] = {"state": RunState.FINISHING, "has_ended": True}
    assert step(**end, unbatched_rows=1) is Step.FINISH
    assert step(**end, unbatched_rows=1, upload_attempted=True) is Step.SEAL_BATCH
    assert step(**end, pending_batches=1, upload_attempted=True) is Step.PUT
    assert step(**end, upload_attempted=True) is Step.FINISH
    assert step(**end, unbatched_rows=1, total_csv_bytes=(5 << 20) + 1) is Step.SEAL_BATCH
    assert step(**end, pending_batches=3) is Step.FINISH


@pytest.mark.parametrize(("stale_after_s", "interval_s", "after_s"), [(900.0, 1.0, 900.0), (10.0, 60.0, 180.0)])
@pytest.mark.parametrize("state", [RunState.NEW, RunState.REGISTERED])
def test_silent_run_is_closed_after_the_limit_or_three_intervals(
    state: RunState, stale_after_s: float, interval_s: float, after_s: float
) -> None:
    policy = replace(POLICY, stale_after_s=stale_after_s)
    due = 1000.0 + after_s
    assert step(due - 0.1, policy, state=state, interval_s=interval_s) is not Step.CLOSE_STALE
    assert step(due, policy, state=state, interval_s=interval_s) is Step.CLOSE_STALE


def test_run_that_has_ended_before_registration_is_not_stale() -> None:
    assert step(99_999.0, state=RunState.NEW, has_ended=True) is Step.REGISTER


facts = st.builds(
    SchedulingFacts,
    state=st.sampled_from(RunState),
    has_ended=st.booleans(),
    unbatched_rows=st.integers(0, 5000),
    unbatched_bytes=st.integers(0, 2 << 20),
    pending_batches=st.integers(0, 3),
    total_csv_bytes=st.integers(0, 8 << 20),
    upload_attempted=st.booleans(),
    created_at=st.floats(0, 100),
    sealed_at=st.floats(0, 2000),
    silent_since=st.floats(0, 2000),
    interval_s=st.floats(0.1, 600),
    cloud_pending=st.booleans(),
    flush=st.booleans(),
    needs_credentials=st.booleans(),
    wants_refresh=st.booleans(),
)
policies = st.builds(
    Policy,
    upload_interval_s=st.floats(0.1, 1000),
    stale_after_s=st.floats(1, 1000),
    inline_limit_bytes=st.sampled_from([0, 5 << 20]),
)


@given(facts, policies, st.floats(0, 4000))
def test_whatever_the_facts_the_decision_is_sound(known: SchedulingFacts, policy: Policy, now: float) -> None:
    # The states and the end move together: `transition` sees to it.
    assume(known.has_ended or known.state is not RunState.FINISHING)
    assume(not (known.has_ended and known.state is RunState.REGISTERED))
    due, when = next_step(known, policy, now)
    rows_wait = known.unbatched_rows > 0 or known.pending_batches > 0

    assert (due is None) == (when > now) or (due is None and when == math.inf)
    if known.state is RunState.QUARANTINED and due is None:
        assert when == math.inf
    if known.state not in OPEN_STATES:
        assert due in ({None, Step.SEAL_BATCH} if known.state is RunState.QUARANTINED else {None})
    if due is Step.FINISH:
        assert known.state is RunState.FINISHING
        assert not rows_wait or should_inline(known, policy)
    if due in {Step.PUT, Step.REFRESH}:
        assert known.state in {RunState.REGISTERED, RunState.FINISHING}
        assert known.pending_batches
    if due is Step.PUT:
        assert not known.needs_credentials
    if due is Step.REGISTER:
        assert known.state is RunState.NEW
    if due is Step.SEAL_BATCH:
        assert known.unbatched_rows or known.unbatched_bytes
    if due is Step.CLOSE_STALE:
        assert not known.has_ended
        assert now - known.silent_since >= max(policy.stale_after_s, 3 * known.interval_s) - 1e-6
    if known.has_ended and known.state in OPEN_STATES:
        assert due is not None
