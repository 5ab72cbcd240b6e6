"""Requests of other processes about a run: a row in the spool, answered by the uploader that owns the spool."""

import logging
from collections.abc import Callable
from typing import Protocol

from sentinel_uploader.runs.lifecycle import Event, RunState, TransitionError
from sentinel_uploader.spool.control_channel import DISCARD, DONE, DRAIN, RETRY, ControlRequest
from sentinel_uploader.spool.errors import SpoolError
from sentinel_uploader.spool.open_run import OpenRun
from sentinel_uploader.spool.store import Spool

log = logging.getLogger(__name__)


class RunScheduler(Protocol):
    """The delivery of runs, as far as a person's requests concern it."""

    def is_in_flight(self, run: OpenRun) -> bool:
        """Whether a step of the run is being executed."""

    def requeue(self, run: OpenRun) -> None:
        """Try the run at once."""

    def on_run_closed(self, run: OpenRun) -> None:
        """The run is closed."""


def handle_requests(spool: Spool, scheduler: RunScheduler, *, drain: Callable[[float], None]) -> None:
    """Carry out all requests and write the answers: `done`, or why not. Raises `SpoolError` if it cannot write.

    Call it from the thread that starts the steps: none begins meanwhile.
    """
    for request in spool.control.requests():
        try:
            if request.kind == DRAIN:
                drain(request.timeout_s or 0.0)
                answer = DONE
            else:
                answer = _apply(spool, scheduler, request)
        except (SpoolError, TransitionError) as error:
            answer = str(error)
        spool.control.answer(request, answer)


def discard_run(spool: Spool, run: OpenRun) -> str:
    """Delete a run with its undelivered rows. Returns `done`."""
    record = run.record
    rows = run.undelivered_rows
    spool.close_run(run, Event.DISCARDED)
    log.warning("run discarded run=%s key=%s rows=%d", record.run_id, record.key, rows, extra=record.log_fields)
    return DONE


def retry_run(spool: Spool, run: OpenRun) -> str:
    """Try to deliver a parked run again. Returns `done`, or why that is not possible."""
    if run.record.state is not RunState.QUARANTINED:
        return f"the run is {run.record.state}, not parked: it is retried anyway"
    spool.update(run, Event.REQUEUED, last_error="", next_try_at=0.0)
    return DONE


def _apply(spool: Spool, scheduler: RunScheduler, request: ControlRequest) -> str:
    run = spool.run(request.run or 0)
    if run is None:
        return "the run is over"
    if request.kind == DISCARD:
        if scheduler.is_in_flight(run):
            return "a request for this run is in progress; try again in a moment"
        answer = discard_run(spool, run)
        scheduler.on_run_closed(run)
        return answer
    if request.kind == RETRY:
        answer = retry_run(spool, run)
        if answer == DONE:
            scheduler.requeue(run)
        return answer
    return f"unknown request {request.kind!r}"
