"""What follows upon a collector's `Hello`: its run is opened or continued, or it hears why not."""

from collections.abc import Callable

from sentinel_protocol.common.clock import Clock
from sentinel_protocol.wire.messages import Ack, Hello, Reject, RejectCode, Welcome
from sentinel_uploader.intake.answers import ResponseSender
from sentinel_uploader.intake.backpressure import SpoolAvailability
from sentinel_uploader.intake.left_behind import UndeliveredRunCounter
from sentinel_uploader.intake.responses import build_ack, build_late_finished
from sentinel_uploader.intake.sessions import CollectorSession, Sessions
from sentinel_uploader.intake.spool_quota import SpoolQuota
from sentinel_uploader.intake.validation import sanitize_hello, validate_hello
from sentinel_uploader.limits import ClientLimits
from sentinel_uploader.spool.database import SpoolError
from sentinel_uploader.spool.run_record import OpenRun
from sentinel_uploader.spool.store import Spool
from sentinel_uploader.spool.types import QuotaExceededError, RunClosedError, RunLimitError, SupersededError
from sentinel_uploader.telemetry.counters import Counters


class HandshakeHandler:
    """Opens sessions; belongs to the intake's thread. `wake_run` is told of runs for which something may be due now."""

    def __init__(
        self,
        *,
        spool: Spool,
        sessions: Sessions,
        responses: ResponseSender,
        availability: SpoolAvailability,
        clock: Clock,
        counters: Counters,
        limits: ClientLimits,
        quota: SpoolQuota,
        wake_run: Callable[[OpenRun], None],
    ) -> None:
        self._spool = spool
        self._sessions = sessions
        self._responses = responses
        self._availability = availability
        self._undelivered_runs = UndeliveredRunCounter(spool, clock)
        self._counters = counters
        self._limits = limits
        self._quota = quota
        self._wake_run = wake_run

    def handle_hello(self, identity: bytes, hello: Hello, owner: str) -> None:
        """Answer a `Hello`; what came before it must be durable."""
        unfit = validate_hello(hello, self._limits)
        if unfit is not None:
            self._counters.count_rejection(owner, unfit.reason)
            self._responses.send(identity, unfit.reject)
            return
        try:
            run = self._spool.open_run(
                sanitize_hello(hello),
                owner=owner,
                max_runs=self._limits.max_client_runs,
                try_reserve=self._quota.try_reserve,
            )
        except SupersededError as error:
            self._responses.send(identity, Reject(RejectCode.SUPERSEDED, str(error), seq=error.seq))
        except RunLimitError as error:
            self._counters.count_rejection(owner, "runs-of-client")
            self._responses.send(identity, Reject(RejectCode.BUSY, str(error), retry=True))
        except QuotaExceededError as error:
            self._responses.send(identity, Reject(RejectCode.BUSY, str(error), retry=True))
        except RunClosedError as error:
            self._handle_hello_after_end(identity, hello, error)
        except SpoolError as error:
            self._availability.record_failure(error)
            self._responses.send(identity, Reject(RejectCode.BUSY, str(error), retry=True))
        else:
            self._open_session(identity, run)

    def _open_session(self, identity: bytes, run: OpenRun) -> None:
        earlier = self._sessions.by_run(run.id)
        self._sessions.remove(earlier)
        self._sessions.remove(self._sessions.by_connection(identity))
        record = run.record
        # The same collector on a new connection takes over from itself, and must not be told to stop.
        if earlier is not None and earlier.identity != identity and earlier.incarnation != record.incarnation:
            error = SupersededError(record.fenced_seq.get(earlier.incarnation, 0))
            self._responses.send(earlier.identity, Reject(RejectCode.SUPERSEDED, str(error), seq=error.seq))
        if record.has_ended and record.closed_as_stale:
            text = "this run was closed as stale"
            self._responses.send(identity, Reject(RejectCode.CLOSED, text, seq=run.durable_seq))
            return
        session = CollectorSession(identity, run)
        self._sessions.add(session)
        left_behind = self._undelivered_runs.count(record.owner)
        self._responses.send(identity, Welcome(session.next_seq, record.run_id, run.last_timestamp, left_behind))
        if record.has_ended:
            self._responses.send(identity, build_ack(run))
        self._wake_run(run)

    def _handle_hello_after_end(self, identity: bytes, hello: Hello, closed: RunClosedError) -> None:
        """The collector that ended the run may not have heard so; everybody else needs a new run."""
        finished = build_late_finished(closed.ended, hello.epoch)
        if finished is None:
            self._responses.send(identity, Reject(RejectCode.CLOSED, str(closed), seq=closed.seq))
            return
        self._responses.send(identity, Welcome(closed.seq + 1, finished.run_id))
        self._responses.send(identity, Ack(closed.seq, finish=True))
        self._responses.send(identity, finished)
