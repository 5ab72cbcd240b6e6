"""How long to wait, and for whom."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_uploader.delivery.backoff import (
    BASE_DELAY_S,
    EXPEDITED_DELAY_S,
    MAX_DELAY_S,
    MIN_DELAY_S,
    SLOW_BASE_DELAY_S,
    backoff,
    slow_backoff,
)
from sentinel_uploader.delivery.circuit_breaker import CircuitBreaker
from sentinel_uploader.runs.delivery_error import DeliveryError, RetryAction

seeds = st.integers(0, 2**32).map(random.Random)


class HighestRandom(random.Random):
    """Draws the end of each range, so that a jittered wait is its own ceiling."""

    def uniform(self, a: float, b: float) -> float:
        return max(a, b)


@given(st.integers(1, 10_000), seeds)
def test_wait_is_between_the_floor_and_a_ceiling_that_doubles_up_to_the_cap(attempt: int, rng: random.Random) -> None:
    assert MIN_DELAY_S <= backoff(attempt, rng=rng) <= min(MAX_DELAY_S, BASE_DELAY_S * 2.0 ** min(attempt, 30))


@given(st.integers(1, 100), st.floats(0, 10_000), seeds)
def test_servers_wish_is_a_lower_bound_up_to_the_cap(attempt: int, wish_s: float, rng: random.Random) -> None:
    wait = backoff(attempt, rng=rng, retry_after_s=wish_s)
    assert min(wish_s, MAX_DELAY_S) <= wait <= MAX_DELAY_S + 1.0


@given(st.integers(1, 100), seeds)
def test_slow_wait_is_never_close_to_zero(attempt: int, rng: random.Random) -> None:
    assert SLOW_BASE_DELAY_S / 2 <= slow_backoff(attempt, rng=rng) <= MAX_DELAY_S


def test_ceilings_are_exact() -> None:
    highest = HighestRandom()
    assert [backoff(n, rng=highest) for n in (1, 2, 3, 8, 9, 10)] == [2.0, 4.0, 8.0, 256.0, 300.0, 300.0]
    assert [slow_backoff(n, rng=highest) for n in (1, 2, 5, 6, 7)] == [10.0, 20.0, 160.0, 300.0, 300.0]


class Trial:
    """A destination and a time, with failures in few words."""

    def __init__(self) -> None:
        self.now = 100.0
        self.there = CircuitBreaker("there", max_concurrent=2, rng=HighestRandom())
        self.since: dict[int, float] = {}

    def fail(
        self,
        run: int,
        *,
        certain: bool = False,
        slowly: bool = False,
        wish_s: float | None = None,
        began_at: float | None = None,
    ) -> bool:
        since = self.since.get(run)
        self.since.setdefault(run, self.now)
        return self.there.record_failure(
            run,
            self.now,
            DeliveryError(
                "no", retry_action=RetryAction.RETRY_SLOW if slowly else RetryAction.RETRY, retry_after_s=wish_s
            ),
            began_at=self.now if began_at is None else began_at,
            run_failing_since=since,
            is_destination_fault=certain,
        )

    def succeed(self, run: int) -> bool:
        self.since.pop(run, None)
        return self.there.record_success(self.now)


@pytest.fixture
def trial() -> Trial:
    return Trial()


def test_run_that_fails_alone_is_its_own_affair(trial: Trial) -> None:
    for _ in range(5):
        assert not trial.fail(1)
        assert not trial.there.is_failing


def test_two_runs_that_fail_make_an_outage_unless_a_success_lies_between(trial: Trial) -> None:
    trial.fail(1)
    trial.succeed(3)
    assert not trial.fail(2)
    assert trial.fail(4)
    assert trial.there.is_failing


def test_no_connection_is_an_outage_at_once(trial: Trial) -> None:
    assert trial.fail(1, certain=True)
    assert trial.there.not_before == 102.0
    assert not trial.fail(2, certain=True)
    assert trial.there.not_before == 104.0


def test_run_that_fails_where_others_succeed_never_makes_an_outage_again(trial: Trial) -> None:
    assert trial.fail(1, certain=True)
    trial.now += 2.0
    assert trial.succeed(2)
    for _ in range(3):
        trial.now += 10.0
        assert not trial.fail(1, certain=True)
        assert not trial.there.is_failing
    trial.succeed(1)
    assert trial.fail(1, certain=True)


def test_calls_that_were_under_way_when_the_outage_began_do_not_count_again(trial: Trial) -> None:
    trial.fail(1, certain=True)
    trial.now += 0.5
    assert not trial.fail(2, certain=True, began_at=99.0)
    assert (trial.there.attempts, trial.there.not_before) == (1, 102.0)


def test_one_call_at_a_time_while_failing_and_the_limit_otherwise(trial: Trial) -> None:
    there = trial.there
    there.in_flight += 1
    assert there.allows(1, 100.0)
    there.in_flight += 1
    assert not there.allows(1, 100.0)
    there.in_flight = 0
    trial.fail(1, certain=True)
    assert not there.allows(1, 101.9)
    assert there.allows(1, 102.0)
    there.in_flight += 1
    assert not there.allows(1, 102.0)
    there.in_flight = 0
    assert trial.succeed(1)
    assert not trial.succeed(1)
    assert there.allows(1, 100.0)


def test_trouble_of_a_single_run_is_tried_by_another_soon_and_then_by_all_in_turn(trial: Trial) -> None:
    for _ in range(6):
        trial.now += 100.0
        trial.fail(1, certain=True)
    assert trial.there.next_try_at(1) == trial.now + 64.0
    assert trial.there.next_try_at(2) == trial.now + EXPEDITED_DELAY_S
    assert not trial.there.allows(2, trial.now)
    assert trial.there.allows(2, trial.now + EXPEDITED_DELAY_S)
    trial.now += EXPEDITED_DELAY_S
    trial.fail(2, certain=True)
    assert trial.there.next_try_at(3) == trial.there.next_try_at(1) == trial.now + 128.0


def test_hurry_shortens_a_wait_but_neither_a_wish_nor_a_refusal_to_nothing(trial: Trial) -> None:
    trial.fail(1, certain=True)
    for _ in range(5):
        trial.now += 100.0
        trial.fail(1, certain=True)
    assert trial.there.not_before == trial.now + 64.0
    trial.there.expedite()
    assert trial.there.not_before == trial.now + EXPEDITED_DELAY_S

    trial.fail(1, certain=True, wish_s=200.0)
    before = trial.there.not_before
    trial.there.expedite()
    assert trial.there.not_before == before >= trial.now + 200.0

    trial.fail(1, certain=True, slowly=True)
    trial.there.expedite()
    assert trial.there.not_before == trial.now + SLOW_BASE_DELAY_S / 2
