"""The rows' way out: backlog, link and socket of one run, the agent at the other end, and the run's file."""

import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from sentinel_collector.console import WAIT, Voice, counted
from sentinel_collector.delivery.failover import Failover, continued_part, continuing
from sentinel_collector.delivery.overflow_file.file import SpillFile
from sentinel_collector.delivery.overflow_file.header import SpillError, SpillHead, hello_of
from sentinel_collector.delivery.send_queue import RETRY_SPILL_S, Backlog
from sentinel_collector.delivery.state_dir import (
    create_run_file,
    has_ended_file,
    has_other_file,
    keep_rows,
    leave_run_file,
    open_run_file,
    take_over_file,
)
from sentinel_collector.delivery.undelivered import kept_line, lost_line, reason
from sentinel_collector.delivery.uploader_client import End, Link
from sentinel_collector.run_facts import RunFacts
from sentinel_collector.run_key import next_run_key
from sentinel_protocol.common.clock import Clock
from sentinel_protocol.common.endpoints import Address
from sentinel_protocol.common.errors import SentinelStreamError
from sentinel_protocol.wire.messages import PROTOCOL_VERSION, Finish, Finished, Hello, Welcome, encode

if TYPE_CHECKING:
    from sentinel_collector.delivery.local_uploader import AgentStarter
    from sentinel_protocol.wire.curve_keys import ClientCurveKeys

TOUCH_S = 3600.0
"""How often the file of a run shows that its collector lives: one that has not been written for long is removed."""
_TRIES_TO_TAKE_OVER = 10
_TAKE_OVER_S = 0.1


class Delivery:
    """One run's rows, from the sampler to an uploader's acknowledgement; not thread-safe.

    `is_named` says that somebody chose `run_key`. `continued` says that an earlier collector of the same run left
    its file here.
    """

    def __init__(
        self,
        *,
        run_key: str,
        incarnation: str,
        addresses: Sequence[Address],
        agent: "AgentStarter | None",
        state_dir: str,
        facts: RunFacts,
        clock: Clock,
        voice: Voice,
        on_welcome: Callable[[Welcome], None],
        is_named: bool = False,
        keys: "Mapping[str, ClientCurveKeys] | None" = None,
        failover_after_s: float = 300.0,
    ) -> None:
        # The run's file keeps the name of the key that was asked for, also when the run goes on under another: it is
        # where a collector that is started again looks.
        self._asked_key = self.run_key = run_key
        self._incarnation = incarnation
        self._failover = Failover(addresses, keys or {}, after_s=failover_after_s)
        self._agent = agent
        self._state_dir = state_dir
        self._facts = facts
        self._clock = clock
        self._voice = voice
        self._on_welcome = on_welcome
        self._is_named = is_named
        self._was_welcomed = False
        self.continued = False
        recovered = self._claim()
        self.last_row = None if recovered is None else recovered.last_row
        self._backlog = Backlog(
            open_file=lambda: create_run_file(state_dir, self._asked_key),
            head=self._head,
            warn=voice.warn,
            recovered=recovered,
            is_trouble_told=recovered is None,
        )
        self._touched_at = clock.monotonic()
        self._finish: Finish | None = None
        self._move_not_before = 0.0
        self._dealer = self._failover.connect()
        self._link = self._open_link()

    @property
    def run_id(self) -> str:
        """The run's id at the backend, empty until it is known."""
        return self._link.run_id

    @property
    def finished(self) -> Finished | None:
        """What the backend said of the delivered run."""
        return self._link.finished

    @property
    def is_durable(self) -> bool:
        """Whether the uploader holds everything, the end included."""
        return self._link.settled and self._link.end is None

    @property
    def trouble(self) -> str:
        """What keeps the uploader from delivering the run, empty when it knows of nothing."""
        return self._link.trouble

    @property
    def is_parked(self) -> bool:
        """Whether the uploader has set the run aside until a person has looked at it."""
        return self._link.is_parked

    @property
    def is_superseded(self) -> bool:
        """Whether a newer collector has taken the run over."""
        return self._link.end is End.SUPERSEDED

    @property
    def is_over(self) -> bool:
        """Whether nothing more can be said."""
        return self._link.end is not None or self._link.finished is not None

    @property
    def path(self) -> str | None:
        """Path of the run's file, when there is one."""
        return self._backlog.path

    @property
    def undelivered_rows(self) -> int:
        """Rows that no uploader has acknowledged."""
        return self._backlog.rows

    def add(self, row: bytes) -> None:
        """Take the newest row and send what can be sent."""
        self._backlog.append(row, self._clock.monotonic())
        self.pump()

    def pump(self) -> None:
        """Read what has come, send what is due, write to disk what has waited for too long."""
        now = self._clock.monotonic()
        self._link.pump()
        self._look_for_another(now)
        if not self._link.welcomed and self._agent is not None:
            self._agent.ensure(now)
        self._backlog.spill_when_due(now)
        if now - self._touched_at >= TOUCH_S:
            self._touched_at = now
            self._backlog.touch()

    def due_in(self) -> float:
        """Seconds until `pump` wants to be called again."""
        return self._link.due_in()

    def wait(self, timeout_s: float) -> None:
        """Wait for an answer for at most so long, and take it in."""
        self._dealer.poll(timeout_s)
        self.pump()

    def facts_changed(self) -> None:
        """Tell the uploader what discovery has found."""
        self._link.greet_again()
        self._backlog.head_changed()

    def finish(self, finish: Finish) -> None:
        """The run is over; `finish` goes out behind the last row."""
        self._finish = finish
        self._link.finish(finish)
        self.pump()

    def close(self, finish: Finish | None, also_in: str = "") -> None:
        """End: remove the run's file when all is delivered, else keep all in it; `also_in`: a file with all rows."""
        backlog = self._backlog
        try:
            if self.is_durable:
                backlog.discard_file()
            elif self._link.end is not None:
                self._keep_aside()
            elif backlog.keep(finish, self._clock.monotonic()):
                self._voice.error(kept_line(self._reason(), backlog.rows, backlog.path))
            else:
                self._voice.error(lost_line(self._reason(), backlog.memory_rows, self._state_dir, also_in))
        except (OSError, SentinelStreamError) as error:
            self._voice.error(f"{backlog.path or self._state_dir}: {error}")
        finally:
            if backlog.dropped_rows:
                self._voice.error(
                    f"{counted(backlog.dropped_rows, 'sample', ('was', 'were'))} dropped: there was no room"
                )
            backlog.close()
            self._failover.close()
            self._dealer.close()

    @property
    def is_hopeless(self) -> bool:
        """Whether this user's own uploader cannot start, so that nobody will answer."""
        return self._agent is not None and not self._link.welcomed and self._agent.is_hopeless

    def can_leave(self) -> bool:
        """Whether waiting is of no use: nobody listens at the address, none has answered, and the file has all rows.

        One that has answered before is likely to be back soon, one of this user's own is on its way.
        """
        if self._agent is not None or self._link.has_answer or not self._dealer.finds_nobody:
            return False
        return self._backlog.spill(self._clock.monotonic())

    def agent_complaint(self) -> str:
        """Return what the agent said last, for when it does not answer."""
        return "" if self._agent is None else self._agent.last_words()

    def _reason(self) -> str:
        link, url = self._link, self._failover.address.url
        return reason(url, is_own=self._agent is not None, has_answer=link.has_answer, refusal=link.refusal)

    def _claim(self) -> SpillFile | None:
        """Open the run's file; without one everything goes on in memory."""
        try:
            spill = self._open_own()
            if spill.finish is not None:
                # That run has ended and waits to be delivered; this one is another.
                spill.close()
                self.run_key = self._another_key()
                spill = create_run_file(self._state_dir, self._asked_key)
            elif spill.head is None and has_ended_file(self._state_dir, self._asked_key):
                # The same, and somebody delivers it at this moment: as its collector we would stop that.
                self.run_key = self._another_key()
            elif has_other_file(self._state_dir, self._asked_key, spill.path):
                self.continued = True
                if spill.head is None:
                    spill = self._wait_for_file(spill)
        except (OSError, SentinelStreamError) as error:
            self._voice.warn(f"no place for undelivered samples in {self._state_dir}, keeping them in memory: {error}")
            return None
        if spill.head is not None:
            self.continued = True
            # The run may have been closed and gone on under another key.
            self.run_key = spill.head.run_key
            self._failover.keep_to(spill.head.destination)
            # Its uploader may not have heard from the collector before of which part the run is the continuation.
            with contextlib.suppress(SpillError):
                self._facts.metadata = continuing(self._facts.metadata, continued_part(hello_of(spill.head)))
        if spill.set_aside is not None:
            self._voice.error(f"{spill.path} was damaged; what could not be read of it is in {spill.set_aside}")
        try:
            spill.write_head(self._head())
        except OSError as error:
            self._voice.warn(f"cannot write to {spill.path}: {error.strerror}")
        return spill

    def _open_own(self) -> SpillFile:
        try:
            return open_run_file(self._state_dir, self._asked_key)
        except SpillError as error:
            self._voice.error(f"cannot continue the run: {error}")
            return create_run_file(self._state_dir, self._asked_key)

    def _wait_for_file(self, own: SpillFile) -> SpillFile:
        """Return the run's file that another collector delivers: it lets go of that when it sees ours.

        A living collector of the run does not. Then it is ours that is used, and the other one gives way to us.
        """
        never = threading.Event()
        for _ in range(_TRIES_TO_TAKE_OVER):
            with contextlib.suppress(SpillError):
                other = take_over_file(self._state_dir, self._asked_key, own.path)
                if other is not None:
                    own.unlink()
                    own.close()
                    return other
            self._clock.wait_for(never, _TAKE_OVER_S)
        return own

    def _another_key(self) -> str:
        return next_run_key(self.run_key, os.urandom(6).hex())

    def _head(self) -> SpillHead:
        return SpillHead(
            run_key=self.run_key,
            incarnation=self._incarnation,
            destination=self._failover.address.url,
            hello=encode(self._hello(0)),
        )

    def _hello(self, oldest_seq: int) -> Hello:
        facts = self._facts
        return Hello(
            PROTOCOL_VERSION,
            self.run_key,
            self._incarnation,
            facts.interval_s,
            metadata=facts.metadata,
            host=facts.host,
            cloud=facts.cloud,
            first_available_seq=oldest_seq,
            cloud_pending=facts.cloud_pending,
        )

    def _welcomed(self, welcome: Welcome) -> None:
        self._was_welcomed = True
        self._on_welcome(welcome)

    def _start_new_run(self) -> bool:
        """The run was closed without us: what is not in it goes into another, with all that follows."""
        ended_key, self.run_key = self.run_key, self._another_key()
        if self._was_welcomed or self.continued:
            rest = f" with {counted(self._backlog.rows, 'sample')}" if self._backlog.rows else ""
            self._voice.warn(f"the run has ended at the uploader; going on as a new run{rest}")
        elif self._is_named:
            self._voice.warn(f"the run {ended_key!r} has ended before; this is a new one")
        # A key of our own making that was used before, as the host's of one boot is, is nobody's concern.
        self._backlog.start_new_run()
        return True

    def _open_link(self) -> Link:
        return Link(
            dealer=self._dealer,
            backlog=self._backlog,
            hello=self._hello,
            on_welcome=self._welcomed,
            on_closed=self._start_new_run,
            warn=self._voice.warn,
            clock=self._clock,
            peer="the uploader" if self._agent is None else "this user's uploader",
        )

    def _look_for_another(self, now: float) -> None:
        """Go on at another uploader when the one at hand has been away for too long."""
        if self._link.settled or now < self._move_not_before:
            return
        if self._finish is not None and not self._backlog.fresh_rows and (self._was_welcomed or self.continued):
            # It may have everything: another one could only make an empty run of it.
            return
        found = self._failover.look(now, self._link.silent_s(now))
        if found is None:
            return
        gone = self._failover.address
        there, dealer = found
        try:
            left = self._leave_part(there)
        except (OSError, SentinelStreamError) as error:
            # Without it, what the other may hold could not be told from what nobody has.
            self._failover.move_to(gone)
            dealer.close()
            self._move_not_before = now + RETRY_SPILL_S
            self._voice.warn(f"cannot go on at {there.url}, staying with {gone.url}: {error}")
            return
        self._dealer.close()
        self._dealer = dealer
        self._voice.warn(f"the uploader at {gone.url} is away; going on at {there.url}{left}")
        self._link = self._open_link()
        if self._finish is not None:
            self._link.finish(self._finish)
        self._link.pump()

    def _leave_part(self, there: Address) -> str:
        """Leave what the uploader at hand has, or may have, to it, and make the rest another run `there`; say so.

        A file with an end of its own is what `Leftovers` delivers when the uploader at hand is back. The run's file
        names the new place before anything is sent there: a collector that is started again sends it nowhere else.
        """
        first_seq, rows = self._backlog.in_doubt()
        if not (self._was_welcomed or self.continued or rows):
            # It has never heard of the run.
            self._failover.move_to(there)
            self._backlog.head_changed()
            return ""
        end = Finish(last_seq=0, exit_code=None, status="finished", time=self._clock.now())
        path = leave_run_file(self._state_dir, self._asked_key, self._head(), (first_seq, rows), end)
        # The id at the backend, as far as it was told before the uploader went away.
        self._facts.metadata = continuing(self._facts.metadata, self._link.run_id or self.run_key)
        self.run_key = self._another_key()
        self._was_welcomed = self.continued = False
        self._failover.move_to(there)
        self._backlog.leave_in_doubt()
        held = f"; {counted(len(rows), 'sample', WAIT)} for the other, which may have it, in {path}" if rows else ""
        return f" as a new run with {counted(self._backlog.rows, 'sample')}{held}"

    def _keep_aside(self) -> None:
        if self._backlog.rows:
            path = keep_rows(self._state_dir, self.run_key, self._incarnation, self._backlog.all_rows())
            self._voice.error(
                f"{counted(self._backlog.rows, 'sample')} cannot be added to the run any more; kept in {path}"
            )
        self._backlog.discard_file()
