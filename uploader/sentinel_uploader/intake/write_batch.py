"""Rows and ends of many collectors that become durable in one transaction, and are acknowledged then."""

from collections.abc import Callable

from sentinel_protocol.common.clock import Clock
from sentinel_protocol.wire.messages import MAX_SEQUENCE, Finish, Reject, RejectCode, Samples, encode
from sentinel_uploader.intake.answers import Answers
from sentinel_uploader.intake.backpressure import Fullness
from sentinel_uploader.intake.rate_limiter import Limits
from sentinel_uploader.intake.responses import acknowledgement
from sentinel_uploader.intake.sessions import Session
from sentinel_uploader.intake.spool_quota import Shares
from sentinel_uploader.intake.validation import sound_finish, sound_timestamps
from sentinel_uploader.runs.schedule import Policy
from sentinel_uploader.spool.errors import SpoolError, SpoolFullError
from sentinel_uploader.spool.open_run import OpenRun
from sentinel_uploader.spool.store import Spool
from sentinel_uploader.spool.types import PendingFrame, QuotaExceededError
from sentinel_uploader.telemetry.counters import Counters


class Group:
    """Gathers what is sound; belongs to the intake's thread. `wake_run` is told of runs for which something may be due.

    A session whose rows were not taken hears so, or begins again after a silence: what follows a gap is not taken.
    """

    def __init__(
        self,
        *,
        spool: Spool,
        answers: Answers,
        fullness: Fullness,
        clock: Clock,
        counters: Counters,
        policy: Policy,
        limits: Limits,
        shares: Shares,
        wake_run: Callable[[OpenRun], None],
    ) -> None:
        self._spool = spool
        self._answers = answers
        self._fullness = fullness
        self._clock = clock
        self._counters = counters
        self._policy = policy
        self._limits = limits
        self._shares = shares
        self._wake_run = wake_run
        self._frames: list[PendingFrame] = []
        self._touched: dict[bytes, Session] = {}

    def forget(self) -> None:
        """Drop what is gathered."""
        self._frames = []
        self._touched = {}
        self._shares.begin()

    def add_samples(self, session: Session, message: Samples, frame: bytes) -> None:
        """Take the rows of a message (encoded in `frame`) that are new and follow upon those that are here."""
        samples, first = message.samples, message.first_seq
        count = len(samples)
        last = first + count - 1
        if not count or not 1 <= first <= last <= MAX_SEQUENCE or not sound_timestamps(message):
            self._counters.rejected.add(1, "bad")
            return
        self._counters.rows_received.add(count)
        if count > self._limits.rows_of_message:
            self._counters.turn_down(session.run.record.owner, "message-rows")
            text = f"a message has at most {self._limits.rows_of_message} samples"
            self._answers.say(session.identity, Reject(RejectCode.TOO_BIG, text, retry=True))
            return
        if session.run.record.has_ended and last > session.run.durable_seq:
            text = "this run has ended"
            self._answers.say(session.identity, Reject(RejectCode.CLOSED, text, seq=session.run.durable_seq))
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
        if not self._shares.admits(session.run.record.owner, len(frame)):
            self._answers.say(session.identity, Reject(RejectCode.BUSY, str(QuotaExceededError()), retry=True))
            return
        self._frames.append(PendingFrame(session.run, first, len(samples), frame, samples[-1].timestamp))
        session.next_seq = last + 1

    def add_finish(self, session: Session, message: Finish) -> None:
        """Take the run's end, if all its rows are here or in the group."""
        if session.run.record.closed_as_stale:
            text = "this run was closed as stale"
            self._answers.say(session.identity, Reject(RejectCode.CLOSED, text, seq=session.run.durable_seq))
            return
        self._touched[session.identity] = session
        if session.run.record.has_ended or message.last_seq > session.next_seq - 1:
            # A repetition is acknowledged again; one before the last row waits until the rows are here.
            return
        if message.last_seq < session.next_seq - 1 or not sound_finish(message):
            self._counters.rejected.add(1, "bad")
            return
        session.finish = message

    def commit(self) -> None:
        """Make the group durable and acknowledge it, or tell its collectors to hold on."""
        touched, self._touched = self._touched, {}
        frames, self._frames = self._frames, []
        self._shares.begin()
        finishes = [(session.run, session.finish) for session in touched.values() if session.finish is not None]
        if frames or finishes:
            began_at = self._clock.monotonic()
            try:
                self._counters.rows_acknowledged.add(self._spool.append(frames, finishes))
                self._counters.commit_s.add(self._clock.monotonic() - began_at)
            except SpoolError as error:
                self._fullness.note(error)
                self._refuse(touched, error)
                return
            if frames:
                self._fullness.is_over()
        for session in touched.values():
            self._acknowledge(session)

    def _acknowledge(self, session: Session) -> None:
        run = session.run
        lost = session.next_seq != run.durable_seq + 1
        session.forget_group()
        if lost:
            # The run has ended between the message and its transaction: the rows are not part of it.
            text = "this run has ended"
            self._answers.say(session.identity, Reject(RejectCode.CLOSED, text, seq=run.durable_seq))
            return
        self._answers.say(session.identity, acknowledgement(run))
        if run.record.has_ended or self._fills_a_batch(run):
            self._wake_run(run)

    def _fills_a_batch(self, run: OpenRun) -> bool:
        return run.unbatched_rows >= self._policy.max_batch_rows or run.unbatched_bytes >= self._policy.max_batch_bytes

    def _refuse(self, touched: dict[bytes, Session], error: SpoolError) -> None:
        """No row of the group is durable: forget what was counted on, and let the collectors hold on.

        An end whose rows are all here needs no room for rows: it is taken by itself.
        """
        text = "no room in the spool" if isinstance(error, SpoolFullError) else "the spool cannot be written"
        for session in touched.values():
            finish = session.finish
            session.forget_group()
            if (
                finish is not None
                and finish.last_seq == session.run.durable_seq
                and self._store_finish(session, finish)
            ):
                continue
            self._answers.say(session.identity, Reject(RejectCode.BUSY, text, retry=True))

    def _store_finish(self, session: Session, finish: Finish) -> bool:
        try:
            self._spool.append([], [(session.run, finish)])
        except SpoolError as error:
            self._fullness.note(error)
            return False
        self._answers.say(session.identity, acknowledgement(session.run))
        self._wake_run(session.run)
        return True
