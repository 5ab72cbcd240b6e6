"""Calls a function in a thread, because it may hang: a process that waits for a dead server locks its memory map."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class TimedCall(Generic[T]):
    """Runs one function at a time, and waits for a limited time for its value.

    While a call hangs, no other one is made. The thread starts with the first call and does not keep the process alive.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        # Bare locks: waiting for an event costs several times as much CPU.
        self._asked = threading.Lock()
        self._answered = threading.Lock()
        self._asked.acquire()
        self._answered.acquire()
        self._function: Callable[[], T] | None = None
        self._result: list[T] = []
        self._is_busy = False

    def call(self, function: Callable[[], T], limit_s: float) -> T:
        """Return the value of `function`, which must not raise; raises `TimeoutError` while a call hangs."""
        if self._is_busy and not self._answered.acquire(blocking=False):
            raise TimeoutError
        if self._thread is None:
            thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # The limit of threads is reached.
                raise TimeoutError from None
            self._thread = thread
        self._function = function
        self._result = []
        self._is_busy = True
        self._asked.release()
        if not self._answered.acquire(timeout=limit_s):
            raise TimeoutError
        self._is_busy = False
        return self._result[0]

    def close(self) -> None:
        """Let the thread end after its call."""
        self._function = None
        if self._thread is not None and not self._is_busy:
            self._asked.release()
            self._thread = None

    def _serve(self) -> None:
        while True:
            self._asked.acquire()
            function = self._function
            if function is None:
                return
            self._result = [function()]
            self._answered.release()
            if self._function is None:
                return
