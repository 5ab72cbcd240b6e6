"""Requests of other processes about a run: a row in the spool, answered by the uploader that owns the spool."""

import logging
from collections.abc import Callable

from sentinel_uploader.runs.lifecycle import Event, RunState, TransitionError
from sentinel_uploader.spool.control_channel import DISCARD, DONE, DRAIN, RETRY, ControlRequest
from sentinel_uploader.spool.errors import SpoolError
from sentinel_uploader.spool.open_run import OpenRun
from sentinel_uploader.spool.store import Spool

log = logging.getLogger(__name__)


def handle_requests(
    spool: Spool,
    *,
    wake: Callable[[OpenRun], None],
    on_run_closed: Callable[[OpenRun], None],
    drain: Callable[[float], None],
) -> None:
    """Carry out all requests and write the answers: `done`, or why not. Raises `SpoolError` if it cannot write."""
    for request in spool.control.requests():
        try:
            if request.kind == DRAIN:
                drain(request.timeout_s or 0.0)
                answer = DONE
            else:
                answer = _apply(spool, request, wake, on_run_closed)
        except (SpoolError, TransitionError) as error:
            answer = str(error)
        spool.control.answer(request, answer)


def discard_run(spool: Spool, run: OpenRun) -> str:
    """Delete a run with its undelivered rows. Returns `done`, or why that is not possible now."""
    if run.in_flight:
        return "a call about this run is under way; try again in a moment"
    record = run.record
    rows = run.undelivered_rows
    spool.close_run(run, Event.DISCARDED)
    log.warning("run discarded run=%s key=%s rows=%d", record.run_id, record.key, rows, extra=record.log_fields)
    return DONE


def retry_run(spool: Spool, run: OpenRun) -> str:
    """Try to deliver a parked run again. Returns `done`, or why that is not possible."""
    if run.record.state is not RunState.QUARANTINED:
        return f"the run is {run.record.state}, not parked: it is tried anyway"
    spool.update(run, Event.REQUEUED, last_error="", next_try_at=0.0)
    run.not_before = 0.0
    run.attempts = 0
    return DONE


def _apply(
    spool: Spool, request: ControlRequest, wake: Callable[[OpenRun], None], on_run_closed: Callable[[OpenRun], None]
) -> str:
    run = spool.runs.get(request.run or 0)
    if run is None:
        return "the run is over"
    if request.kind == DISCARD:
        answer = discard_run(spool, run)
        if answer == DONE:
            on_run_closed(run)
        return answer
    if request.kind == RETRY:
        answer = retry_run(spool, run)
        wake(run)
        return answer
    return f"unknown request {request.kind!r}"
