"""CPU time of processes that come and go."""

import os
import random
import signal
import threading
import time
from functools import partial

from benchmarks.workloads.tools import burn, spawn, wait_for

_RUN_S = 3.5


def brief() -> None:
    """Children of 20 to 80 ms, one after the other."""
    lengths = random.Random(7)
    end = time.monotonic() + _RUN_S
    while time.monotonic() < end:
        wait_for([spawn(partial(burn, lengths.uniform(0.02, 0.08)))])


def nested() -> None:
    """Three generations that end one by one, each time at another point of the sampling interval."""

    def child() -> None:
        pid = spawn(grandchild)
        burn(0.3)
        wait_for([pid])

    def grandchild() -> None:
        pid = spawn(lambda: burn(0.25))
        burn(0.45)
        wait_for([pid])

    end = time.monotonic() + _RUN_S
    while time.monotonic() < end:
        wait_for([spawn(child)])


def of_thread() -> None:
    """A child of a thread that is not the main one."""
    worker = threading.Thread(target=lambda: wait_for([spawn(lambda: burn(_RUN_S))]))
    worker.start()
    worker.join()


def daemon() -> None:
    """A process that was forked twice and lost its parent. The root outlives it."""
    read_fd, write_fd = os.pipe()

    def detach() -> None:
        os.setsid()
        spawn(lambda: burn(2.8))

    wait_for([spawn(detach)])
    os.close(write_fd)
    os.read(read_fd, 1)


def ignored_brief() -> None:
    """Children of 20 to 80 ms without a waiting parent: the kernel reaps them, and their times are lost."""
    _ignored(count=50, shortest_s=0.02, longest_s=0.08)


def ignored_long() -> None:
    """The same with children of 2 s."""
    _ignored(count=2, shortest_s=2.0, longest_s=2.0)


def _ignored(*, count: int, shortest_s: float, longest_s: float) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    lengths = random.Random(7)
    for _ in range(count):
        read_fd, write_fd = os.pipe()
        spawn(partial(burn, lengths.uniform(shortest_s, longest_s)))
        os.close(write_fd)
        os.read(read_fd, 1)
        os.close(read_fd)


WORKLOADS = {
    "brief": brief,
    "nested": nested,
    "of-thread": of_thread,
    "daemon": daemon,
    "ignored-brief": ignored_brief,
    "ignored-long": ignored_long,
}
