"""Recovery of orphaned files: delivers rows of earlier collectors of this user, each run to its uploader.

Runs in a thread beside the current run, and only if there are such files.
"""

import threading
from typing import TYPE_CHECKING

import msgspec

from sentinel_collector.console import Console, pluralize
from sentinel_collector.delivery.overflow_file.file import OverflowFile, OverflowFileInUseError
from sentinel_collector.delivery.overflow_file.format import OverflowHeader, decode_hello
from sentinel_collector.delivery.send_queue import SendQueue
from sentinel_collector.delivery.state_dir import (
    create_run_file,
    is_run_in_use,
    modified_at,
    run_files,
    save_undeliverable_rows,
)
from sentinel_collector.delivery.uploader_client import EndReason, UploaderClient
from sentinel_collector.delivery.zmq_client import ZmqClient
from sentinel_collector.run_key import successor_run_key
from sentinel_protocol.common.clock import Clock
from sentinel_protocol.common.endpoints import parse_address, require_encryption
from sentinel_protocol.common.errors import SentinelStreamError
from sentinel_protocol.wire.messages import encode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sentinel_protocol.wire.curve_keys import ClientCurveKeys

_POLL_S = 0.2
_STALL_TIMEOUT_S = 30.0
_MAX_SILENCE_S = 1.0
"""Longest silence of an uploader that the end of a job waits for."""
_RESTART_GRACE_S = 60.0
"""Age up to which a file without an end is left to a collector that resumes the run."""
_ABANDONED_AFTER_S = 86_400.0
"""Age at which a file without rows and end is removed; until then, a collector that resumes the run needs it."""
_HEADERLESS_AFTER_S = 600.0
"""Age at which a file without a header is removed. A full disk leaves such files; they have no rows."""


class OrphanRecovery:
    """Finds and delivers the files of ended collectors, each time `start` is called."""

    def __init__(
        self,
        *,
        state_dir: str,
        clock: Clock,
        console: Console,
        insecure: bool,
        keys: "Mapping[str, ClientCurveKeys] | None" = None,
    ) -> None:
        self._state_dir = state_dir
        self._clock = clock
        self._console = console
        self._insecure = insecure
        self._keys = keys or {}
        self._stop = threading.Event()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self.has_scanned = False
        """Whether `start` was called."""
        self._unreachable: set[str] = set()
        """Uploaders that did not answer: their other files are skipped."""
        self._logged: set[str] = set()
        """Files and uploaders that were logged about."""
        self._answered_at = clock.monotonic()

    def start(self, own_path: str | None) -> None:
        """Start a recovery if there are files besides `own_path` and none is under way."""
        self.has_scanned = True
        if self._thread is not None and not self._done.is_set():
            return
        # Newest first: an old file is likely to stay undeliverable.
        paths = sorted((path for path in run_files(self._state_dir) if path != own_path), key=modified_at, reverse=True)
        if paths:
            self._done.clear()
            self._unreachable.clear()
            self._thread = threading.Thread(
                target=self._deliver_all, args=(paths,), name="orphan-recovery", daemon=True
            )
            self._thread.start()

    def finish(self, timeout_s: float) -> None:
        """Wait for the recovery for at most `timeout_s` seconds, then stop it; undelivered files stay."""
        if self._thread is None:
            return
        began = self._clock.monotonic()
        while (waited_s := (now := self._clock.monotonic()) - began) < timeout_s:
            if now - max(began, self._answered_at) >= _MAX_SILENCE_S:
                break
            if self._clock.wait_for(self._done, min(_POLL_S, timeout_s - waited_s)):
                break
        self._stop.set()
        self._thread.join(_POLL_S * 5)

    def _deliver_all(self, paths: list[str]) -> None:
        try:
            for path in paths:
                if self._stop.is_set():
                    return
                try:
                    self._deliver(path)
                except (OverflowFileInUseError, FileNotFoundError):
                    continue
                except (OSError, SentinelStreamError, msgspec.DecodeError) as error:
                    self._log_once(path, f"cannot deliver {path}: {error}")
        finally:
            self._done.set()

    def _deliver(self, path: str) -> None:
        # Before `open`, which writes to an empty file.
        age_s = self._clock.now() - modified_at(path) / 1e9
        if not OverflowFile.has_finish(path) and 0 <= age_s < _RESTART_GRACE_S:
            # Not even locked briefly: its collector may be restarting.
            return
        overflow = OverflowFile.open(path)
        owned: OverflowFile | SendQueue = overflow
        try:
            if age_s > _HEADERLESS_AFTER_S and overflow.has_no_header:
                overflow.unlink()
                return
            header = self._header_if_recoverable(overflow)
            if header is None or header.uploader_url in self._unreachable:
                return
            address = parse_address(header.uploader_url, bind=False)
            # An uploader that is no longer configured may have the keys of one that is; wrong keys do no harm.
            keys = self._keys.get(address.url) or next(iter(self._keys.values()), None)
            require_encryption(address, has_keys=keys is not None, insecure=self._insecure, role="connect")
            decode_hello(header)
            queue = owned = SendQueue(
                open_file=lambda: create_run_file(self._state_dir, header.run_key),
                header=lambda: header,
                warn=self._console.warn,
                recovered=overflow,
            )
            with ZmqClient(address, keys=keys) as transport:
                self._deliver_over(transport, queue, header, path)
        finally:
            owned.close()

    def _header_if_recoverable(self, overflow: OverflowFile) -> OverflowHeader | None:
        """Return the file's header; `None` when there is nothing to deliver, or not yet."""
        if overflow.quarantined_path is not None:
            self._console.error(f"{overflow.path} was damaged; the unreadable part is in {overflow.quarantined_path}")
        rows = overflow.numbered_rows + overflow.unnumbered_rows
        age_s = self._clock.now() - overflow.modified_at
        if not rows and overflow.finish is None:
            if age_s > _ABANDONED_AFTER_S:
                overflow.unlink()
            return None
        if overflow.header is None:
            self._log_once(
                overflow.path,
                f"{overflow.path} holds {pluralize(rows, 'sample')} of an unknown run; the file is left there",
            )
            return None
        if overflow.finish is None and 0 <= age_s < _RESTART_GRACE_S:
            return None
        return overflow.header

    def _deliver_over(self, transport: ZmqClient, queue: SendQueue, header: OverflowHeader, path: str) -> None:
        client = UploaderClient(
            transport=transport,
            queue=queue,
            hello=lambda oldest_seq: msgspec.structs.replace(
                decode_hello(queue.make_header()), first_available_seq=oldest_seq
            ),
            on_welcome=lambda _: None,
            on_closed=lambda: _start_new_run(queue),
            warn=self._console.debug,
            clock=self._clock,
            peer=header.uploader_url,
        )
        if queue.finish is not None:
            client.finish(queue.finish)
        rows = queue.rows
        began_at = self._clock.monotonic()
        if not self._run_until_done(client, transport, queue, path):
            return
        if client.end_reason is not None:
            self._save_undeliverable(queue, header, client.end_reason)
        elif client.is_complete:
            # Without an end the run may be resumed, which its empty file shows: keep that file.
            if queue.finish is not None:
                queue.discard_file()
            self._console.warn(f"delivered for an earlier collector: {pluralize(rows, 'sample')}")
        elif not client.has_answer and (
            client.rejection_reason or self._clock.monotonic() - began_at >= _MAX_SILENCE_S
        ):
            self._unreachable.add(header.uploader_url)
            self._log_unreachable(header.uploader_url, client.rejection_reason, rows, queue.path)

    def _run_until_done(self, client: UploaderClient, transport: ZmqClient, queue: SendQueue, path: str) -> bool:
        """Poll until all is delivered or no progress is made; False when another collector delivers the run."""
        held = queue.rows
        give_up_at = self._clock.monotonic() + _STALL_TIMEOUT_S
        while not client.is_complete and not self._stop.is_set():
            client.poll()
            if client.has_answer:
                self._answered_at = self._clock.monotonic()
            transport.poll(_POLL_S)
            if queue.rows < held:
                held = queue.rows
                give_up_at = self._clock.monotonic() + _STALL_TIMEOUT_S
            if queue.finish is None and is_run_in_use(path):
                # A collector that resumes the run delivers these rows as well, in order.
                return False
            if client.is_rejected or self._clock.monotonic() >= give_up_at:
                break
        return True

    def _log_unreachable(self, uploader_url: str, rejection: str, rows: int, path: str | None) -> None:
        samples = f"{pluralize(rows, 'sample')} of an earlier run {'waits' if rows == 1 else 'wait'}"
        self._log_once(
            uploader_url,
            f"{samples if rows else 'the end of an earlier run waits'} for {uploader_url}, "
            f"{f'whose uploader {rejection},' if rejection else 'where no uploader answers,'} "
            f"in {path}; a run with that uploader's address, or that target and token, delivers them; "
            "deleting the file discards them",
        )

    def _log_once(self, topic: str, text: str) -> None:
        if topic not in self._logged:
            self._logged.add(topic)
            self._console.warn(text)

    def _save_undeliverable(self, queue: SendQueue, header: OverflowHeader, end: EndReason) -> None:
        if queue.rows:
            path = save_undeliverable_rows(self._state_dir, header.run_key, header.incarnation, queue.all_rows())
            self._console.error(
                f"{pluralize(queue.rows, 'sample')} of an earlier collector cannot be added to the run "
                f"({end.value}); saved in {path}"
            )
        queue.discard_file()


def _start_new_run(queue: SendQueue) -> bool:
    """Make the rows another run if the closed run was an earlier one under the same key; return whether they are.

    That is so when none of the rows was ever sent and they have an end: a running collector would have started another
    run as well.
    """
    if queue.finish is None or queue.oldest_seq or not queue.rows:
        return False
    header = queue.make_header()
    hello = decode_hello(header)
    run_key = successor_run_key(header.run_key)
    hello = msgspec.structs.replace(hello, run_key=run_key)
    renamed = msgspec.structs.replace(header, run_key=run_key, hello=encode(hello))
    queue.make_header = lambda: renamed
    queue.start_new_run()
    return True
