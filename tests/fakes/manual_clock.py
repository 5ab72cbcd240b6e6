"""A clock that only waiting turns."""

import threading


class TurningClock:
    """Both times go on by what is waited for, and by nothing else."""

    def __init__(self) -> None:
        self.time_s = 1000.0
        self.wall_s = 1_700_000_000.0

    def now(self) -> float:
        return self.wall_s + self.time_s

    def monotonic(self) -> float:
        return self.time_s

    def thread_time(self) -> float:
        return 0.0

    def wait_for(self, event: threading.Event, timeout_s: float | None) -> bool:
        if not event.is_set():
            assert timeout_s is not None, "nobody would ever set the event"
            self.time_s += timeout_s
        return event.is_set()
