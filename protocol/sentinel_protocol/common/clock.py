"""Time is injected: nothing else in the packages calls `time.*`."""

from __future__ import annotations

import time

TYPE_CHECKING = False  # `typing` and `threading` would cost milliseconds of the job's start
if TYPE_CHECKING:
    import threading
    from typing import Protocol

    class Clock(Protocol):
        """Wall time, monotonic time, CPU time, and waiting."""

        def now(self) -> float:
            """UNIX seconds; may step."""

        def monotonic(self) -> float:
            """Seconds that never step; only differences mean something."""

        def thread_time(self) -> float:
            """CPU seconds of the calling thread; only differences mean something."""

        def wait_for(self, event: threading.Event, timeout_s: float | None) -> bool:
            """Wait until the event is set (True) or the time has passed (False)."""

else:
    Clock = object


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> float:
        """UNIX seconds."""
        return time.time()

    def monotonic(self) -> float:
        """`CLOCK_MONOTONIC`, seconds."""
        return time.monotonic()

    def thread_time(self) -> float:
        """CPU seconds of the calling thread (`CLOCK_THREAD_CPUTIME_ID`)."""
        return time.thread_time()

    def wait_for(self, event: threading.Event, timeout_s: float | None) -> bool:
        """Wait on the event for at most `timeout_s` seconds (`None`: without limit)."""
        return event.wait(timeout_s)
