"""Group commit: rows and ends of many runs become durable in one transaction, and are acknowledged then."""

from collections.abc import Callable
from dataclasses import dataclass

from sentinel_protocol.common.clock import Clock
from sentinel_protocol.wire.messages import MAX_SEQUENCE, Finish, RejectCode, Samples, encode
from sentinel_uploader.intake.backpressure import SpoolAvailability
from sentinel_uploader.intake.responses import ResponseSender
from sentinel_uploader.intake.sessions import CollectorSession
from sentinel_uploader.intake.spool_quota import SpoolQuota
from sentinel_uploader.intake.validation import has_valid_timestamps, is_valid_finish
from sentinel_uploader.limits import ClientLimits
from sentinel_uploader.runs.schedule import Policy
from sentinel_uploader.spool.errors import SpoolError, SpoolFullError
from sentinel_uploader.spool.open_run import OpenRun
from sentinel_uploader.spool.store import Spool
from sentinel_uploader.spool.types import PendingFrame, QuotaExceededError
from sentinel_uploader.telemetry.counters import Counters


@dataclass(kw_only=True)
class WriteBatch:
    """Collects valid messages; belongs to the intake's thread. `wake_run` is called for runs that may have a step due.

    Rows behind a gap are dropped. Their collector is told, or says `Hello` again when it gets no acknowledgement.
    """

    spool: Spool
    responses: ResponseSender
    availability: SpoolAvailability
    clock: Clock
    counters: Counters
    policy: Policy
    limits: ClientLimits
    quota: SpoolQuota
    wake_run: Callable[[OpenRun], None]

    def __post_init__(self) -> None:
        self._frames: list[PendingFrame] = []
        self.rows = 0
        """Rows that wait for the commit."""
        self._sessions: dict[bytes, CollectorSession] = {}

    def clear(self) -> None:
        """Drop what was collected."""
        self._frames = []
        self.rows = 0
        self._sessions = {}
        self.quota.reset()

    def add_samples(self, session: CollectorSession, message: Samples, frame: bytes) -> None:
        """Add the new rows of a message (encoded in `frame`), if they continue the run without a gap."""
        samples, first = message.samples, message.first_seq
        count = len(samples)
        last = first + count - 1
        if not count or not 1 <= first <= last <= MAX_SEQUENCE or not has_valid_timestamps(message):
            self.counters.rejected.add(1, "bad")
            return
        self.counters.rows_received.add(count)
        if count > self.limits.max_message_rows:
            self.counters.count_rejection(session.run.record.owner, "message-rows")
            text = f"a message has at most {self.limits.max_message_rows} samples"
            self.responses.reject(session.identity, RejectCode.TOO_BIG, text, retry=True)
            return
        if session.run.record.has_ended and last > session.run.durable_seq:
            text = "this run has ended"
            self.responses.reject(session.identity, RejectCode.CLOSED, text, seq=session.run.durable_seq)
            return
        self._sessions[session.identity] = session
        if last < session.next_seq:
            self.counters.rows_duplicate.add(count)
            return
        if first > session.next_seq:
            # An earlier message was lost. The collector gets no acknowledgement and says `Hello` again.
            self.counters.rejected.add(1, "gap")
            return
        if first < session.next_seq:
            self.counters.rows_duplicate.add(session.next_seq - first)
            samples = samples[session.next_seq - first :]
            first = session.next_seq
            frame = encode(Samples(first, samples))
        if not self.quota.try_reserve(session.run.record.owner, len(frame)):
            self.responses.reject(session.identity, RejectCode.BUSY, str(QuotaExceededError()), retry=True)
            return
        self._frames.append(PendingFrame(session.run, first, len(samples), frame, samples[-1].timestamp))
        self.rows += len(samples)
        session.next_seq = last + 1

    def add_finish(self, session: CollectorSession, message: Finish) -> None:
        """Add the run's end, if all its rows are in the spool or in this batch."""
        if session.run.record.closed_as_stale:
            text = "this run was closed as stale"
            self.responses.reject(session.identity, RejectCode.CLOSED, text, seq=session.run.durable_seq)
            return
        self._sessions[session.identity] = session
        if session.run.record.has_ended or message.last_seq > session.next_seq - 1:
            # A repeated `Finish` is acknowledged again. One whose rows are missing is dropped, and sent again later.
            return
        if message.last_seq < session.next_seq - 1 or not is_valid_finish(message):
            self.counters.rejected.add(1, "bad")
            return
        session.finish = message

    def commit(self) -> bool:
        """Make the batch durable and acknowledge it, or tell its collectors to wait; False when there was nothing."""
        sessions, frames = self._sessions, self._frames
        self.clear()
        finishes = [(session.run, session.finish) for session in sessions.values() if session.finish is not None]
        if frames or finishes:
            began_at = self.clock.monotonic()
            try:
                self.counters.rows_acknowledged.add(self.spool.append(frames, finishes))
                self.counters.commit_s.add(self.clock.monotonic() - began_at)
            except SpoolError as error:
                self.availability.record_failure(error)
                self._reject_all(sessions, error)
                return True
            if frames:
                self.availability.record_success()
        for session in sessions.values():
            self._acknowledge(session)
        return bool(frames or finishes)

    def _acknowledge(self, session: CollectorSession) -> None:
        run = session.run
        lost = session.next_seq != run.durable_seq + 1
        session.reset_pending()
        if lost:
            # The run ended between the message and this transaction, so the rows do not belong to it.
            self.responses.reject(session.identity, RejectCode.CLOSED, "this run has ended", seq=run.durable_seq)
            return
        self.responses.acknowledge(session.identity, run)
        if run.record.has_ended or self._is_batch_full(run):
            self.wake_run(run)

    def _is_batch_full(self, run: OpenRun) -> bool:
        return run.unbatched_rows >= self.policy.max_batch_rows or run.unbatched_bytes >= self.policy.max_batch_bytes

    def _reject_all(self, sessions: dict[bytes, CollectorSession], error: SpoolError) -> None:
        """Tell the collectors to wait: no row of the batch is durable.

        An end whose rows are all durable already is stored by itself, because it needs no space for rows.
        """
        text = "no room in the spool" if isinstance(error, SpoolFullError) else "the spool cannot be written"
        for session in sessions.values():
            finish = session.finish
            session.reset_pending()
            if (
                finish is not None
                and finish.last_seq == session.run.durable_seq
                and self._store_finish(session, finish)
            ):
                continue
            self.responses.reject(session.identity, RejectCode.BUSY, text, retry=True)

    def _store_finish(self, session: CollectorSession, finish: Finish) -> bool:
        try:
            self.spool.append([], [(session.run, finish)])
        except SpoolError as error:
            self.availability.record_failure(error)
            return False
        self.responses.acknowledge(session.identity, session.run)
        self.wake_run(session.run)
        return True
