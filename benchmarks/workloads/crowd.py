"""Processes and memory that a tracker must read while they are idle. Each workload runs until it is killed."""

import os
import random
import signal
import tempfile
import time
from functools import partial

from benchmarks.workloads.tools import burn, spawn, touched, wait_for


def idle() -> None:
    """One process that sleeps."""
    signal.pause()


def foreign() -> None:
    """A thousand processes that sleep."""
    _crowd(1000)


def tree() -> None:
    """A root with 199 children that sleep."""
    _crowd(199)


def resident() -> None:
    """One process with 2 GiB resident in small pages."""
    memory = touched(2 << 30)
    signal.pause()
    memory.close()


def resident_a_little() -> None:
    """One process with 100 MiB resident."""
    memory = touched(100 << 20)
    signal.pause()
    memory.close()


def mixed() -> None:
    """Computes, forks, writes 10 MiB a second, and has a child with 100 MiB; not in step with whole seconds.

    The memory is not the root's: shared with each child, it would be read as half of it whenever that ends meanwhile.
    """
    spawn(resident_a_little)
    chunk = os.urandom(1 << 20)
    lengths = random.Random(7)
    with tempfile.TemporaryFile() as file:
        due = time.monotonic()
        while True:
            burn(0.04)
            wait_for([spawn(partial(burn, lengths.uniform(0.01, 0.03)))])
            file.seek(0)
            file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
            due += 0.1
            time.sleep(max(0.0, due - time.monotonic()))


def coming_and_going() -> None:
    """Fifty children a second, each with a child of its own."""
    while True:
        wait_for([spawn(lambda: wait_for([spawn(int)]))])
        time.sleep(0.02)


def _crowd(size: int) -> None:
    for _ in range(size):
        spawn(signal.pause)
    signal.pause()


WORKLOADS = {
    "idle": idle,
    "foreign": foreign,
    "tree": tree,
    "resident": resident,
    "mixed": mixed,
    "coming-and-going": coming_and_going,
}
