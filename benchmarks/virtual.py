"""The two commands under a virtual clock that runs as fast as they can work.

`python -m benchmarks.virtual TIME_FILE collector|uploader [ARG]…` runs the real command with a clock that reads a file.
The collector advances it: instead of sleeping, it waits for the response to its last message, then sets the time on.
The uploader sleeps until the file has the time.
"""

import importlib
import math
import mmap
import os
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

_FORMAT = struct.Struct("<dd")
_LOOK_S = 0.004
_ANSWER_S = 10.0
"""Real seconds, far longer than any response takes."""


class VirtualTime:
    """Seconds since the beginning, shared through a file. One process advances it."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR)
        self._map = mmap.mmap(self._fd, _FORMAT.size)

    @classmethod
    def create(cls, path: Path) -> "VirtualTime":
        """Begin at the wall clock's present time."""
        path.write_bytes(_FORMAT.pack(0.0, time.time()))
        return cls(str(path))

    @property
    def passed_s(self) -> float:
        """Seconds since the beginning."""
        passed_s, _ = _FORMAT.unpack_from(self._map)
        return float(passed_s)

    def now(self) -> float:
        """UNIX seconds."""
        passed_s, began_at = _FORMAT.unpack_from(self._map)
        return float(passed_s + began_at)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        passed_s, began_at = _FORMAT.unpack_from(self._map)
        _FORMAT.pack_into(self._map, 0, passed_s + seconds, began_at)

    def close(self) -> None:
        """Give the descriptor back."""
        self._map.close()
        os.close(self._fd)


class VirtualClock:
    """A `sentinel_protocol.common.clock.Clock`; both clocks go together."""

    def __init__(self, virtual: VirtualTime) -> None:
        self._virtual = virtual

    def now(self) -> float:
        return self._virtual.now()

    def monotonic(self) -> float:
        # A machine that has been up for a while.
        return 1e5 + self._virtual.passed_s

    def thread_time(self) -> float:
        return time.thread_time()

    def wait_for(self, event: threading.Event, timeout_s: float | None) -> bool:
        until = math.inf if timeout_s is None else self._virtual.passed_s + timeout_s
        while not event.wait(_LOOK_S):
            if self._virtual.passed_s >= until:
                return False
        return True


def _move_time_by(virtual: VirtualTime) -> None:
    """Let the collector's waits end at once, after the response to its last message."""
    from sentinel_collector.delivery.zmq_client import ZmqClient
    from sentinel_collector.job.signals import ReceivedSignal, Signals

    wait, send, poll = Signals.wait, ZmqClient.send, ZmqClient.poll
    waiting_for: list[ZmqClient] = []

    def waited(signals: Signals, timeout_s: float) -> list[ReceivedSignal]:
        if waiting_for:
            poll(waiting_for.pop(), _ANSWER_S)
        received = wait(signals, 0.0)
        if not received and timeout_s > 0:
            virtual.advance(timeout_s)
        return received

    def sent(dealer: ZmqClient, frame: bytes) -> bool:
        is_sent = send(dealer, frame)
        waiting_for[:] = [dealer] if is_sent else []
        return is_sent

    def polled(dealer: ZmqClient, timeout_s: float) -> bool:
        is_there = poll(dealer, timeout_s)
        if not is_there:
            virtual.advance(timeout_s)
        return is_there

    for owner, name, function in ((Signals, "wait", waited), (ZmqClient, "send", sent), (ZmqClient, "poll", polled)):
        setattr(owner, name, function)


_MODULES = {"collector": "sentinel_collector.cli", "uploader": "sentinel_uploader.cli.main"}


def main() -> int:
    path, command, *words = sys.argv[1:]
    virtual = VirtualTime(path)
    clock: Any = importlib.import_module("sentinel_protocol.common.clock")
    clock.SystemClock = lambda: VirtualClock(virtual)
    if command == "collector":
        _move_time_by(virtual)
    code: int = importlib.import_module(_MODULES[command]).main(words)
    return code


if __name__ == "__main__":
    sys.exit(main())
