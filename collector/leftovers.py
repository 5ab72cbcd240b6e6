"""Delivers what earlier collectors of this user could not: each run to where it was meant to go.

Works in a thread of its own beside the run at hand, and only where such files lie.
"""

import threading

from collector.backlog import Backlog
from collector.delivery import hello_of
from collector.link import End, Link
from collector.spill import SpillFile, SpillHead, SpillInUseError
from collector.state import keep_rows, open_run_file, run_files
from collector.voice import Voice
from protocol.addresses import parse_address, require_protection
from protocol.clock import Clock
from protocol.errors import SentinelStreamError
from protocol.transport import Dealer

_POLL_S = 0.2
_GIVE_UP_S = 30.0
_ABANDONED_AFTER_S = 86_400.0
"""Age of a file without rows and without an end: its collector was killed, and whoever continues the run needs it."""


class Leftovers:
    """Looks for files of ended collectors once, and delivers them."""

    def __init__(self, *, state_dir: str, clock: Clock, voice: Voice, insecure: bool) -> None:
        self._state_dir = state_dir
        self._clock = clock
        self._voice = voice
        self._insecure = insecure
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, own_path: str | None) -> None:
        """Begin, if there is anything beside the file of the run at hand."""
        paths = [path for path in run_files(self._state_dir) if path != own_path]
        if paths and self._thread is None:
            self._thread = threading.Thread(target=self._deliver_all, args=(paths,), name="leftovers", daemon=True)
            self._thread.start()

    def finish(self, timeout_s: float) -> None:
        """Let what is under way come to its end for at most so long; what is not delivered stays where it is."""
        if self._thread is not None:
            self._thread.join(timeout_s)
            self._stop.set()
            self._thread.join(_POLL_S * 5)

    def _deliver_all(self, paths: list[str]) -> None:
        for path in paths:
            if self._stop.is_set():
                return
            try:
                self._deliver(path)
            except SpillInUseError:
                continue
            except (OSError, SentinelStreamError) as error:
                self._voice.warn(f"cannot deliver {path}: {error}")

    def _deliver(self, path: str) -> None:
        try:
            spill = SpillFile.open(path, create=False)
        except FileNotFoundError:
            return
        head = spill.head
        rows = spill.numbered_rows + spill.unnumbered_rows
        if head is None or (not rows and spill.finish is None):
            age_s = self._clock.now() - spill.modified_at
            spill.remove() if age_s > _ABANDONED_AFTER_S else spill.close()
            return
        address = parse_address(head.destination, bind=False)
        require_protection(address, has_keys=False, insecure=self._insecure, role="connect")
        backlog = Backlog(
            open_file=lambda: open_run_file(self._state_dir, head.run_key),
            head=lambda: head,
            warn=self._voice.warn,
            recovered=spill,
        )
        try:
            with Dealer(address) as dealer:
                self._converse(dealer, backlog, head, rows)
        finally:
            backlog.close()

    def _converse(self, dealer: Dealer, backlog: Backlog, head: SpillHead, rows: int) -> None:
        link = Link(
            dealer=dealer,
            backlog=backlog,
            hello=lambda oldest_seq: hello_of(head, oldest_seq),
            on_welcome=lambda _: None,
            on_closed=lambda: False,
            warn=self._voice.detail,
            clock=self._clock,
            peer=head.destination,
        )
        finish = backlog.finish
        if finish is not None:
            link.finish(finish)
        give_up_at = self._clock.monotonic() + _GIVE_UP_S
        held = backlog.rows
        while not link.settled and not self._stop.is_set():
            link.pump()
            dealer.poll(_POLL_S)
            now = self._clock.monotonic()
            if backlog.rows < held:
                held = backlog.rows
                give_up_at = now + _GIVE_UP_S
            if now >= give_up_at:
                return
        if link.end is not None:
            self._set_aside(backlog, head, link.end)
        elif link.settled:
            backlog.discard_file()
            self._voice.warn(f"delivered {rows} samples that an earlier collector had left")

    def _set_aside(self, backlog: Backlog, head: SpillHead, end: End) -> None:
        if backlog.rows:
            path = keep_rows(self._state_dir, head.run_key, head.incarnation, backlog.all_rows())
            self._voice.error(
                f"{backlog.rows} samples of an earlier collector cannot be added to their run any more "
                f"({end.value}); they are in {path}"
            )
        backlog.discard_file()
