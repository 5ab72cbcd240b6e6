"""What still waits of runs that are long over: told to their owner's next collector, since nobody looks at a log."""

from collections import Counter

from sentinel_protocol.common.clock import Clock
from sentinel_uploader.runs.lifecycle import RunState
from sentinel_uploader.spool.run_record import RunRecord
from sentinel_uploader.spool.store import Spool

_GRACE_S = 60.0
"""A run that ended so short a time ago is being delivered."""
_RECOUNT_INTERVAL_S = 0.1
"""Thousands of collectors may say `Hello` at once."""


class UndeliveredRunCounter:
    """Counts each owner's runs that have ended and are not delivered; not thread-safe."""

    def __init__(self, spool: Spool, clock: Clock) -> None:
        self._spool = spool
        self._clock = clock
        self._counts: Counter[str] = Counter()
        self._due_at = clock.monotonic()

    def count(self, owner: str) -> int:
        """Return how many runs of the owner's wait; a tenth of a second old at most."""
        now = self._clock.monotonic()
        if now >= self._due_at:
            self._due_at = now + _RECOUNT_INTERVAL_S
            ended_before = self._clock.now() - _GRACE_S
            with self._spool.lock:
                records = [run.record for run in self._spool.runs.values()]
            self._counts = Counter(record.owner for record in records if _is_undelivered(record, ended_before))
        return self._counts[owner]


def _is_undelivered(record: RunRecord, ended_before: float) -> bool:
    if record.state is RunState.QUARANTINED:
        return True
    return record.finish is not None and not record.is_over and record.finish.time < ended_before
