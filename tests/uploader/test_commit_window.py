"""How long messages are gathered before a commit."""

import pytest
from fakes.manual_clock import TurningClock

from sentinel_uploader.intake.commit_window import ENOUGH_ROWS, WINDOW_S, CommitWindow


@pytest.fixture
def clock() -> TurningClock:
    return TurningClock()


@pytest.fixture
def window(clock: TurningClock) -> CommitWindow:
    return CommitWindow(clock)


def gathered_s(window: CommitWindow, clock: TurningClock, rows: int, *, steps: int = 99) -> float:
    """Gather for one batch that has so many rows after each step; return how long that took."""
    began = clock.monotonic()
    window.open(began)
    while steps and window.wait(rows):
        steps -= 1
    took_s = clock.monotonic() - began
    window.on_committed()
    return took_s


def test_a_row_that_comes_alone_is_committed_at_once(window: CommitWindow, clock: TurningClock) -> None:
    for _ in range(3):
        assert gathered_s(window, clock, 1) == 0.0
        clock.time_s += 1.1 * WINDOW_S


def test_batches_close_together_gather_for_the_window(window: CommitWindow, clock: TurningClock) -> None:
    gathered_s(window, clock, 1)
    clock.time_s += WINDOW_S / 2
    assert gathered_s(window, clock, 1) == pytest.approx(WINDOW_S)
    assert gathered_s(window, clock, 1) == pytest.approx(WINDOW_S)


def test_senders_that_all_wait_for_the_commit_wait_for_the_first_step_only(
    window: CommitWindow, clock: TurningClock
) -> None:
    gathered_s(window, clock, 1)
    assert gathered_s(window, clock, 1, steps=1) < WINDOW_S / 4


@pytest.mark.parametrize("rows", [0, ENOUGH_ROWS])
def test_nothing_to_commit_and_enough_to_commit_wait_for_no_more(
    window: CommitWindow, clock: TurningClock, rows: int
) -> None:
    gathered_s(window, clock, 1)
    assert gathered_s(window, clock, rows) == 0.0
