"""How long the intake gathers messages before it commits them.

A commit costs as much as dozens of messages. So under load the intake waits for more. A row that comes alone is
committed, and acknowledged, at once.
"""

import threading

from sentinel_protocol.common.clock import Clock

WINDOW_S = 0.05
"""Longest time that the first message of a batch waits for others. Two batches this close together are load."""
_FIRST_STEP_S = 0.01
ENOUGH_ROWS = 1024
"""A batch of so many rows waits for no more: its commit costs little per row already."""


class CommitWindow:
    """Gathers for one batch after another; belongs to the intake's thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._never = threading.Event()
        self._committed_at: float | None = None
        self._steps: list[float] = []

    def open(self, now: float) -> None:
        """The first messages of a batch have come; `now` is monotonic seconds."""
        is_loaded = self._committed_at is not None and now - self._committed_at < WINDOW_S
        # Two steps: when nothing comes in the first one, all senders may be waiting for this commit.
        self._steps = [WINDOW_S - _FIRST_STEP_S, _FIRST_STEP_S] if is_loaded else []

    def wait(self, rows: int) -> bool:
        """Wait until it is worth looking for more messages; False when the batch with `rows` is to be committed."""
        if not self._steps or not 0 < rows < ENOUGH_ROWS:
            return False
        self._clock.wait_for(self._never, self._steps.pop())
        return True

    def on_committed(self) -> None:
        """A batch was committed."""
        self._committed_at = self._clock.monotonic()
