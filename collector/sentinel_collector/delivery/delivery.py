"""Delivery of one run: its queue, overflow file, uploader client, failover, and this user's own uploader."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from sentinel_collector.console import Console, pluralize
from sentinel_collector.delivery.connection_log import kept_message, lost_message
from sentinel_collector.delivery.failover import Failover, continuation_of, with_continuation_tag
from sentinel_collector.delivery.overflow_file.file import OverflowFile
from sentinel_collector.delivery.overflow_file.format import OverflowFileError, OverflowHeader, decode_hello
from sentinel_collector.delivery.send_queue import RETRY_SPILL_S, SendQueue
from sentinel_collector.delivery.state_dir import (
    claim_run_file,
    create_run_file,
    save_undeliverable_rows,
    write_finished_part,
)
from sentinel_collector.delivery.uploader_client import EndReason, UploaderClient
from sentinel_collector.run_description import RunDescription
from sentinel_collector.run_key import successor_run_key
from sentinel_protocol.common.clock import Clock
from sentinel_protocol.common.endpoints import Address
from sentinel_protocol.common.errors import SentinelStreamError
from sentinel_protocol.wire.messages import PROTOCOL_VERSION, Finish, Hello, Welcome, encode

if TYPE_CHECKING:
    from sentinel_collector.delivery.local_uploader import LocalUploaderSupervisor
    from sentinel_protocol.wire.curve_keys import ClientCurveKeys

TOUCH_INTERVAL_S = 3600.0
"""How often the modification time of the run's file is renewed: orphan recovery removes old files."""


class Delivery:
    """Delivers one run's rows until an uploader has acknowledged them; not thread-safe.

    `is_named` tells that the user chose `run_key`. `is_resumed` tells that an earlier collector of the run left a file.
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
        # Names the run's file also when the run continues under another key: a restarted collector looks there.
        self._requested_key = run_key
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
        recovered, self.run_key, self.is_resumed = claim_run_file(state_dir, run_key, clock=clock, console=console)
        if recovered is not None:
            self._resume(recovered)
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
        self.client = self._make_client()
        """The client of the current uploader; a failover replaces it."""

    @property
    def is_acknowledged(self) -> bool:
        """Whether the uploader has acknowledged everything, the end included."""
        return self.client.is_complete and self.client.end_reason is None

    @property
    def is_superseded(self) -> bool:
        """Whether a newer collector has taken over the run."""
        return self.client.end_reason is EndReason.SUPERSEDED

    @property
    def is_over(self) -> bool:
        """Whether no further message can change the outcome."""
        return self.client.end_reason is not None or self.client.finished is not None

    @property
    def path(self) -> str | None:
        """Path of the run's file, if there is one."""
        return self._queue.path

    @property
    def undelivered_rows(self) -> int:
        """Rows that no uploader has acknowledged."""
        return self._queue.rows

    def add(self, row: bytes) -> None:
        """Queue the newest row and send as much as possible."""
        self._queue.append(row, self._clock.monotonic())
        self.poll()

    def poll(self) -> None:
        """Handle messages, send what is due, and write rows that have waited too long to disk."""
        now = self._clock.monotonic()
        self.client.poll()
        self._maybe_fail_over(now)
        if not self.client.welcomed and self._local_uploader is not None:
            self._local_uploader.ensure_running(now)
        self._queue.maybe_spill(now)
        if now - self._touched_at >= TOUCH_INTERVAL_S:
            self._touched_at = now
            self._queue.touch()

    def next_poll_in(self) -> float:
        """Seconds until `poll` has to be called again."""
        return self.client.next_poll_in()

    def wait(self, timeout_s: float) -> None:
        """Wait for a message for at most `timeout_s` seconds, then `poll`."""
        self._transport.poll(timeout_s)
        self.poll()

    def description_changed(self) -> None:
        """Send the changed description to the uploader."""
        self.client.resend_hello()
        self._queue.rewrite_header()

    def finish(self, finish: Finish) -> None:
        """End the run; `finish` is sent after the last row."""
        self._finish = finish
        self.client.finish(finish)
        self.poll()

    def close(self, finish: Finish | None, also_in: str = "") -> None:
        """Remove the run's file if everything is acknowledged, else write everything to it.

        `also_in` is another file that has all rows, if there is one.
        """
        queue = self._queue
        try:
            if self.is_acknowledged:
                queue.discard_file()
            elif self.client.end_reason is not None:
                self._save_undeliverable()
            elif queue.persist_all(finish, self._clock.monotonic()):
                self._console.error(kept_message(self._reason(), queue.rows, queue.path))
            else:
                self._console.error(lost_message(self._reason(), queue.memory_rows, self._state_dir, also_in))
        except (OSError, SentinelStreamError) as error:
            self._console.error(f"{queue.path or self._state_dir}: {error}")
        finally:
            if queue.dropped_rows:
                dropped = pluralize(queue.dropped_rows, "sample", ("was", "were"))
                self._console.error(f"{dropped} dropped: memory was full and no file could be written")
            queue.close()
            self._failover.close()
            self._transport.close()

    @property
    def cannot_start_uploader(self) -> bool:
        """Whether this user's own uploader cannot start, so that no answer will come."""
        return self._local_uploader is not None and not self.client.welcomed and self._local_uploader.cannot_start

    def can_exit_early(self) -> bool:
        """Whether waiting is useless: nothing listens at the address, none has answered, and the file has all rows.

        An uploader that has answered before is likely to return soon. This user's own uploader is starting.
        """
        if self._local_uploader is not None or self.client.has_answer or not self._transport.is_unreachable:
            return False
        return self._queue.spill(self._clock.monotonic())

    def last_uploader_log_line(self) -> str:
        """Return the last log line of this user's own uploader, empty for another uploader."""
        return "" if self._local_uploader is None else self._local_uploader.last_log_line()

    def _reason(self) -> str:
        """Return why the uploader has not acknowledged everything."""
        is_own, url = self._local_uploader is not None, self._failover.current.url
        peer = "this user's uploader" if is_own else f"the uploader at {url}"
        if self.client.rejection_reason:
            return f"{peer} {self.client.rejection_reason}"
        if self.client.has_answer:
            return f"{peer} has not confirmed everything"
        return f"{peer} did not answer" if is_own else f"no uploader answered at {url}"

    def _resume(self, overflow: OverflowFile) -> None:
        """Continue the run that the file's header names, and write this collector's header."""
        header = overflow.header
        if header is not None:
            # The run may have been closed and continued under another key.
            self.run_key = header.run_key
            self._failover.pin(header.uploader_url)
            # The uploader may not have got the tag from the earlier collector.
            with contextlib.suppress(OverflowFileError):
                part = continuation_of(decode_hello(header))
                self._description.metadata = with_continuation_tag(self._description.metadata, part)
        if overflow.quarantined_path is not None:
            self._console.error(f"{overflow.path} was damaged; the unreadable part is in {overflow.quarantined_path}")
        try:
            overflow.write_header(self._make_header())
        except OSError as error:
            self._console.warn(f"cannot write to {overflow.path}: {error.strerror}")

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
        """Continue as a new run: the uploader closed this one, so the held and all later rows go into another."""
        ended_key, self.run_key = self.run_key, successor_run_key(self.run_key)
        if self._was_welcomed or self.is_resumed:
            rest = f" with {pluralize(self._queue.rows, 'sample')}" if self._queue.rows else ""
            self._console.warn(f"the run has ended at the uploader; continuing as a new run{rest}")
        elif self._is_named:
            self._console.warn(f"the run {ended_key!r} has already ended; starting a new run")
        # No message for a derived key that was used before, such as the host's after a stop within one boot.
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
        if self.client.is_complete or now < self._next_failover_at:
            return
        if self._finish is not None and not self._queue.never_sent_rows and (self._was_welcomed or self.is_resumed):
            # The current uploader may have everything: another one would get an empty run.
            return
        found = self._failover.poll_alternative(now, self.client.unanswered_s(now))
        if found is None:
            return
        previous = self._failover.current
        alternative, transport = found
        try:
            split_note = self._split_run(alternative)
        except (OSError, SentinelStreamError) as error:
            # Without that file, rows that the old uploader may have could be delivered twice.
            self._failover.current = previous
            transport.close()
            self._next_failover_at = now + RETRY_SPILL_S
            self._console.warn(f"cannot switch to {alternative.url}, staying with {previous.url}: {error}")
            return
        self._transport.close()
        self._transport = transport
        self._console.warn(f"the uploader at {previous.url} is unreachable; switching to {alternative.url}{split_note}")
        self.client = self._make_client()
        if self._finish is not None:
            self.client.finish(self._finish)
        self.client.poll()

    def _split_run(self, alternative: Address) -> str:
        """Leave rows that the current uploader may have to it, make the rest a new run, and return a note for the log.

        The former go to a file with an end of its own, which `OrphanRecovery` delivers once that uploader is back. The
        run's file names the new uploader before anything is sent there, so a restarted collector sends nothing
        elsewhere.
        """
        first_seq, rows = self._queue.ambiguous_rows()
        if not (self._was_welcomed or self.is_resumed or rows):
            # The current uploader does not know the run.
            self._failover.current = alternative
            self._queue.rewrite_header()
            return ""
        end = Finish(last_seq=0, exit_code=None, status="finished", time=self._clock.now())
        path = write_finished_part(self._state_dir, self._requested_key, self._make_header(), (first_seq, rows), end)
        # The run's id at the backend if the uploader has told it.
        self._description.metadata = with_continuation_tag(
            self._description.metadata, self.client.run_id or self.run_key
        )
        self.run_key = successor_run_key(self.run_key)
        self._was_welcomed = self.is_resumed = False
        self._failover.current = alternative
        self._queue.drop_ambiguous()
        note = f" as a new run with {pluralize(self._queue.rows, 'sample')}"
        if rows:
            waiting = pluralize(len(rows), "sample", ("waits", "wait"))
            note += f"; {waiting} in {path} for the previous uploader, which may have received some"
        return note

    def _save_undeliverable(self) -> None:
        if self._queue.rows:
            path = save_undeliverable_rows(self._state_dir, self.run_key, self._incarnation, self._queue.all_rows())
            self._console.error(f"{pluralize(self._queue.rows, 'sample')} cannot be added to the run; saved in {path}")
        self._queue.discard_file()
