"""Calls a function that may hang for good, such as `statvfs` on a file system whose server is gone.

It runs in a process of its own. A thread would not do: the kernel cannot end a process while one of its threads waits
for such a server.
"""

import contextlib
import marshal
import os
import select
import signal
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_LIMIT_MS = 100
_END_MS = 50
"""How long to wait for the end of a killed process. One that hangs is left to init."""
_RESULT_BYTES = 1 << 16


class HangGuard(Generic[T]):
    """Calls `function` in a child process at each `call`. Its value consists of what `marshal` can write.

    `on_started` gets the pid of each child process: it is no part of the job.
    """

    def __init__(self, function: Callable[[], T], *, on_started: Callable[[int], None]) -> None:
        self._function = function
        self._on_started = on_started
        self._pid = 0
        self._requests = self._results = -1
        self._is_busy = False

    def call(self) -> T:
        """Return the function's value; raises `TimeoutError` while a call hangs, `OSError` where no process starts."""
        if self._pid == 0:
            self._start()
        poll = select.poll()
        poll.register(self._results, select.POLLIN)
        if self._is_busy:
            # A late value is an old one.
            if not poll.poll(0):
                raise TimeoutError
            self._receive()
        self._send()
        if not poll.poll(_LIMIT_MS):
            raise TimeoutError
        value: T = marshal.loads(self._receive())  # noqa: S302 -- our own child's
        return value

    def close(self) -> None:
        """End the child process, without waiting for one that hangs."""
        if self._pid == 0:
            return
        os.close(self._requests)
        os.close(self._results)
        with contextlib.suppress(OSError):
            os.kill(self._pid, signal.SIGKILL)
            for _ in range(_END_MS):
                if os.waitpid(self._pid, os.WNOHANG)[0]:
                    break
                select.poll().poll(1)
        self._pid = 0
        self._is_busy = False

    def _send(self) -> None:
        try:
            os.write(self._requests, b"?")
        except OSError:
            self.close()
            raise
        self._is_busy = True

    def _receive(self) -> bytes:
        result = os.read(self._results, _RESULT_BYTES)
        self._is_busy = False
        if not result:
            self.close()
            raise ChildProcessError("the process has ended")
        return result

    def _start(self) -> None:
        requests, self._requests = os.pipe()
        self._results, results = os.pipe()
        try:
            pid = os.fork()
        except OSError:
            for fd in (requests, self._requests, self._results, results):
                os.close(fd)
            raise
        if pid == 0:
            self._serve(requests, results)
        os.close(requests)
        os.close(results)
        self._pid = pid
        self._on_started(pid)

    def _serve(self, requests: int, results: int) -> None:
        """Answer until the parent has gone; never returns."""
        try:
            # The terminal's signals are the job's, and its streams end with it.
            os.setsid()
            for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
                with contextlib.suppress(OSError, ValueError):
                    signal.signal(signum, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            for name in os.listdir("/proc/self/fd"):
                if int(name) not in (requests, results):
                    with contextlib.suppress(OSError):
                        os.close(int(name))
            while os.read(requests, 1):
                value: Any = self._function()
                os.write(results, marshal.dumps(value))
        finally:
            os._exit(0)
