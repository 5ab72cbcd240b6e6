"""The intake loop: receives messages from collectors, makes them durable in batches, then acknowledges them.

One thread owns the socket. Nothing that a peer sends is fatal: an invalid message is counted and dropped.
"""

import logging
import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from sentinel_protocol.common.clock import Clock
from sentinel_protocol.common.errors import InvalidMessageError
from sentinel_protocol.wire.messages import Finish, Hello, Ping, RejectCode, Samples, decode_from_collector
from sentinel_uploader.intake.backpressure import SpoolAvailability
from sentinel_uploader.intake.commit_window import CommitWindow
from sentinel_uploader.intake.handshake import HandshakeHandler
from sentinel_uploader.intake.rate_limiter import AdmissionDecision, RateLimiter
from sentinel_uploader.intake.responses import ResponseSender, build_finished
from sentinel_uploader.intake.sessions import CollectorSession, Sessions
from sentinel_uploader.intake.spool_quota import SpoolQuota
from sentinel_uploader.intake.write_batch import WriteBatch
from sentinel_uploader.limits import ClientLimits
from sentinel_uploader.runs.lifecycle import RunState
from sentinel_uploader.runs.schedule import Policy
from sentinel_uploader.server.zmq_server import ReceivedMessage, ZmqServer
from sentinel_uploader.spool.open_run import OpenRun
from sentinel_uploader.spool.store import Spool
from sentinel_uploader.telemetry.counters import Counters

if TYPE_CHECKING:
    from sentinel_uploader.spool.run_record import RunRecord

log = logging.getLogger(__name__)

MAX_BATCH_FRAMES = 1000
"""A transaction contains at most so many messages."""
MAX_BATCH_BYTES = 16 << 20
_RECEIVE_FRAMES = 64
_POLL_TIMEOUT_S = 1.0
STALL_THRESHOLD_S = 3.0
"""A loop that took longer was suspended or starved: collectors could not be heard meanwhile."""
_ERROR_PAUSE_S = 1.0


class Intake:
    """The socket's loop. `wake_run` is called for runs that may have a step due now. `blocked_by` returns the failing
    destination that a run waits for, or an empty string.

    `name_of` returns the client that a public key belongs to, `None` for a key that is not allowed (any more). It is
    called for each message. `known_clients` returns the number of clients on the allow list.
    """

    def __init__(
        self,
        *,
        server: ZmqServer,
        spool: Spool,
        clock: Clock,
        wake_run: Callable[[OpenRun], None],
        blocked_by: Callable[[OpenRun], str] = lambda _: "",
        policy: Policy,
        counters: Counters,
        name_of: Callable[[bytes], str | None] = lambda _: None,
        limits: ClientLimits | None = None,
        known_clients: Callable[[], int] = lambda: 0,
    ) -> None:
        limits = limits or ClientLimits()
        self._rate_limiter = RateLimiter(name_of=name_of, limits=limits, counters=counters)
        self._server = server
        self._spool = spool
        self._clock = clock
        self._counters = counters
        self._sessions = Sessions()
        self._responses = ResponseSender(server, counters, blocked_by)
        self.availability = SpoolAvailability(clock, counters)
        self._commit_window = CommitWindow(clock)
        quota = SpoolQuota(
            spool=spool, share=limits.client_spool_share, known_clients=known_clients, clock=clock, counters=counters
        )
        self._write_batch = WriteBatch(
            spool=spool,
            responses=self._responses,
            availability=self.availability,
            clock=clock,
            counters=counters,
            policy=policy,
            limits=limits,
            quota=quota,
            wake_run=wake_run,
        )
        self._handshake = HandshakeHandler(
            spool=spool,
            sessions=self._sessions,
            responses=self._responses,
            availability=self.availability,
            clock=clock,
            counters=counters,
            limits=limits,
            quota=quota,
            wake_run=wake_run,
        )
        self._notifications: queue.SimpleQueue[tuple[int, RunRecord]] = queue.SimpleQueue()
        now = clock.monotonic()
        self.last_loop_at = now
        self.receiving_since = now
        """Since when collectors could be heard without a break. A run's silence counts from here at the earliest."""
        self.last_message_at = now
        """When the last message arrived."""

    def is_stalled(self, now: float) -> bool:
        """Whether the loop is late: collectors may have spoken without being heard."""
        return now - self.last_loop_at > STALL_THRESHOLD_S

    def run(self, stop: threading.Event) -> None:
        """Serve until the event is set; `ZmqServer.wake` makes the loop check the event at once."""
        while not stop.is_set():
            try:
                self.poll_once(_POLL_TIMEOUT_S)
            except Exception:
                # A defect must not stop the intake. Collectors send again what was not acknowledged.
                log.exception("intake failed unexpectedly")
                self._discard_write_batch()
                self._clock.wait_for(stop, _ERROR_PAUSE_S)
        self._send_notifications()

    def poll_once(self, timeout_s: float) -> None:
        """Serve one batch: receive, store, acknowledge."""
        received = self._receive(timeout_s)
        began_at = self._clock.monotonic()
        if began_at - self.last_loop_at > STALL_THRESHOLD_S + timeout_s:
            self.receiving_since = began_at
        self._commit_window.open(began_at)
        self._handle_messages(received)
        while self._commit_window.wait(self._write_batch.rows):
            received = self._receive(0.0)
            if not received:
                break
            self._handle_messages(received)
        if self._write_batch.commit():
            self._commit_window.on_committed()
        self._send_notifications()
        now = self._clock.monotonic()
        if now - began_at > STALL_THRESHOLD_S:
            self.receiving_since = now
        # Set last: who reads it knows that everything received before is stored.
        self.last_loop_at = now

    def _handle_messages(self, received: list[ReceivedMessage]) -> None:
        if received:
            self.last_message_at = self._clock.monotonic()
            self._counters.messages.add(len(received))
        for arrival in received:
            self._handle_message(arrival)

    def _receive(self, timeout_s: float) -> list[ReceivedMessage]:
        """Wait for messages and return those that are there, up to the size of one batch."""
        received: list[ReceivedMessage] = []
        size = taken = 0
        # Invalid messages count too: a flood of them must not delay the answers to others.
        while taken < MAX_BATCH_FRAMES and size < MAX_BATCH_BYTES:
            some, malformed = self._server.receive(limit=_RECEIVE_FRAMES, timeout_s=0.0 if taken else timeout_s)
            taken += len(some) + malformed
            if malformed:
                self._counters.messages.add(malformed)
                self._counters.rejected.add(malformed, "malformed")
            received += some
            size += sum(len(arrival.frame) for arrival in some)
            if len(some) + malformed < _RECEIVE_FRAMES:
                break
        return received

    def _discard_write_batch(self) -> None:
        self._write_batch.clear()
        for session in self._sessions:
            session.reset_pending()

    def notify(self, run: OpenRun) -> None:
        """Tell the run's collector that the run has ended, or what delays its delivery. Thread-safe."""
        self._notifications.put((run.id, run.record))
        self._server.wake()

    def has_sessions(self) -> bool:
        """Whether a collector of an open run is or was connected."""
        return bool(self._sessions)

    def _handle_message(self, received: ReceivedMessage) -> None:
        identity, frame = received.identity, received.frame
        owner = self._rate_limiter.owner_of(received)
        if owner is None:
            # Revoked since it connected. It gets no answer.
            self._counters.rejected.add(1, "key")
            self._server.disconnect(identity)
            return
        decision = self._rate_limiter.check(received, owner, self._clock.monotonic())
        if not decision.is_accepted:
            self._reject(identity, owner, decision)
            return
        try:
            message = decode_from_collector(frame)
        except InvalidMessageError:
            message = None
        self._rate_limiter.consume(received, owner, message)
        if message is None:
            self._counters.rejected.add(1, "bad")
            return
        if isinstance(message, Hello):
            self._write_batch.commit()
            self._handshake.handle_hello(identity, message, owner)
            return
        session = self._active_session(identity, owner)
        if session is None:
            self._responses.reject(identity, RejectCode.HELLO_FIRST, "say hello first", retry=True)
            return
        row_time = message.samples[-1].timestamp if isinstance(message, Samples) and message.samples else None
        self._counters.clients.record(session.run.record.owner, self._clock.now(), row_time)
        match message:
            case Samples():
                self._write_batch.add_samples(session, message, frame)
            case Finish():
                self._write_batch.add_finish(session, message)
            case Ping():
                pass

    def _active_session(self, identity: bytes, owner: str) -> CollectorSession | None:
        """Return the session of a connection, and mark its run as active; `None` when there is none for this owner."""
        session = self._sessions.by_connection(identity)
        if session is None or session.run.record.owner != owner:
            return None
        self._spool.mark_seen(session.run)
        return session

    def _reject(self, identity: bytes, owner: str, decision: AdmissionDecision) -> None:
        # One run of a client may use up the rate of all its runs. None of them is silent, so none becomes stale.
        self._active_session(identity, owner)
        if decision.reply is not None:
            self._responses.send(identity, decision.reply)
        if decision.disconnect:
            self._server.disconnect(identity)

    def _send_notifications(self) -> None:
        while True:
            try:
                run_id, record = self._notifications.get_nowait()
            except queue.Empty:
                return
            session = self._sessions.by_run(run_id)
            if session is None:
                continue
            if not record.is_over:
                self._responses.acknowledge(session.identity, session.run)
                continue
            self._sessions.remove(session)
            if record.state is RunState.FINISHED:
                self._responses.send(session.identity, build_finished(record))
            else:
                text = f"this run is {record.state}"
                self._responses.reject(session.identity, RejectCode.CLOSED, text, seq=session.run.durable_seq)
