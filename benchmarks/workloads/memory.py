"""Shared and private memory."""

import os
import signal
import time

from benchmarks.workloads.tools import pss_mib, spawn, touch, touched, wait_for

_PRIVATE_BYTES = 75 << 20
_SHARED_BYTES = 200 << 20
_WORKERS = 4
_REST_S = 2.5


def shared() -> dict[str, float]:
    """Four processes with 75 MiB each of their own and 200 MiB that all of them have mapped and touched."""
    common = touched(_SHARED_BYTES, shared=True)
    read_fd, write_fd = os.pipe()

    def work() -> None:
        own = touched(_PRIVATE_BYTES)
        touch(common)
        os.write(write_fd, b"x")
        signal.pause()
        own.close()

    workers = [spawn(work) for _ in range(_WORKERS)]
    for _ in workers:
        os.read(read_fd, 1)
    figures = {"memory_mib": pss_mib([os.getpid(), *workers])}
    time.sleep(_REST_S)
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    wait_for(workers)
    return figures


WORKLOADS = {"shared": shared}
