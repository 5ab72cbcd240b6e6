"""Reads `smaps_rollup` in a thread, because that may hang: a process waits for a dead server with its map locked."""

import threading
from collections.abc import Callable
from typing import NamedTuple

from sentinel_collector.sensors.process_tree.process import TrackedProcess
from sentinel_collector.sensors.process_tree.pss_state import PssReading
from sentinel_protocol.common.clock import Clock

_HUNG_S = 0.2
_HUNG_COSTS = 10
"""A reading that takes longer than `_HUNG_S` and this many times its expected cost hangs."""


class Rollup(NamedTuple):
    """The reading, or why there is none, and the CPU seconds that it took."""

    reading: PssReading | Exception
    cost_s: float


class RollupReader:
    """Waits for a limited time. While a reading hangs, there is no other one.

    The thread starts with the first reading and does not keep the process alive. `warn` gets one line.
    """

    def __init__(self, *, clock: Clock, warn: Callable[[str], None]) -> None:
        self._clock = clock
        self._warn = warn
        self._has_warned = False
        self._thread: threading.Thread | None = None
        # Bare locks: waiting for an event costs several times as much CPU.
        self._asked = threading.Lock()
        self._answered = threading.Lock()
        self._asked.acquire()
        self._answered.acquire()
        self._process: TrackedProcess | None = None
        self._rollup: Rollup | None = None
        self._is_busy = False

    def read(self, process: TrackedProcess, *, expected_cost_s: float) -> Rollup | None:
        """Return the rollup; `None` while a reading hangs, or where no thread can be started."""
        if self._is_busy and not self._answered.acquire(blocking=False):
            return None
        self._is_busy = False
        if self._thread is None:
            thread = threading.Thread(target=self._serve, name="smaps", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return None
            self._thread = thread
        self._process, self._rollup = process, None
        self._is_busy = True
        self._asked.release()
        if self._answered.acquire(timeout=_HUNG_S + _HUNG_COSTS * expected_cost_s):
            self._is_busy = False
            return self._rollup
        if not self._has_warned:
            self._has_warned = True
            self._warn("smaps_rollup of a process does not return: the job's memory is estimated until it does")
        return None

    def close(self) -> None:
        """Let the thread end after its reading."""
        self._process = None
        if self._thread is not None and not self._is_busy:
            self._asked.release()
            self._thread = None

    def _serve(self) -> None:
        while True:
            self._asked.acquire()
            process = self._process
            if process is None:
                return
            begin = self._clock.thread_time()
            reading: PssReading | Exception
            try:
                reading = PssReading(process.read_file("smaps_rollup"), process.pss, faults=process.faults)
            except Exception as error:  # noqa: BLE001 -- the caller raises it
                reading = error
            self._rollup = Rollup(reading, self._clock.thread_time() - begin)
            self._answered.release()
            if self._process is None:
                return
