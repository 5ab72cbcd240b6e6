"""Delivers what earlier collectors of this user could not: each run to where it was meant to go.

Works in a thread of its own beside the run at hand, and only where such files lie.
"""

import os
import threading
from typing import TYPE_CHECKING

import msgspec

from sentinel_collector.console import WAIT, Voice, counted
from sentinel_collector.delivery.overflow_file.file import SpillFile, SpillInUseError
from sentinel_collector.delivery.overflow_file.header import SpillHead, hello_of
from sentinel_collector.delivery.send_queue import Backlog
from sentinel_collector.delivery.state_dir import create_run_file, is_run_taken, keep_rows, modified_at, run_files
from sentinel_collector.delivery.uploader_client import End, Link
from sentinel_collector.delivery.zmq_client import Dealer
from sentinel_collector.run_key import next_run_key
from sentinel_protocol.common.clock import Clock
from sentinel_protocol.common.endpoints import parse_address, require_encryption
from sentinel_protocol.common.errors import SentinelStreamError
from sentinel_protocol.wire.messages import encode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sentinel_protocol.wire.curve_keys import ClientCurveKeys

_POLL_S = 0.2
_GIVE_UP_S = 30.0
_ANSWER_S = 1.0
"""Longest silence of a destination that the end of a job waits for."""
_MAY_COME_BACK_S = 60.0
"""Age up to which a file without an end is left to whoever continues the run of a killed collector."""
_ABANDONED_AFTER_S = 86_400.0
"""Age of a file without rows and without an end: its collector was killed, and whoever continues the run needs it."""
_NAMELESS_AFTER_S = 600.0
"""Age of a file without a run's name, which a full disk leaves: its collector sent nothing that the file would tell."""


class _Belonging:
    """Whose rows these are, which may change: a run that is over takes no more."""

    def __init__(self, head: SpillHead) -> None:
        self.head = head


class Leftovers:
    """Looks for files of ended collectors whenever it is told to, and delivers them."""

    def __init__(
        self,
        *,
        state_dir: str,
        clock: Clock,
        voice: Voice,
        insecure: bool,
        keys: "Mapping[str, ClientCurveKeys] | None" = None,
    ) -> None:
        self._state_dir = state_dir
        self._clock = clock
        self._voice = voice
        self._insecure = insecure
        self._keys = keys or {}
        self._stop = threading.Event()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self.has_looked = False
        """Whether `start` was called yet."""
        self._silent: set[str] = set()
        """Destinations that did not answer: not asked again for another file."""
        self._told: set[str] = set()
        """Files and destinations of which was said what there is to say."""
        self._answered_at = clock.monotonic()

    def start(self, own_path: str | None) -> None:
        """Begin, if there is anything beside the file of the run at hand and nothing is under way."""
        self.has_looked = True
        if self._thread is not None and not self._over.is_set():
            return
        # The newest first: what has lain there for long is likely to go on lying there.
        paths = sorted((path for path in run_files(self._state_dir) if path != own_path), key=modified_at, reverse=True)
        if paths:
            self._over.clear()
            self._silent.clear()
            self._thread = threading.Thread(target=self._deliver_all, args=(paths,), name="leftovers", daemon=True)
            self._thread.start()

    def finish(self, timeout_s: float) -> None:
        """Let what is under way come to its end for at most so long; what is not delivered stays where it is."""
        if self._thread is None:
            return
        began = self._clock.monotonic()
        while (waited_s := (now := self._clock.monotonic()) - began) < timeout_s:
            if now - max(began, self._answered_at) >= _ANSWER_S:
                break
            if self._clock.wait_for(self._over, min(_POLL_S, timeout_s - waited_s)):
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
                except (SpillInUseError, FileNotFoundError):
                    continue
                except (OSError, SentinelStreamError, msgspec.DecodeError) as error:
                    self._tell_once(path, f"cannot deliver {path}: {error}")
        finally:
            self._over.set()

    def _deliver(self, path: str) -> None:
        # Before it is opened, which finishes an empty one.
        age_s = self._clock.now() - modified_at(path) / 1e9
        if not SpillFile.tells_end(path) and 0 <= age_s < _MAY_COME_BACK_S:
            # Not even locked for a moment: its collector may be starting again just now.
            return
        spill = SpillFile.open(path)
        owned: SpillFile | Backlog = spill
        try:
            if age_s > _NAMELESS_AFTER_S and spill.is_nameless:
                spill.unlink()
                return
            head = self._head_if_due(spill)
            if head is None or head.destination in self._silent:
                return
            address = parse_address(head.destination, bind=False)
            # An uploader that is not named any more may have the key of one that is; a wrong key harms nobody.
            keys = self._keys.get(address.url) or next(iter(self._keys.values()), None)
            require_encryption(address, has_keys=keys is not None, insecure=self._insecure, role="connect")
            hello_of(head)
            belongs = _Belonging(head)
            backlog = owned = Backlog(
                open_file=lambda: create_run_file(self._state_dir, head.run_key),
                head=lambda: belongs.head,
                warn=self._voice.warn,
                recovered=spill,
            )
            with Dealer(address, keys=keys) as dealer:
                self._converse(dealer, backlog, belongs, path)
        finally:
            owned.close()

    def _head_if_due(self, spill: SpillFile) -> SpillHead | None:
        """Return whose rows these are; `None` where there is nothing to be done, or not yet."""
        if spill.set_aside is not None:
            self._voice.error(f"{spill.path} was damaged; what could not be read of it is in {spill.set_aside}")
        rows = spill.numbered_rows + spill.unnumbered_rows
        age_s = self._clock.now() - spill.modified_at
        if not rows and spill.finish is None:
            if age_s > _ABANDONED_AFTER_S:
                spill.unlink()
            return None
        if spill.head is None:
            self._tell_once(
                spill.path, f"{spill.path} holds {counted(rows, 'sample')} of an unknown run; it is left there"
            )
            return None
        if spill.finish is None and 0 <= age_s < _MAY_COME_BACK_S:
            return None
        return spill.head

    def _converse(self, dealer: Dealer, backlog: Backlog, belongs: _Belonging, path: str) -> None:
        head = belongs.head
        link = Link(
            dealer=dealer,
            backlog=backlog,
            hello=lambda oldest_seq: msgspec.structs.replace(hello_of(belongs.head), first_available_seq=oldest_seq),
            on_welcome=lambda _: None,
            on_closed=lambda: _begin_another_run(backlog, belongs),
            warn=self._voice.detail,
            clock=self._clock,
            peer=head.destination,
        )
        if backlog.finish is not None:
            link.finish(backlog.finish)
        rows = backlog.rows
        began_at = self._clock.monotonic()
        if not self._is_talked_out(link, dealer, backlog, path):
            return
        if link.end is not None:
            self._set_aside(backlog, head, link.end)
        elif link.settled:
            # Without an end the run may be continued: that there was one before is what its empty file says.
            if backlog.finish is not None:
                backlog.discard_file()
            self._voice.warn(f"delivered what an earlier collector had left: {counted(rows, 'sample')}")
        elif not link.has_answer and (link.refusal or self._clock.monotonic() - began_at >= _ANSWER_S):
            self._silent.add(head.destination)
            self._tell_silence(head.destination, link.refusal, rows, backlog.path)

    def _is_talked_out(self, link: Link, dealer: Dealer, backlog: Backlog, path: str) -> bool:
        """Talk until there is no more to say, or no use in it; False when somebody else delivers the run."""
        held = backlog.rows
        give_up_at = self._clock.monotonic() + _GIVE_UP_S
        while not link.settled and not self._stop.is_set():
            link.pump()
            if link.has_answer:
                self._answered_at = self._clock.monotonic()
            dealer.poll(_POLL_S)
            if backlog.rows < held:
                held = backlog.rows
                give_up_at = self._clock.monotonic() + _GIVE_UP_S
            if backlog.finish is None and is_run_taken(path):
                # Whoever continues the run delivers these rows as well, in their order.
                return False
            if link.is_refused or self._clock.monotonic() >= give_up_at:
                break
        return True

    def _tell_silence(self, destination: str, refusal: str, rows: int, path: str | None) -> None:
        samples = f"{counted(rows, 'sample')} of an earlier run {WAIT[rows != 1]}"
        self._tell_once(
            destination,
            f"{samples if rows else 'the end of an earlier run waits'} for {destination}, "
            f"{f'whose uploader {refusal},' if refusal else 'where no uploader answers,'} "
            f"in {path}; a run with that uploader's address, or that target and token, delivers them; "
            "deleting the file discards them",
        )

    def _tell_once(self, topic: str, text: str) -> None:
        if topic not in self._told:
            self._told.add(topic)
            self._voice.warn(text)

    def _set_aside(self, backlog: Backlog, head: SpillHead, end: End) -> None:
        if backlog.rows:
            path = keep_rows(self._state_dir, head.run_key, head.incarnation, backlog.all_rows())
            self._voice.error(
                f"{counted(backlog.rows, 'sample')} of an earlier collector cannot be added to the run any more "
                f"({end.value}); kept in {path}"
            )
        backlog.discard_file()


def _begin_another_run(backlog: Backlog, belongs: _Belonging) -> bool:
    """Whether a run that was closed without its collector's knowing lets these rows be another's.

    They are where no row of them was ever sent, and their own end is known: the run that has ended under this key is
    an earlier one, and a collector that was alive would have begun another as well.
    """
    if backlog.finish is None or backlog.oldest_seq or not backlog.rows:
        return False
    head = belongs.head
    hello = hello_of(head)
    run_key = next_run_key(head.run_key, os.urandom(6).hex())
    hello = msgspec.structs.replace(hello, run_key=run_key)
    belongs.head = msgspec.structs.replace(head, run_key=run_key, hello=encode(hello))
    backlog.start_new_run()
    return True
