"""Asks the owner of a spool for something, or does it where nobody owns the spool."""

import threading
from contextlib import closing

from protocol.clock import Clock
from protocol.errors import SentinelStreamError
from uploader.database import MIN_SPOOL_BYTES, Database, SpoolLock, SpoolLockedError, connect, database_path
from uploader.requests import DISCARD, DONE, discard_run, retry_run
from uploader.spool import Spool

_ANSWER_S = 15.0
_POLL_S = 0.05
_UNLIMITED_BYTES = 1 << 45


class RefusedError(SentinelStreamError):
    """What was asked for was not done; the text says why."""


def ask(spool_dir: str, kind: str, run: int, *, clock: Clock, until_gone_s: float | None = None) -> None:
    """Have it done; raises `RefusedError` with the reason when it was not.

    With `until_gone_s` it also waits until the owner has ended.
    """
    try:
        lock = SpoolLock(spool_dir)
    except SpoolLockedError:
        _ask_owner(spool_dir, kind, run, clock)
        if until_gone_s is not None:
            _wait_until_gone(spool_dir, clock, until_gone_s)
        return
    try:
        _do(spool_dir, kind, run, clock)
    finally:
        lock.release()


def _do(spool_dir: str, kind: str, number: int, clock: Clock) -> None:
    spool = Spool(Database(spool_dir, max_bytes=max(_UNLIMITED_BYTES, MIN_SPOOL_BYTES)), clock=clock)
    try:
        run = spool.runs.get(number)
        if run is None:
            raise RefusedError("the run is over")
        answer = discard_run(spool, run) if kind == DISCARD else retry_run(spool, run)
    finally:
        spool.close()
    if answer != DONE:
        raise RefusedError(answer)


def _ask_owner(spool_dir: str, kind: str, run: int, clock: Clock) -> None:
    never = threading.Event()
    with closing(connect(database_path(spool_dir))) as connection:
        request = connection.execute("INSERT INTO requests (kind, run) VALUES (?, ?)", (kind, run)).lastrowid
        deadline = clock.monotonic() + _ANSWER_S
        answer: str | None = None
        while answer is None and clock.monotonic() < deadline:
            clock.wait(never, _POLL_S)
            (answer,) = connection.execute("SELECT answer FROM requests WHERE id = ?", (request,)).fetchone()
        connection.execute("DELETE FROM requests WHERE id = ?", (request,))
    if answer is None:
        raise RefusedError(f"the uploader did not answer within {_ANSWER_S:.0f} s")
    if answer != DONE:
        raise RefusedError(answer)


def _wait_until_gone(spool_dir: str, clock: Clock, timeout_s: float) -> None:
    never = threading.Event()
    deadline = clock.monotonic() + timeout_s
    while clock.monotonic() < deadline:
        try:
            SpoolLock(spool_dir).release()
        except SpoolLockedError:
            clock.wait(never, _POLL_S)
        else:
            return
    raise RefusedError("the uploader has not ended in time")
