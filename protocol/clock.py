"""Time is injected: nothing else in the packages calls `time.*`."""

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """Wall time, monotonic time, and waiting."""

    def now(self) -> float:
        """UNIX seconds; may step."""

    def monotonic(self) -> float:
        """Seconds that never step; only differences mean something."""

    def wait(self, event: threading.Event, timeout_s: float | None) -> bool:
        """Wait until the event is set (True) or the time has passed (False)."""


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> float:
        """UNIX seconds."""
        return time.time()

    def monotonic(self) -> float:
        """`CLOCK_MONOTONIC`, seconds."""
        return time.monotonic()

    def wait(self, event: threading.Event, timeout_s: float | None) -> bool:
        """Wait on the event for at most `timeout_s` seconds (`None`: without limit)."""
        return event.wait(timeout_s)
