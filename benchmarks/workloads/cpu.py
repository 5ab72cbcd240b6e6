"""CPU time of the root, of threads, and of workers that live as long as the run."""

import threading

from benchmarks.workloads.tools import burn, spawn, wait_for

_RUN_S = 3.5


def busy() -> None:
    """One process at full load."""
    burn(_RUN_S)


def pool() -> None:
    """Two workers that run from the beginning to the end."""
    wait_for([spawn(lambda: burn(2.8)) for _ in range(2)])


def threads() -> None:
    """Two busy threads beside an idle main thread; the interpreter lets one of them run at a time."""
    workers = [threading.Thread(target=burn, args=(_RUN_S / 2,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def short() -> None:
    """A job that ends before the first sample."""
    burn(0.3)


WORKLOADS = {"busy": busy, "pool": pool, "threads": threads, "short": short}
