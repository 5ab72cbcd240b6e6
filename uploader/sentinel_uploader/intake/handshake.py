"""Handles a collector's `Hello`: opens or continues its run, or rejects it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from sentinel_protocol.common.clock import Clock
from sentinel_protocol.wire.messages import Ack, Hello, RejectCode, Welcome
from sentinel_uploader.intake.backpressure import SpoolAvailability
from sentinel_uploader.intake.responses import ResponseSender, build_late_finished
from sentinel_uploader.intake.sessions import CollectorSession, Sessions
from sentinel_uploader.intake.spool_quota import SpoolQuota
from sentinel_uploader.intake.validation import sanitize_hello, validate_hello
from sentinel_uploader.limits import ClientLimits
from sentinel_uploader.runs.lifecycle import RunState
from sentinel_uploader.spool.errors import SpoolError
from sentinel_uploader.spool.open_run import OpenRun
from sentinel_uploader.spool.run_record import RunRecord
from sentinel_uploader.spool.store import Spool
from sentinel_uploader.spool.types import QuotaExceededError, RunClosedError, RunLimitError, SupersededError
from sentinel_uploader.telemetry.counters import Counters

_GRACE_S = 60.0
"""A run that ended less than this time ago is being delivered and does not count as undelivered."""
_RECOUNT_INTERVAL_S = 0.1
"""Thousands of collectors may say `Hello` at once."""


@dataclass(kw_only=True)
class HandshakeHandler:
    """Opens sessions; belongs to the intake's thread. `wake_run` is called for runs that may have a step due now."""

    spool: Spool
    sessions: Sessions
    responses: ResponseSender
    availability: SpoolAvailability
    clock: Clock
    counters: Counters
    limits: ClientLimits
    quota: SpoolQuota
    wake_run: Callable[[OpenRun], None]

    def __post_init__(self) -> None:
        self._undelivered_runs = UndeliveredRunCounter(self.spool, self.clock)

    def handle_hello(self, identity: bytes, hello: Hello, owner: str) -> None:
        """Answer a `Hello`. Messages before it must be durable already."""
        invalid = validate_hello(hello, self.limits)
        if invalid is not None:
            self.counters.count_rejection(owner, invalid.reason)
            self.responses.send(identity, invalid.reject)
            return
        try:
            run = self.spool.open_run(
                sanitize_hello(hello),
                owner=owner,
                max_runs=self.limits.max_client_runs,
                try_reserve=self.quota.try_reserve,
            )
        except SupersededError as error:
            self.responses.reject(identity, RejectCode.SUPERSEDED, str(error), seq=error.seq)
        except RunLimitError as error:
            self.counters.count_rejection(owner, "runs-of-client")
            self.responses.reject(identity, RejectCode.BUSY, str(error), retry=True)
        except QuotaExceededError as error:
            self.responses.reject(identity, RejectCode.BUSY, str(error), retry=True)
        except RunClosedError as error:
            self._handle_hello_after_end(identity, hello, error)
        except SpoolError as error:
            self.availability.record_failure(error)
            self.responses.reject(identity, RejectCode.BUSY, str(error), retry=True)
        else:
            self._open_session(identity, run)

    def _open_session(self, identity: bytes, run: OpenRun) -> None:
        earlier = self.sessions.by_run(run.id)
        self.sessions.remove(earlier)
        self.sessions.remove(self.sessions.by_connection(identity))
        record = run.record
        # The same collector on a new connection replaces itself, and must not be told to stop.
        if earlier is not None and earlier.identity != identity and earlier.epoch != record.epoch:
            error = SupersededError(record.fenced_seq.get(earlier.epoch, 0))
            self.responses.reject(earlier.identity, RejectCode.SUPERSEDED, str(error), seq=error.seq)
        if record.has_ended and record.closed_as_stale:
            self.responses.reject(identity, RejectCode.CLOSED, "this run was closed as stale", seq=run.durable_seq)
            return
        session = CollectorSession(identity, run)
        self.sessions.add(session)
        undelivered = self._undelivered_runs.count(record.owner)
        self.responses.send(identity, Welcome(session.next_seq, record.run_id, run.last_timestamp, undelivered))
        if record.has_ended:
            self.responses.acknowledge(identity, run)
        self.wake_run(run)

    def _handle_hello_after_end(self, identity: bytes, hello: Hello, closed: RunClosedError) -> None:
        """Tell the collector that ended the run how it ended. Any other collector needs a new run."""
        finished = build_late_finished(closed.ended, hello.epoch)
        if finished is None:
            self.responses.reject(identity, RejectCode.CLOSED, str(closed), seq=closed.seq)
            return
        self.responses.send(identity, Welcome(closed.seq + 1, finished.run_id))
        self.responses.send(identity, Ack(closed.seq, finish=True))
        self.responses.send(identity, finished)


class UndeliveredRunCounter:
    """Counts each client's runs that ended long ago and are not delivered. Not thread-safe.

    The client's next collector is told, because nobody looks at the uploader's log.
    """

    def __init__(self, spool: Spool, clock: Clock) -> None:
        self._spool = spool
        self._clock = clock
        self._counts: Counter[str] = Counter()
        self._due_at = clock.monotonic()

    def count(self, owner: str) -> int:
        """Return the number of the owner's undelivered runs, at most `_RECOUNT_INTERVAL_S` old."""
        now = self._clock.monotonic()
        if now >= self._due_at:
            self._due_at = now + _RECOUNT_INTERVAL_S
            ended_before = self._clock.now() - _GRACE_S
            records = self._spool.view(lambda run: run.record)
            self._counts = Counter(record.owner for record in records if _is_undelivered(record, ended_before))
        return self._counts[owner]


def _is_undelivered(record: RunRecord, ended_before: float) -> bool:
    if record.state is RunState.QUARANTINED:
        return True
    return record.finish is not None and not record.is_over and record.finish.time < ended_before
