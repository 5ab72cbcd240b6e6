"""The conversation's far end: takes frames from collectors, makes them durable in groups, then acknowledges.

One thread owns the socket. Nothing that a peer sends is fatal: what is not a message is counted and dropped.
"""

import logging
import queue
import threading
from collections.abc import Callable
from typing import NamedTuple

from protocol.clock import Clock
from protocol.errors import BadMessageError
from protocol.messages import (
    MAX_SEQUENCE,
    Ack,
    Finish,
    Hello,
    Ping,
    Reject,
    RejectCode,
    Samples,
    UploaderMessage,
    Welcome,
    decode_from_collector,
    encode,
)
from protocol.transport import Arrival, Router
from uploader.counters import Counters
from uploader.database import SpoolError, SpoolFullError
from uploader.left_behind import LeftBehind
from uploader.limits import Admission, Limits, Verdict
from uploader.records import Run, RunRecord
from uploader.replies import acknowledgement, finished_message
from uploader.run import Policy, RunState
from uploader.screening import MAX_FRAME_ROWS, cleaned, complaint, sound_finish, sound_timestamps
from uploader.session import Session
from uploader.spool import Spool
from uploader.spooled import RunClosedError, StoredFrame, SupersededError, TooManyRunsError

log = logging.getLogger(__name__)

GROUP_FRAMES = 1000
"""Most frames that one transaction waits for."""
GROUP_BYTES = 16 << 20
_RECEIVE_FRAMES = 64
_LOOP_S = 1.0
LATE_S = 3.0
"""A loop that took longer was stopped or starved: collectors were not heard meanwhile."""
_FULL_LOG_INTERVAL_S = 60.0
_RECOVER_S = 1.0


class Refusal(NamedTuple):
    """Rows were not taken because of the spool: when last (monotonic seconds), and why."""

    at: float
    text: str


class Intake:
    """The socket's loop. `wake_run` is told of runs for which something may be due now.

    `name_of` says which client a public key belongs to, `None` when to none (any more). It is asked for each message.
    """

    def __init__(
        self,
        *,
        router: Router,
        spool: Spool,
        clock: Clock,
        wake_run: Callable[[Run], None],
        policy: Policy,
        counters: Counters,
        name_of: Callable[[bytes], str | None] = lambda _: None,
        limits: Limits | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self._admission = Admission(name_of=name_of, limits=self._limits, counters=counters)
        self._router = router
        self._spool = spool
        self._clock = clock
        self._wake_run = wake_run
        self._policy = policy
        self._counters = counters
        self._left_behind = LeftBehind(spool, clock)
        self._sessions: dict[bytes, Session] = {}
        self._session_of_run: dict[int, Session] = {}
        self._frames: list[StoredFrame] = []
        self._touched: dict[bytes, Session] = {}
        self._news: queue.SimpleQueue[tuple[int, RunRecord]] = queue.SimpleQueue()
        self._full_logged_at: float | None = None
        self.refusal: Refusal | None = None
        """Set while the spool takes no rows."""
        now = clock.monotonic()
        self.looped_at = now
        self.listening_since = now
        """Since when collectors have been heard without a break: silence counts from there."""
        self.heard_at = now
        """When the last frame came."""

    def run(self, stop: threading.Event) -> None:
        """Serve until the event is set; `Router.wake` makes it look at the event at once."""
        while not stop.is_set():
            try:
                self.serve_once(_LOOP_S)
            except Exception:
                # A defect must not deafen the uploader: collectors send again what was not acknowledged.
                log.exception("intake failed unexpectedly")
                self._forget_group()
                self._clock.wait(stop, _RECOVER_S)
        self._tell_news()

    def serve_once(self, timeout_s: float) -> None:
        """Take one group: receive, store, acknowledge."""
        received = self._receive(timeout_s)
        began_at = self._clock.monotonic()
        if began_at - self.looped_at > LATE_S + timeout_s:
            self.listening_since = began_at
        if received:
            self.heard_at = began_at
            self._counters.messages.add(len(received))
        for arrival in received:
            self._take(arrival)
        self._commit()
        self._tell_news()
        now = self._clock.monotonic()
        if now - began_at > LATE_S:
            self.listening_since = now
        # Told last: whoever sees it knows that all that had come before is taken into account.
        self.looped_at = now

    def _receive(self, timeout_s: float) -> list[Arrival]:
        """Wait for messages and return what is there, as long as it can be held in memory and on disk at once."""
        received: list[Arrival] = []
        size = taken = 0
        # Rubbish counts as well: as long as it comes, nobody would be answered.
        while taken < GROUP_FRAMES and size < GROUP_BYTES:
            some, malformed = self._router.receive(most=_RECEIVE_FRAMES, timeout_s=0.0 if taken else timeout_s)
            taken += len(some) + malformed
            if malformed:
                self._counters.messages.add(malformed)
                self._counters.rejected.add(malformed, "malformed")
            received += some
            size += sum(len(arrival.frame) for arrival in some)
            if len(some) + malformed < _RECEIVE_FRAMES:
                break
        return received

    def _forget_group(self) -> None:
        self._frames = []
        self._touched = {}
        for session in self._sessions.values():
            session.forget_group()

    def tell(self, run: Run) -> None:
        """Tell the run's collector how it ended, or what keeps it from that; may be called from any thread."""
        self._news.put((run.id, run.record))
        self._router.wake()

    def has_sessions(self) -> bool:
        """Whether a collector of an open run is or was connected."""
        return bool(self._session_of_run)

    def _take(self, arrival: Arrival) -> None:
        identity, frame = arrival.identity, arrival.frame
        owner = self._admission.owner_of(arrival)
        if owner is None:
            # Revoked since it came in. Nothing is answered: what is on its way to it is not for it any more.
            self._counters.rejected.add(1, "key")
            self._router.cut(identity)
            return
        verdict = self._admission.look(arrival, owner, self._clock.monotonic())
        if not verdict.is_taken:
            self._turn_down(identity, verdict)
            return
        try:
            message = decode_from_collector(frame)
        except BadMessageError:
            message = None
        self._admission.charge(arrival, owner, message)
        if message is None:
            self._counters.rejected.add(1, "bad")
            return
        if isinstance(message, Hello):
            self._commit()
            self._hello(identity, message, owner)
            return
        session = self._sessions.get(identity)
        if session is None or session.run.record.owner != owner:
            self._reply(identity, Reject(RejectCode.HELLO_FIRST, "say hello first", retry=True))
            return
        session.run.heard_at = self._clock.monotonic()
        row_time = message.samples[-1].timestamp if isinstance(message, Samples) and message.samples else None
        self._counters.clients.saw(session.run.record.owner, self._clock.now(), row_time)
        match message:
            case Samples():
                self._samples(session, message, frame)
            case Finish():
                self._finish(session, message)
            case Ping():
                pass

    def _turn_down(self, identity: bytes, verdict: Verdict) -> None:
        # Whatever the session has in this group is stored all the same; what comes behind the gap is not taken.
        if verdict.reply is not None:
            self._reply(identity, verdict.reply)
        if verdict.cut:
            self._router.cut(identity)

    def _samples(self, session: Session, message: Samples, frame: bytes) -> None:
        samples, first = message.samples, message.first_seq
        count = len(samples)
        last = first + count - 1
        if not count or not 1 <= first <= last <= MAX_SEQUENCE or not sound_timestamps(message):
            self._counters.rejected.add(1, "bad")
            return
        self._counters.rows_received.add(count)
        if count > MAX_FRAME_ROWS:
            text = f"a message has at most {MAX_FRAME_ROWS} samples"
            self._reply(session.identity, Reject(RejectCode.TOO_BIG, text, retry=True))
            return
        if session.run.record.has_ended and last > session.run.acked_seq:
            self._reply(session.identity, Reject(RejectCode.CLOSED, "this run has ended", seq=session.run.acked_seq))
            return
        self._touched[session.identity] = session
        if last < session.next_seq:
            self._counters.rows_duplicate.add(count)
            return
        if first > session.next_seq:
            # Something before it was lost: the collector will notice the silence and begin again.
            self._counters.rejected.add(1, "gap")
            return
        if first < session.next_seq:
            self._counters.rows_duplicate.add(session.next_seq - first)
            samples = samples[session.next_seq - first :]
            first = session.next_seq
            frame = encode(Samples(first, samples))
        self._frames.append(StoredFrame(session.run, first, len(samples), frame, samples[-1].timestamp))
        session.next_seq = last + 1

    def _finish(self, session: Session, message: Finish) -> None:
        if session.run.record.closed_as_stale:
            text = "this run was closed as stale"
            self._reply(session.identity, Reject(RejectCode.CLOSED, text, seq=session.run.acked_seq))
            return
        self._touched[session.identity] = session
        if session.run.record.has_ended or message.last_seq > session.next_seq - 1:
            # A repetition is acknowledged again; one before the last row waits until the rows are here.
            return
        if message.last_seq < session.next_seq - 1 or not sound_finish(message):
            self._counters.rejected.add(1, "bad")
            return
        session.finish = message

    def _hello(self, identity: bytes, hello: Hello, owner: str) -> None:
        unfit = complaint(hello, self._limits)
        if unfit is not None:
            self._counters.rejected.add(1, unfit.reason)
            self._reply(identity, unfit.reject)
            return
        try:
            run = self._spool.greet(cleaned(hello), owner=owner, max_runs=self._limits.runs_of_client)
        except SupersededError as error:
            self._reply(identity, Reject(RejectCode.SUPERSEDED, str(error), seq=error.seq))
        except TooManyRunsError as error:
            self._counters.rejected.add(1, "runs-of-client")
            self._reply(identity, Reject(RejectCode.BUSY, str(error), retry=True))
        except RunClosedError as error:
            self._greet_after_end(identity, hello, owner, error)
        except SpoolError as error:
            self._note_full(error)
            self._reply(identity, Reject(RejectCode.BUSY, str(error), retry=True))
        else:
            self._open_session(identity, run)

    def _open_session(self, identity: bytes, run: Run) -> None:
        earlier = self._session_of_run.get(run.id)
        if earlier is not None and earlier.identity != identity:
            del self._sessions[earlier.identity]
            # The same collector on a new connection takes over from itself, and must not be told to stop.
            if earlier.incarnation != run.record.incarnation:
                error = SupersededError(run.record.superseded_seq.get(earlier.incarnation, 0))
                self._reply(earlier.identity, Reject(RejectCode.SUPERSEDED, str(error), seq=error.seq))
        elsewhere = self._sessions.pop(identity, None)
        if elsewhere is not None and elsewhere.run.id != run.id:
            del self._session_of_run[elsewhere.run.id]
        record = run.record
        if record.has_ended and record.closed_as_stale:
            self._session_of_run.pop(run.id, None)
            self._reply(identity, Reject(RejectCode.CLOSED, "this run was closed as stale", seq=run.acked_seq))
            return
        session = Session(identity, run)
        self._sessions[identity] = self._session_of_run[run.id] = session
        left_behind = self._left_behind.of(record.owner)
        self._reply(identity, Welcome(session.next_seq, record.run_id, run.last_timestamp, left_behind))
        if record.has_ended:
            self._reply(identity, acknowledgement(run))
        self._wake_run(run)

    def _greet_after_end(self, identity: bytes, hello: Hello, owner: str, closed: RunClosedError) -> None:
        """The collector that ended the run may not have heard so; everybody else needs a new run."""
        record = self._spool.ended_record(hello.run_key, owner=owner)
        if record is None or record.incarnation != hello.incarnation or record.state is not RunState.FINISHED:
            self._reply(identity, Reject(RejectCode.CLOSED, str(closed), seq=closed.seq))
            return
        self._reply(identity, Welcome(closed.seq + 1, record.run_id))
        self._reply(identity, Ack(closed.seq, finish=True))
        self._reply(identity, finished_message(record))

    def _commit(self) -> None:
        touched, self._touched = self._touched, {}
        frames, self._frames = self._frames, []
        finishes = [(session.run, session.finish) for session in touched.values() if session.finish is not None]
        if frames or finishes:
            began_at = self._clock.monotonic()
            try:
                self._counters.rows_acknowledged.add(self._spool.store(frames, finishes))
                self._counters.commit_s.add(self._clock.monotonic() - began_at)
            except SpoolError as error:
                self._note_full(error)
                self._refuse(touched, error)
                return
            if frames and self.refusal is not None:
                self._full_logged_at = self.refusal = None
                log.info("spool has room again")
        for session in touched.values():
            run = session.run
            lost = session.next_seq != run.acked_seq + 1
            session.forget_group()
            if lost:
                # The run has ended between the message and its transaction: the rows are not part of it.
                text = "this run has ended"
                self._reply(session.identity, Reject(RejectCode.CLOSED, text, seq=run.acked_seq))
                continue
            self._reply(session.identity, acknowledgement(run))
            if run.record.has_ended or self._fills_a_batch(run):
                self._wake_run(run)

    def _fills_a_batch(self, run: Run) -> bool:
        return run.open_rows >= self._policy.max_batch_rows or run.open_bytes >= self._policy.max_batch_bytes

    def _refuse(self, touched: dict[bytes, Session], error: SpoolError) -> None:
        """No row of the group is durable: forget what was counted on, and let the collectors hold on.

        An end whose rows are all here needs no room for rows: it is taken by itself.
        """
        text = "no room in the spool" if isinstance(error, SpoolFullError) else "the spool cannot be written"
        for session in touched.values():
            finish = session.finish
            session.forget_group()
            if finish is not None and finish.last_seq == session.run.acked_seq and self._store_finish(session, finish):
                continue
            self._reply(session.identity, Reject(RejectCode.BUSY, text, retry=True))

    def _store_finish(self, session: Session, finish: Finish) -> bool:
        try:
            self._spool.store([], [(session.run, finish)])
        except SpoolError as error:
            self._note_full(error)
            return False
        self._reply(session.identity, acknowledgement(session.run))
        self._wake_run(session.run)
        return True

    def _note_full(self, error: SpoolError) -> None:
        is_full = isinstance(error, SpoolFullError)
        self._counters.spool_failures.add(1, "full" if is_full else "unusable")
        now = self._clock.monotonic()
        self.refusal = Refusal(now, str(error))
        if self._full_logged_at is None or now - self._full_logged_at >= _FULL_LOG_INTERVAL_S:
            self._full_logged_at = now
            kind = "spool is full" if is_full else "spool cannot be written"
            log.error("%s, not acknowledging samples until that changes error=%s", kind, error)

    def _tell_news(self) -> None:
        while True:
            try:
                run_id, record = self._news.get_nowait()
            except queue.Empty:
                return
            session = self._session_of_run.get(run_id)
            if session is None:
                continue
            if not record.is_over:
                self._reply(session.identity, acknowledgement(session.run))
                continue
            del self._session_of_run[run_id]
            del self._sessions[session.identity]
            if record.state is RunState.FINISHED:
                self._reply(session.identity, finished_message(record))
            else:
                text = f"this run is {record.state}"
                self._reply(session.identity, Reject(RejectCode.CLOSED, text, seq=session.run.acked_seq))

    def _reply(self, identity: bytes, message: UploaderMessage) -> None:
        if isinstance(message, Reject):
            self._counters.rejected.add(1, message.code)
        if not self._router.send(identity, encode(message)):
            # Gone or not reading; a lost answer is asked for again.
            self._counters.answers_lost.add()
