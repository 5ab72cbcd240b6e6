"""Health checks: is the uploader alive, can it take rows, do rows reach their destination?"""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from sentinel_protocol.common.clock import Clock
from sentinel_uploader.runs.lifecycle import OPEN_STATES, RunState
from sentinel_uploader.spool.errors import SpoolError
from sentinel_uploader.spool.store import Spool

HANG_THRESHOLD_S = 120.0
"""A loop that has not run for so long hangs. Both run once a second."""
WRITE_PROBE_INTERVAL_S = 10.0
"""The readiness check writes to the spool when its last write was longer ago."""
MIN_FREE_BYTES = 1 << 20


class BacklogStats(NamedTuple):
    """What waits in the spool for delivery."""

    runs: Counter[RunState]
    stale_runs: int
    """Runs closed as stale whose end the API has not accepted yet."""
    rows: int
    parked_rows: int
    """Rows of parked runs among them."""
    objects: int
    oldest_s: float
    """Age of the oldest row, without those of parked runs; 0: there is none."""


@dataclass(kw_only=True)
class Health:
    """Checks a running uploader. Each check returns an error text, empty when all is well. Thread-safe."""

    spool: Spool
    directory: str
    last_intake_loop_at: Callable[[], float]
    spool_unavailable: Callable[[], tuple[float, str] | None]
    last_main_loop_at: Callable[[], float]
    unhealthy_after_s: float
    clock: Clock

    def __post_init__(self) -> None:
        self._written_at = self.clock.monotonic()
        self.is_stopping = False

    def liveness_error(self) -> str:
        """Return why the process should be restarted. Takes no lock."""
        now = self.clock.monotonic()
        loops = (("intake", self.last_intake_loop_at()), ("dispatcher", self.last_main_loop_at()))
        return "; ".join(
            f"the {name} has hung for {now - at:.0f} s" for name, at in loops if now - at > HANG_THRESHOLD_S
        )

    def readiness_error(self) -> str:
        """Return why no rows can be taken now."""
        if self.is_stopping:
            return "the uploader is stopping"
        try:
            free = free_bytes(self.directory)
            if free < MIN_FREE_BYTES:
                return f"the disk of the spool {self.directory} has {free} bytes left"
            self._require_writable()
        except SpoolError as error:
            return str(error)
        except OSError as error:
            return f"the spool {self.directory} cannot be checked: {error.strerror}"
        return ""

    def health_error(self) -> str:
        """Return why rows do not reach their destination."""
        oldest_s = self.backlog().oldest_s
        if oldest_s <= self.unhealthy_after_s:
            return ""
        return f"the oldest row that is not delivered has waited for {oldest_s:.0f} s; see `sentinel-uploader status`"

    def backlog(self) -> BacklogStats:
        """Count what waits in the spool."""
        now = self.clock.now()
        states: Counter[RunState] = Counter()
        stale = rows = parked_rows = objects = 0
        oldest_at = now
        for record, undelivered, batches, since in self.spool.view(
            lambda run: (run.record, run.undelivered_rows, run.pending_batches, run.waiting_since)
        ):
            states[record.state] += 1
            stale += record.closed_as_stale
            rows += undelivered
            objects += batches
            if record.state not in OPEN_STATES:
                parked_rows += undelivered
            elif since is not None:
                oldest_at = min(oldest_at, since)
        return BacklogStats(states, stale, rows, parked_rows, objects, now - oldest_at)

    def _require_writable(self) -> None:
        now = self.clock.monotonic()
        unavailable = self.spool_unavailable()
        if unavailable is not None:
            failed_at, text = unavailable
            if now - failed_at < WRITE_PROBE_INTERVAL_S:
                raise SpoolError(text)
        if now - self._written_at < WRITE_PROBE_INTERVAL_S:
            self.spool.require_room()
            return
        self.spool.require_writable()
        self._written_at = self.clock.monotonic()


def free_bytes(directory: str) -> int:
    """Return the bytes that this user may still write there, 0 on a read-only file system; raises `OSError`."""
    found = os.statvfs(directory)
    return 0 if found.f_flag & os.ST_RDONLY else found.f_bavail * found.f_frsize
