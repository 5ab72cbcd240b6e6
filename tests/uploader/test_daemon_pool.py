"""Threads for calls that may hang: how many, and what one that fails costs."""

import threading
from functools import partial

import pytest
from fakes.process_harness import wait_until
from fakes.scripted_backend import Gate

from sentinel_uploader.util.daemon_pool import DaemonThreadPool


def test_no_more_tasks_run_at_once_than_there_are_places() -> None:
    pool, gate, done = DaemonThreadPool(2), Gate(), threading.Semaphore(0)

    def task() -> None:
        gate.pass_through()
        done.release()

    before = threading.active_count()
    for _ in range(5):
        pool.submit(task)
    wait_until(lambda: gate.entries == 2, "two tasks run")
    assert threading.active_count() == before + 2
    gate.open()
    assert all(done.acquire(timeout=30) for _ in range(5))
    assert gate.entries == 5


def _is_idle_after(pool: DaemonThreadPool, threads: list[int], tasks: int) -> bool:
    return len(threads) == tasks and pool._idle == 1


def test_thread_that_has_nothing_to_do_takes_the_next_task() -> None:
    pool = DaemonThreadPool(8)
    threads: list[int] = []
    for number in range(1, 6):
        pool.submit(lambda: threads.append(threading.get_ident()))
        wait_until(partial(_is_idle_after, pool, threads, number), "the task has ended")
    assert len(set(threads)) == 1


def _fail() -> None:
    raise RuntimeError("a defect")


def test_task_that_fails_does_not_take_its_thread_with_it(caplog: pytest.LogCaptureFixture) -> None:
    pool, done = DaemonThreadPool(1), threading.Event()
    pool.submit(_fail)
    pool.submit(done.set)
    assert done.wait(30)
    assert "a task failed" in caplog.text
