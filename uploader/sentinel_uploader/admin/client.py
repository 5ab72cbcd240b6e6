"""Requests a change from the uploader that owns a spool, or applies it directly when no uploader runs."""

import contextlib
import sqlite3
import threading

from sentinel_protocol.common.clock import Clock
from sentinel_protocol.common.errors import SentinelStreamError
from sentinel_uploader.admin.requests import discard_run, retry_run
from sentinel_uploader.spool.control_channel import DISCARD, DONE, DRAIN
from sentinel_uploader.spool.database import connect, database_path
from sentinel_uploader.spool.errors import SpoolLockedError
from sentinel_uploader.spool.lock import SpoolLock, lock_owner_pid
from sentinel_uploader.spool.store import Spool

_RESPONSE_TIMEOUT_S = 15.0
_POLL_S = 0.05
_UNLIMITED_BYTES = 1 << 43


class RequestDeniedError(SentinelStreamError):
    """The request was not carried out; the text says why."""


class _OwnerExitedError(SentinelStreamError):
    """The uploader ended before it answered."""


def request_change(spool_dir: str, kind: str, run: int, *, clock: Clock) -> None:
    """Have a run discarded or retried; raises `RequestDeniedError`."""
    deadline = clock.monotonic() + _RESPONSE_TIMEOUT_S
    while clock.monotonic() < deadline:
        # An uploader may start or end between the check and the request. Then try again.
        with contextlib.suppress(_OwnerExitedError, SpoolLockedError):
            if lock_owner_pid(spool_dir) is not None:
                _send_request(spool_dir, kind, clock, deadline, run=run)
            else:
                _apply_offline(spool_dir, kind, run, clock)
            return
    raise RequestDeniedError(f"the uploader did not answer within {_RESPONSE_TIMEOUT_S:.0f} s")


def request_drain(spool_dir: str, timeout_s: float, *, clock: Clock) -> None:
    """Have the uploader that owns the spool deliver what is in it and end. Waits for that."""
    try:
        _send_request(spool_dir, DRAIN, clock, clock.monotonic() + _RESPONSE_TIMEOUT_S, timeout_s=timeout_s)
    except _OwnerExitedError:
        return
    never = threading.Event()
    deadline = clock.monotonic() + timeout_s + _RESPONSE_TIMEOUT_S
    while lock_owner_pid(spool_dir) is not None:
        if clock.monotonic() >= deadline:
            raise RequestDeniedError("the uploader has not ended in time")
        clock.wait_for(never, _POLL_S)


def _apply_offline(spool_dir: str, kind: str, number: int, clock: Clock) -> None:
    with contextlib.ExitStack() as stack:
        stack.callback(SpoolLock(spool_dir, clock=clock).release)
        spool = Spool.open(spool_dir, max_bytes=_UNLIMITED_BYTES, clock=clock)
        stack.callback(spool.close)
        run = spool.run(number)
        if run is None:
            raise RequestDeniedError("the run is over")
        answer = discard_run(spool, run) if kind == DISCARD else retry_run(spool, run)
    if answer != DONE:
        raise RequestDeniedError(answer)


def _send_request(
    spool_dir: str, kind: str, clock: Clock, deadline: float, *, run: int | None = None, timeout_s: float | None = None
) -> None:
    try:
        with contextlib.closing(connect(database_path(spool_dir))) as connection:
            sql = "INSERT INTO requests (kind, run, timeout_s) VALUES (?, ?, ?)"
            request = connection.execute(sql, (kind, run, timeout_s)).lastrowid
            try:
                answer = _await_response(connection, request, spool_dir, clock, deadline)
            finally:
                connection.execute("DELETE FROM requests WHERE id = ?", (request,))
    except sqlite3.Error as error:
        raise RequestDeniedError(f"cannot ask the uploader through its spool {spool_dir}: {error}") from error
    if answer != DONE:
        raise RequestDeniedError(answer)


def _await_response(
    connection: sqlite3.Connection, request: int | None, spool_dir: str, clock: Clock, deadline: float
) -> str:
    never = threading.Event()
    while clock.monotonic() < deadline:
        row = connection.execute("SELECT answer FROM requests WHERE id = ?", (request,)).fetchone()
        if row is None or (row[0] is None and lock_owner_pid(spool_dir) is None):
            raise _OwnerExitedError("the uploader ended before it answered")
        if row[0] is not None:
            return str(row[0])
        clock.wait_for(never, _POLL_S)
    raise RequestDeniedError(f"the uploader did not answer within {_RESPONSE_TIMEOUT_S:.0f} s")
