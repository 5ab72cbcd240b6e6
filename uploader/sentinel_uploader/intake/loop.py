"""The conversation's far end: takes frames from collectors, makes them durable in groups, then acknowledges.

One thread owns the socket. Nothing that a peer sends is fatal: what is not a message is counted and dropped.
"""

import logging
import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from sentinel_protocol.common.clock import Clock
from sentinel_protocol.common.errors import BadMessageError
from sentinel_protocol.wire.messages import Finish, Hello, Ping, Reject, RejectCode, Samples, decode_from_collector
from sentinel_uploader.intake.answers import Answers
from sentinel_uploader.intake.backpressure import Fullness, Refusal
from sentinel_uploader.intake.handshake import Greeter
from sentinel_uploader.intake.rate_limiter import Admission, Limits, Verdict
from sentinel_uploader.intake.responses import acknowledgement, finished_message
from sentinel_uploader.intake.sessions import Session, Sessions
from sentinel_uploader.intake.spool_quota import Shares
from sentinel_uploader.intake.write_batch import Group
from sentinel_uploader.runs.lifecycle import RunState
from sentinel_uploader.runs.schedule import Policy
from sentinel_uploader.server.zmq_server import Arrival, Router
from sentinel_uploader.spool.open_run import OpenRun
from sentinel_uploader.spool.store import Spool
from sentinel_uploader.telemetry.counters import Counters

if TYPE_CHECKING:
    from sentinel_uploader.spool.run_record import RunRecord

log = logging.getLogger(__name__)

GROUP_FRAMES = 1000
"""Most frames that one transaction waits for."""
GROUP_BYTES = 16 << 20
_RECEIVE_FRAMES = 64
_LOOP_S = 1.0
LATE_S = 3.0
"""A loop that took longer was stopped or starved: collectors were not heard meanwhile."""
_RECOVER_S = 1.0


class Intake:
    """The socket's loop. `wake_run` is told of runs for which something may be due now.

    `name_of` says which client a public key belongs to, `None` when to none (any more). It is asked for each message.
    `known_clients` is how many clients there may be.
    """

    def __init__(
        self,
        *,
        router: Router,
        spool: Spool,
        clock: Clock,
        wake_run: Callable[[OpenRun], None],
        policy: Policy,
        counters: Counters,
        name_of: Callable[[bytes], str | None] = lambda _: None,
        limits: Limits | None = None,
        known_clients: Callable[[], int] = lambda: 0,
    ) -> None:
        limits = limits or Limits()
        self._admission = Admission(name_of=name_of, limits=limits, counters=counters)
        self._router = router
        self._clock = clock
        self._counters = counters
        self._sessions = Sessions()
        self._answers = Answers(router, counters)
        self._fullness = Fullness(clock, counters)
        shares = Shares(
            spool=spool, share=limits.spool_share, known_clients=known_clients, clock=clock, counters=counters
        )
        self._group = Group(
            spool=spool,
            answers=self._answers,
            fullness=self._fullness,
            clock=clock,
            counters=counters,
            policy=policy,
            limits=limits,
            shares=shares,
            wake_run=wake_run,
        )
        self._greeter = Greeter(
            spool=spool,
            sessions=self._sessions,
            answers=self._answers,
            fullness=self._fullness,
            clock=clock,
            counters=counters,
            limits=limits,
            shares=shares,
            wake_run=wake_run,
        )
        self._news: queue.SimpleQueue[tuple[int, RunRecord]] = queue.SimpleQueue()
        now = clock.monotonic()
        self.looped_at = now
        self.listening_since = now
        """Since when collectors have been heard without a break: silence counts from there."""
        self.heard_at = now
        """When the last frame came."""

    @property
    def refusal(self) -> Refusal | None:
        """Why the spool takes no rows; `None` when it does."""
        return self._fullness.refusal

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
        self._group.commit()
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
        self._group.forget()
        for session in self._sessions:
            session.forget_group()

    def tell(self, run: OpenRun) -> None:
        """Tell the run's collector how it ended, or what keeps it from that; may be called from any thread."""
        self._news.put((run.id, run.record))
        self._router.wake()

    def has_sessions(self) -> bool:
        """Whether a collector of an open run is or was connected."""
        return bool(self._sessions)

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
            self._turn_down(identity, owner, verdict)
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
            self._group.commit()
            self._greeter.greet(identity, message, owner)
            return
        session = self._session_of(identity, owner)
        if session is None:
            self._answers.say(identity, Reject(RejectCode.HELLO_FIRST, "say hello first", retry=True))
            return
        row_time = message.samples[-1].timestamp if isinstance(message, Samples) and message.samples else None
        self._counters.clients.saw(session.run.record.owner, self._clock.now(), row_time)
        match message:
            case Samples():
                self._group.add_samples(session, message, frame)
            case Finish():
                self._group.add_finish(session, message)
            case Ping():
                pass

    def _session_of(self, identity: bytes, owner: str) -> Session | None:
        """Return the session of whoever speaks; its run is not silent."""
        session = self._sessions.of(identity)
        if session is None or session.run.record.owner != owner:
            return None
        session.run.last_seen_at = self._clock.monotonic()
        return session

    def _turn_down(self, identity: bytes, owner: str, verdict: Verdict) -> None:
        # A client that says too much may be one run that leaves nothing for another: neither is taken for gone.
        self._session_of(identity, owner)
        # Whatever the session has in this group is stored all the same; what comes behind the gap is not taken.
        if verdict.reply is not None:
            self._answers.say(identity, verdict.reply)
        if verdict.cut:
            self._router.cut(identity)

    def _tell_news(self) -> None:
        while True:
            try:
                run_id, record = self._news.get_nowait()
            except queue.Empty:
                return
            session = self._sessions.of_run(run_id)
            if session is None:
                continue
            if not record.is_over:
                self._answers.say(session.identity, acknowledgement(session.run))
                continue
            self._sessions.forget(session)
            if record.state is RunState.FINISHED:
                self._answers.say(session.identity, finished_message(record))
            else:
                text = f"this run is {record.state}"
                self._answers.say(session.identity, Reject(RejectCode.CLOSED, text, seq=session.run.durable_seq))
