"""What follows upon a collector's `Hello`: its run is opened or continued, or it hears why not."""

from collections.abc import Callable

from sentinel_protocol.common.clock import Clock
from sentinel_protocol.wire.messages import Ack, Hello, Reject, RejectCode, Welcome
from sentinel_uploader.intake.answers import Answers
from sentinel_uploader.intake.backpressure import Fullness
from sentinel_uploader.intake.left_behind import LeftBehind
from sentinel_uploader.intake.rate_limiter import Limits
from sentinel_uploader.intake.responses import acknowledgement, end_unheard
from sentinel_uploader.intake.sessions import Session, Sessions
from sentinel_uploader.intake.spool_quota import Shares
from sentinel_uploader.intake.validation import cleaned, complaint
from sentinel_uploader.spool.errors import SpoolError
from sentinel_uploader.spool.open_run import OpenRun
from sentinel_uploader.spool.store import Spool
from sentinel_uploader.spool.types import QuotaExceededError, RunClosedError, RunLimitError, SupersededError
from sentinel_uploader.telemetry.counters import Counters


class Greeter:
    """Opens sessions; belongs to the intake's thread. `wake_run` is told of runs for which something may be due now."""

    def __init__(
        self,
        *,
        spool: Spool,
        sessions: Sessions,
        answers: Answers,
        fullness: Fullness,
        clock: Clock,
        counters: Counters,
        limits: Limits,
        shares: Shares,
        wake_run: Callable[[OpenRun], None],
    ) -> None:
        self._spool = spool
        self._sessions = sessions
        self._answers = answers
        self._fullness = fullness
        self._left_behind = LeftBehind(spool, clock)
        self._counters = counters
        self._limits = limits
        self._shares = shares
        self._wake_run = wake_run

    def greet(self, identity: bytes, hello: Hello, owner: str) -> None:
        """Answer a `Hello`; what came before it must be durable."""
        unfit = complaint(hello, self._limits)
        if unfit is not None:
            self._counters.turn_down(owner, unfit.reason)
            self._answers.say(identity, unfit.reject)
            return
        try:
            run = self._spool.open_run(
                cleaned(hello), owner=owner, max_runs=self._limits.runs_of_client, try_reserve=self._shares.admits
            )
        except SupersededError as error:
            self._answers.say(identity, Reject(RejectCode.SUPERSEDED, str(error), seq=error.seq))
        except RunLimitError as error:
            self._counters.turn_down(owner, "runs-of-client")
            self._answers.say(identity, Reject(RejectCode.BUSY, str(error), retry=True))
        except QuotaExceededError as error:
            self._answers.say(identity, Reject(RejectCode.BUSY, str(error), retry=True))
        except RunClosedError as error:
            self._greet_after_end(identity, hello, error)
        except SpoolError as error:
            self._fullness.note(error)
            self._answers.say(identity, Reject(RejectCode.BUSY, str(error), retry=True))
        else:
            self._open_session(identity, run)

    def _open_session(self, identity: bytes, run: OpenRun) -> None:
        earlier = self._sessions.of_run(run.id)
        self._sessions.forget(earlier)
        self._sessions.forget(self._sessions.of(identity))
        record = run.record
        # The same collector on a new connection takes over from itself, and must not be told to stop.
        if earlier is not None and earlier.identity != identity and earlier.incarnation != record.incarnation:
            error = SupersededError(record.fenced_seq.get(earlier.incarnation, 0))
            self._answers.say(earlier.identity, Reject(RejectCode.SUPERSEDED, str(error), seq=error.seq))
        if record.has_ended and record.closed_as_stale:
            text = "this run was closed as stale"
            self._answers.say(identity, Reject(RejectCode.CLOSED, text, seq=run.durable_seq))
            return
        session = Session(identity, run)
        self._sessions.add(session)
        left_behind = self._left_behind.of(record.owner)
        self._answers.say(identity, Welcome(session.next_seq, record.run_id, run.last_timestamp, left_behind))
        if record.has_ended:
            self._answers.say(identity, acknowledgement(run))
        self._wake_run(run)

    def _greet_after_end(self, identity: bytes, hello: Hello, closed: RunClosedError) -> None:
        """The collector that ended the run may not have heard so; everybody else needs a new run."""
        finished = end_unheard(closed.ended, hello.incarnation)
        if finished is None:
            self._answers.say(identity, Reject(RejectCode.CLOSED, str(closed), seq=closed.seq))
            return
        self._answers.say(identity, Welcome(closed.seq + 1, finished.run_id))
        self._answers.say(identity, Ack(closed.seq, finish=True))
        self._answers.say(identity, finished)
