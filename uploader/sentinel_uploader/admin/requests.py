"""What a person asks of a run through another process: a row in the spool, answered by the spool's owner."""

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
    """Do what is asked and write the answer: `done`, or why not. Raises `SpoolError` when that cannot be written.

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
    """Give a run up: its rows are deleted. Returns `done`."""
    record = run.record
    rows = run.undelivered_rows
    spool.close_run(run, Event.DISCARDED)
    log.warning("run discarded run=%s key=%s rows=%d", record.run_id, record.key, rows, extra=record.log_fields)
    return DONE


def retry_run(spool: Spool, run: OpenRun) -> str:
    """Have a parked run delivered again. Returns `done`, or why there is nothing to do."""
    if run.record.state is not RunState.QUARANTINED:
        return f"the run is {run.record.state}, not parked: it is tried anyway"
    spool.update(run, Event.REQUEUED, last_error="", next_try_at=0.0)
    return DONE


def _apply(spool: Spool, scheduler: RunScheduler, request: ControlRequest) -> str:
    run = spool.run(request.run or 0)
    if run is None:
        return "the run is over"
    if request.kind == DISCARD:
        if scheduler.is_in_flight(run):
            return "a call about this run is under way; try again in a moment"
        answer = discard_run(spool, run)
        scheduler.on_run_closed(run)
        return answer
    if request.kind == RETRY:
        answer = retry_run(spool, run)
        scheduler.requeue(run)
        return answer
    return f"unknown request {request.kind!r}"
