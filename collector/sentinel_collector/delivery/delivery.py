"""The rows' way out: backlog, link and socket of one run, the agent at the other end, and the run's file."""

import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from sentinel_collector.console import WAIT, Console, pluralize
from sentinel_collector.delivery.failover import Failover, continuation_of, with_continuation_tag
from sentinel_collector.delivery.overflow_file.file import OverflowFile
from sentinel_collector.delivery.overflow_file.header import OverflowFileError, OverflowHeader, decode_hello
from sentinel_collector.delivery.send_queue import RETRY_SPILL_S, SendQueue
from sentinel_collector.delivery.state_dir import (
    claim_other_file,
    create_run_file,
    has_ended_file,
    has_other_file,
    open_run_file,
    save_undeliverable_rows,
    write_finished_part,
)
from sentinel_collector.delivery.undelivered import kept_message, lost_message, undelivered_reason
from sentinel_collector.delivery.uploader_client import EndReason, UploaderClient
from sentinel_collector.run_facts import RunDescription
from sentinel_collector.run_key import successor_run_key
from sentinel_protocol.common.clock import Clock
from sentinel_protocol.common.endpoints import Address
from sentinel_protocol.common.errors import SentinelStreamError
from sentinel_protocol.wire.messages import PROTOCOL_VERSION, Finish, Finished, Hello, Welcome, encode

if TYPE_CHECKING:
    from sentinel_collector.delivery.local_uploader import LocalUploaderSupervisor
    from sentinel_protocol.wire.curve_keys import ClientCurveKeys

TOUCH_INTERVAL_S = 3600.0
"""How often the file of a run shows that its collector lives: one that has not been written for long is removed."""
_CLAIM_ATTEMPTS = 10
_CLAIM_RETRY_S = 0.1


class Delivery:
    """One run's rows, from the sampler to an uploader's acknowledgement; not thread-safe.

    `is_named` says that somebody chose `run_key`. `is_resumed` says that an earlier collector of the same run left
    its file here.
    """

    def __init__(
        self,
        *,
        run_key: str,
        incarnation: str,
        addresses: Sequence[Address],
        local_uploader: "LocalUploaderSupervisor | None",
        state_dir: str,
        description: RunDescription,
        clock: Clock,
        console: Console,
        on_welcome: Callable[[Welcome], None],
        is_named: bool = False,
        keys: "Mapping[str, ClientCurveKeys] | None" = None,
        failover_after_s: float = 300.0,
    ) -> None:
        # The run's file keeps the name of the key that was asked for, also when the run goes on under another: it is
        # where a collector that is started again looks.
        self._requested_key = self.run_key = run_key
        self._incarnation = incarnation
        self._failover = Failover(addresses, keys or {}, after_s=failover_after_s)
        self._local_uploader = local_uploader
        self._state_dir = state_dir
        self._description = description
        self._clock = clock
        self._console = console
        self._on_welcome = on_welcome
        self._is_named = is_named
        self._was_welcomed = False
        self.is_resumed = False
        recovered = self._claim_run_file()
        self.last_row = None if recovered is None else recovered.last_row
        self._queue = SendQueue(
            open_file=lambda: create_run_file(state_dir, self._requested_key),
            header=self._make_header,
            warn=console.warn,
            recovered=recovered,
            disk_error_reported=recovered is None,
        )
        self._touched_at = clock.monotonic()
        self._finish: Finish | None = None
        self._next_failover_at = 0.0
        self._transport = self._failover.connect()
        self._client = self._make_client()

    @property
    def run_id(self) -> str:
        """The run's id at the backend, empty until it is known."""
        return self._client.run_id

    @property
    def finished(self) -> Finished | None:
        """What the backend said of the delivered run."""
        return self._client.finished

    @property
    def is_acknowledged(self) -> bool:
        """Whether the uploader holds everything, the end included."""
        return self._client.is_complete and self._client.end_reason is None

    @property
    def delivery_error(self) -> str:
        """What keeps the uploader from delivering the run, empty when it knows of nothing."""
        return self._client.delivery_error

    @property
    def is_parked(self) -> bool:
        """Whether the uploader has set the run aside until a person has looked at it."""
        return self._client.is_parked

    @property
    def is_superseded(self) -> bool:
        """Whether a newer collector has taken the run over."""
        return self._client.end_reason is EndReason.SUPERSEDED

    @property
    def is_over(self) -> bool:
        """Whether nothing more can be said."""
        return self._client.end_reason is not None or self._client.finished is not None

    @property
    def path(self) -> str | None:
        """Path of the run's file, when there is one."""
        return self._queue.path

    @property
    def undelivered_rows(self) -> int:
        """Rows that no uploader has acknowledged."""
        return self._queue.rows

    def add(self, row: bytes) -> None:
        """Take the newest row and send what can be sent."""
        self._queue.append(row, self._clock.monotonic())
        self.poll()

    def poll(self) -> None:
        """Read what has come, send what is due, write to disk what has waited for too long."""
        now = self._clock.monotonic()
        self._client.poll()
        self._maybe_fail_over(now)
        if not self._client.welcomed and self._local_uploader is not None:
            self._local_uploader.ensure_running(now)
        self._queue.maybe_spill(now)
        if now - self._touched_at >= TOUCH_INTERVAL_S:
            self._touched_at = now
            self._queue.touch()

    def next_poll_in(self) -> float:
        """Seconds until `poll` wants to be called again."""
        return self._client.next_poll_in()

    def wait(self, timeout_s: float) -> None:
        """Wait for an answer for at most so long, and take it in."""
        self._transport.poll(timeout_s)
        self.poll()

    def description_changed(self) -> None:
        """Tell the uploader what discovery has found."""
        self._client.resend_hello()
        self._queue.rewrite_header()

    def finish(self, finish: Finish) -> None:
        """The run is over; `finish` goes out behind the last row."""
        self._finish = finish
        self._client.finish(finish)
        self.poll()

    def close(self, finish: Finish | None, also_in: str = "") -> None:
        """End: remove the run's file when all is delivered, else keep all in it; `also_in`: a file with all rows."""
        queue = self._queue
        try:
            if self.is_acknowledged:
                queue.discard_file()
            elif self._client.end_reason is not None:
                self._save_undeliverable()
            elif queue.persist_all(finish, self._clock.monotonic()):
                self._console.error(kept_message(self._reason(), queue.rows, queue.path))
            else:
                self._console.error(lost_message(self._reason(), queue.memory_rows, self._state_dir, also_in))
        except (OSError, SentinelStreamError) as error:
            self._console.error(f"{queue.path or self._state_dir}: {error}")
        finally:
            if queue.dropped_rows:
                self._console.error(
                    f"{pluralize(queue.dropped_rows, 'sample', ('was', 'were'))} dropped: there was no room"
                )
            queue.close()
            self._failover.close()
            self._transport.close()

    @property
    def cannot_start_uploader(self) -> bool:
        """Whether this user's own uploader cannot start, so that nobody will answer."""
        return self._local_uploader is not None and not self._client.welcomed and self._local_uploader.cannot_start

    def can_exit_early(self) -> bool:
        """Whether waiting is of no use: nobody listens at the address, none has answered, and the file has all rows.

        One that has answered before is likely to be back soon, one of this user's own is on its way.
        """
        if self._local_uploader is not None or self._client.has_answer or not self._transport.is_unreachable:
            return False
        return self._queue.overflow(self._clock.monotonic())

    def last_uploader_log_line(self) -> str:
        """Return what the agent said last, for when it does not answer."""
        return "" if self._local_uploader is None else self._local_uploader.last_log_line()

    def _reason(self) -> str:
        client, url = self._client, self._failover.current.url
        return undelivered_reason(
            url, is_own=self._local_uploader is not None, has_answer=client.has_answer, refusal=client.rejection_reason
        )

    def _claim_run_file(self) -> OverflowFile | None:
        """Open the run's file; without one everything goes on in memory."""
        try:
            overflow = self._open_run_file()
            if overflow.finish is not None:
                # That run has ended and waits to be delivered; this one is another.
                overflow.close()
                self.run_key = self._successor_key()
                overflow = create_run_file(self._state_dir, self._requested_key)
            elif overflow.header is None and has_ended_file(self._state_dir, self._requested_key):
                # The same, and somebody delivers it at this moment: as its collector we would stop that.
                self.run_key = self._successor_key()
            elif has_other_file(self._state_dir, self._requested_key, overflow.path):
                self.is_resumed = True
                if overflow.header is None:
                    overflow = self._wait_for_file(overflow)
        except (OSError, SentinelStreamError) as error:
            self._console.warn(
                f"no place for undelivered samples in {self._state_dir}, keeping them in memory: {error}"
            )
            return None
        if overflow.header is not None:
            self.is_resumed = True
            # The run may have been closed and gone on under another key.
            self.run_key = overflow.header.run_key
            self._failover.pin(overflow.header.uploader_url)
            # Its uploader may not have heard from the collector before of which part the run is the continuation.
            with contextlib.suppress(OverflowFileError):
                self._description.metadata = with_continuation_tag(
                    self._description.metadata, continuation_of(decode_hello(overflow.header))
                )
        if overflow.quarantined_path is not None:
            self._console.error(
                f"{overflow.path} was damaged; what could not be read of it is in {overflow.quarantined_path}"
            )
        try:
            overflow.write_header(self._make_header())
        except OSError as error:
            self._console.warn(f"cannot write to {overflow.path}: {error.strerror}")
        return overflow

    def _open_run_file(self) -> OverflowFile:
        try:
            return open_run_file(self._state_dir, self._requested_key)
        except OverflowFileError as error:
            self._console.error(f"cannot continue the run: {error}")
            return create_run_file(self._state_dir, self._requested_key)

    def _wait_for_file(self, own: OverflowFile) -> OverflowFile:
        """Return the run's file that another collector delivers: it lets go of that when it sees ours.

        A living collector of the run does not. Then it is ours that is used, and the other one gives way to us.
        """
        never = threading.Event()
        for _ in range(_CLAIM_ATTEMPTS):
            with contextlib.suppress(OverflowFileError):
                other = claim_other_file(self._state_dir, self._requested_key, own.path)
                if other is not None:
                    own.unlink()
                    own.close()
                    return other
            self._clock.wait_for(never, _CLAIM_RETRY_S)
        return own

    def _successor_key(self) -> str:
        return successor_run_key(self.run_key, os.urandom(6).hex())

    def _make_header(self) -> OverflowHeader:
        return OverflowHeader(
            run_key=self.run_key,
            incarnation=self._incarnation,
            uploader_url=self._failover.current.url,
            hello=encode(self._hello(0)),
        )

    def _hello(self, oldest_seq: int) -> Hello:
        description = self._description
        return Hello(
            PROTOCOL_VERSION,
            self.run_key,
            self._incarnation,
            description.interval_s,
            metadata=description.metadata,
            host=description.host,
            cloud=description.cloud,
            first_available_seq=oldest_seq,
            cloud_pending=description.cloud_pending,
        )

    def _handle_welcome(self, welcome: Welcome) -> None:
        self._was_welcomed = True
        self._on_welcome(welcome)

    def _start_new_run(self) -> bool:
        """The run was closed without us: what is not in it goes into another, with all that follows."""
        ended_key, self.run_key = self.run_key, self._successor_key()
        if self._was_welcomed or self.is_resumed:
            rest = f" with {pluralize(self._queue.rows, 'sample')}" if self._queue.rows else ""
            self._console.warn(f"the run has ended at the uploader; going on as a new run{rest}")
        elif self._is_named:
            self._console.warn(f"the run {ended_key!r} has ended before; this is a new one")
        # A key of our own making that was used before, as the host's of one boot is, is nobody's concern.
        self._queue.start_new_run()
        return True

    def _make_client(self) -> UploaderClient:
        return UploaderClient(
            transport=self._transport,
            queue=self._queue,
            hello=self._hello,
            on_welcome=self._handle_welcome,
            on_closed=self._start_new_run,
            warn=self._console.warn,
            clock=self._clock,
            peer="the uploader" if self._local_uploader is None else "this user's uploader",
        )

    def _maybe_fail_over(self, now: float) -> None:
        """Go on at another uploader when the one at hand has been away for too long."""
        if self._client.is_complete or now < self._next_failover_at:
            return
        if self._finish is not None and not self._queue.never_sent_rows and (self._was_welcomed or self.is_resumed):
            # It may have everything: another one could only make an empty run of it.
            return
        found = self._failover.poll_alternative(now, self._client.unanswered_s(now))
        if found is None:
            return
        previous = self._failover.current
        alternative, transport = found
        try:
            split_note = self._split_run(alternative)
        except (OSError, SentinelStreamError) as error:
            # Without it, what the other may hold could not be told from what nobody has.
            self._failover.switch_to(previous)
            transport.close()
            self._next_failover_at = now + RETRY_SPILL_S
            self._console.warn(f"cannot go on at {alternative.url}, staying with {previous.url}: {error}")
            return
        self._transport.close()
        self._transport = transport
        self._console.warn(f"the uploader at {previous.url} is away; going on at {alternative.url}{split_note}")
        self._client = self._make_client()
        if self._finish is not None:
            self._client.finish(self._finish)
        self._client.poll()

    def _split_run(self, alternative: Address) -> str:
        """Leave what the uploader at hand has, or may have, to it; make the rest a run at `alternative`; say so.

        A file with an end of its own is what `OrphanRecovery` delivers when the uploader at hand is back. The run's
        file names the new uploader before anything is sent there: a restarted collector sends it nowhere else.
        """
        first_seq, rows = self._queue.ambiguous_rows()
        if not (self._was_welcomed or self.is_resumed or rows):
            # It has never heard of the run.
            self._failover.switch_to(alternative)
            self._queue.rewrite_header()
            return ""
        end = Finish(last_seq=0, exit_code=None, status="finished", time=self._clock.now())
        path = write_finished_part(self._state_dir, self._requested_key, self._make_header(), (first_seq, rows), end)
        # The id at the backend, as far as it was told before the uploader went away.
        self._description.metadata = with_continuation_tag(
            self._description.metadata, self._client.run_id or self.run_key
        )
        self.run_key = self._successor_key()
        self._was_welcomed = self.is_resumed = False
        self._failover.switch_to(alternative)
        self._queue.drop_ambiguous()
        held = f"; {pluralize(len(rows), 'sample', WAIT)} for the other, which may have it, in {path}" if rows else ""
        return f" as a new run with {pluralize(self._queue.rows, 'sample')}{held}"

    def _save_undeliverable(self) -> None:
        if self._queue.rows:
            path = save_undeliverable_rows(self._state_dir, self.run_key, self._incarnation, self._queue.all_rows())
            self._console.error(
                f"{pluralize(self._queue.rows, 'sample')} cannot be added to the run any more; kept in {path}"
            )
        self._queue.discard_file()
