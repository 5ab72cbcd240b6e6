"""The clock that all other modules get as an argument; nothing else calls `time.*`."""

from __future__ import annotations

import time

TYPE_CHECKING = False  # `typing` and `threading` would delay the job's start by milliseconds
if TYPE_CHECKING:
    import threading
    from typing import Protocol

    class Clock(Protocol):
        """Wall time, monotonic time, CPU time, and waiting."""

        def now(self) -> float:
            """UNIX seconds; may step."""

        def monotonic(self) -> float:
            """Seconds that never step; only differences are meaningful."""

        def thread_time(self) -> float:
            """CPU seconds of the calling thread; only differences are meaningful."""

        def wait_for(self, event: threading.Event, timeout_s: float | None) -> bool:
            """Wait until the event is set (True) or the timeout has passed (False); `None` has no limit."""

else:
    Clock = object


class SystemClock:
    """The system's clocks."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)
    thread_time = staticmethod(time.thread_time)

    def wait_for(self, event: threading.Event, timeout_s: float | None) -> bool:
        """Wait on the event for at most `timeout_s` seconds."""
        return event.wait(timeout_s)
