"""Daemon threads for calls that may hang.

`concurrent.futures` joins its threads when the interpreter ends: one hung upload would block a stop.
"""

import logging
import queue
import signal
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class DaemonThreadPool:
    """Runs tasks on at most `size` threads, in the order of submission."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._idle = 0

    def submit(self, task: Callable[[], None]) -> None:
        """Run the task soon; it must not raise."""
        with self._lock:
            if self._idle:
                self._idle -= 1
            elif self._threads < self._size:
                self._threads += 1
                threading.Thread(target=self._work, name=f"worker-{self._threads}", daemon=True).start()
        self._tasks.put(task)

    def _work(self) -> None:
        # The main thread waits for signals. One that a worker received would end the process.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            task = self._tasks.get()
            try:
                task()
            except Exception:
                log.exception("a task failed")
            with self._lock:
                self._idle += 1
