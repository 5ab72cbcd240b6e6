"""What an uploader has turned away since its start, in a file beside its spool for `status`.

Not in the spool: that may be full, and a flood must not cost commits. Nothing depends on it; it is not synced.
"""

import contextlib
import logging
import os
from typing import Any

import msgspec

from sentinel_protocol.common.clock import Clock
from sentinel_uploader.telemetry.counters import REJECT_REASONS, Counters

log = logging.getLogger(__name__)

WRITE_INTERVAL_S = 2.0
_FILE_NAME = "turned_away.json"


class RejectionCounts(msgspec.Struct, frozen=True):
    """How often what was not taken, by reason, and by client and reason; since when (UNIX seconds)."""

    since: float
    reasons: dict[str, int] = {}
    clients: dict[str, dict[str, int]] = {}


class RejectionsFile:
    """Written by the uploader that owns the spool directory; from one thread."""

    def __init__(self, spool_dir: str, counters: Counters, clock: Clock) -> None:
        """Forget what the uploader before this one has noted."""
        self._path = os.path.join(spool_dir, _FILE_NAME)
        self._counters = counters
        self._written = RejectionCounts(clock.now())
        with contextlib.suppress(OSError):
            os.unlink(self._path)

    def write(self) -> None:
        """Write the numbers down if they have changed."""
        now = _current_counts(self._counters, self._written.since)
        if now == self._written:
            return
        temporary = f"{self._path}.part"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            with open(os.open(temporary, flags, 0o600), "wb") as file:
                file.write(msgspec.json.encode(now))
            os.replace(temporary, self._path)
        except OSError as error:
            # A full disk is reported by what matters.
            log.debug("cannot note what was turned away error=%s", error.strerror)
            return
        self._written = now


def read_rejections(spool_dir: str) -> dict[str, Any] | None:
    """Return what was noted as `{"since", "reasons": {…}, "clients": {…}}`, `None` when there is nothing."""
    try:
        with open(os.path.join(spool_dir, _FILE_NAME), "rb") as file:
            noted = msgspec.json.decode(file.read(), type=RejectionCounts)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    plain: dict[str, Any] = msgspec.to_builtins(noted)
    return plain


def _current_counts(counters: Counters, since: float) -> RejectionCounts:
    # The codes that collectors are told are counted beside the reasons, and say less.
    reasons = {reason: int(counters.rejected.value(reason)) for reason in REJECT_REASONS}
    clients: dict[str, dict[str, int]] = {}
    for (client, reason), count in sorted(counters.client_rejected.all().items()):
        clients.setdefault(client, {})[reason] = int(count)
    return RejectionCounts(since, {reason: count for reason, count in reasons.items() if count}, clients)
