"""Counts of rejections since the uploader's start, in a file beside the spool, for `status`.

They are not in the spool: it may be full, and a flood must not cost commits. Nothing depends on the file, so it is not
synced.
"""

import contextlib
import logging
import os
from typing import Any

import msgspec

from sentinel_protocol.common.atomic_file import write_atomically
from sentinel_protocol.common.clock import Clock
from sentinel_uploader.telemetry.counters import REJECT_REASONS, Counters

log = logging.getLogger(__name__)

WRITE_INTERVAL_S = 2.0
_FILE_NAME = "turned_away.json"


class RejectionCounts(msgspec.Struct, frozen=True):
    """Rejections by reason, and by client and reason, since a time (UNIX seconds)."""

    since: float
    reasons: dict[str, int] = {}
    clients: dict[str, dict[str, int]] = {}


class RejectionsFile:
    """Written by the uploader that owns the spool directory. Not thread-safe."""

    def __init__(self, spool_dir: str, counters: Counters, clock: Clock) -> None:
        """Remove the file of the previous uploader."""
        self._path = os.path.join(spool_dir, _FILE_NAME)
        self._counters = counters
        self._written = RejectionCounts(clock.now())
        with contextlib.suppress(OSError):
            os.unlink(self._path)

    def write(self) -> None:
        """Write the counts if they have changed."""
        now = _current_counts(self._counters, self._written.since)
        if now == self._written:
            return
        try:
            write_atomically(self._path, msgspec.json.encode(now), durable=False)
        except OSError as error:
            # A full disk is reported elsewhere.
            log.debug("cannot write the counts of rejections error=%s", error.strerror)
            return
        self._written = now


def read_rejections(spool_dir: str) -> dict[str, Any] | None:
    """Return the file's content as `{"since", "reasons": {…}, "clients": {…}}`, `None` without a readable file."""
    try:
        with open(os.path.join(spool_dir, _FILE_NAME), "rb") as file:
            noted = msgspec.json.decode(file.read(), type=RejectionCounts)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    plain: dict[str, Any] = msgspec.to_builtins(noted)
    return plain


def _current_counts(counters: Counters, since: float) -> RejectionCounts:
    # The counter also has the codes of `Reject` messages. The reasons say more.
    reasons = {reason: int(counters.rejected.value(reason)) for reason in REJECT_REASONS}
    clients: dict[str, dict[str, int]] = {}
    for (client, reason), count in sorted(counters.client_rejected.all().items()):
        clients.setdefault(client, {})[reason] = int(count)
    return RejectionCounts(since, {reason: count for reason, count in reasons.items() if count}, clients)
