"""Counters and histograms of this process. Thread-safe.

They do not use `prometheus_client`: the base package works without it, and importing it takes 9 MiB and 35 ms. Each
metric is described once, in `Counters`. `prometheus.py` exports it as `sentinel_uploader_NAME`, and
`docs/operation.md` lists it.
"""

import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sentinel_protocol.wire.messages import RejectCode
from sentinel_uploader.limits import LIMIT_REASONS

MAX_SERIES = 256
"""Label values may come from a server or a client. Beyond so many combinations, all others count as `OTHER`."""
MAX_CLIENTS = 256
OTHER = "other"
UNNAMED = "unnamed"
"""The name of clients without keys."""
COMMIT_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
PUT_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
_OFFSET_WINDOW_S = 60.0
REJECT_REASONS = (
    # Connections (`server/connection_guard.py`, `server/zap_authenticator.py`) and messages.
    *("silent", "key", "revoked", "descriptors", "malformed", "bad", "gap", "user"),
    # Hellos (`intake/validation.py`).
    *("version", "incarnation", "interval", "sequence"),
    *LIMIT_REASONS,
)
"""Why a connection or a message is rejected, beside the codes that its sender gets."""


class Counter:
    """A number that only grows, for each combination of label values."""

    __slots__ = ("_lock", "_values", "help", "labels", "name")

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self.name = name
        self.help = text
        self.labels = labels
        self._lock = threading.Lock()
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0}

    def add(self, amount: float = 1, *values: str) -> None:
        """Add to the number with these label values."""
        with self._lock:
            if values not in self._values and len(self._values) >= MAX_SERIES:
                values = (OTHER,) * len(self.labels)
            self._values[values] = self._values.get(values, 0) + amount

    def value(self, *values: str) -> float:
        """Return the number with these label values."""
        with self._lock:
            return self._values.get(values, 0)

    def all(self) -> dict[tuple[str, ...], float]:
        """Return a copy of all numbers by label values."""
        with self._lock:
            return dict(self._values)


class Histogram:
    """Durations, in buckets."""

    __slots__ = ("_counts", "_lock", "_total_s", "bounds_s", "help", "name")

    def __init__(self, name: str, text: str, bounds_s: Sequence[float]) -> None:
        self.name = name
        self.help = text
        self.bounds_s = bounds_s
        self._lock = threading.Lock()
        self._counts = [0] * (len(bounds_s) + 1)
        self._total_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        with self._lock:
            self._counts[bisect_left(self.bounds_s, seconds)] += 1
            self._total_s += seconds

    def all(self) -> tuple[list[int], float]:
        """Return the cumulative counts for each bound and for all, and the sum of all durations."""
        with self._lock:
            counts, total_s = list(self._counts), self._total_s
        for index in range(1, len(counts)):
            counts[index] += counts[index - 1]
        return counts, total_s


class Client(NamedTuple):
    """One client: last message (UNIX seconds), and how far its clock is ahead of ours (`None`: no row yet)."""

    name: str
    seen_at: float
    clock_offset_s: float | None


@dataclass(slots=True)
class _ClientState:
    seen_at: float = 0.0
    window_at: float = 0.0
    best_s: float | None = None
    earlier_s: float | None = None

    @property
    def offset_s(self) -> float | None:
        return max((value for value in (self.best_s, self.earlier_s) if value is not None), default=None)


class ClientActivity:
    """Last message and clock offset of the `MAX_CLIENTS` clients that were active last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._clients: OrderedDict[str, _ClientState] = OrderedDict()

    def record(self, name: str, now: float, row_time: float | None = None) -> None:
        """Record a message; `row_time` is the timestamp of its newest row, `now` our time (both UNIX seconds).

        A row is never sent before it was sampled, but may be sent long after. So the offset is the largest difference
        of the last one to two minutes.
        """
        with self._lock:
            state = self._clients.get(name or UNNAMED)
            if state is None:
                state = self._clients[name or UNNAMED] = _ClientState()
                if len(self._clients) > MAX_CLIENTS:
                    self._clients.popitem(last=False)
            self._clients.move_to_end(name or UNNAMED)
            state.seen_at = now
            if row_time is None:
                return
            # Negative when our own clock was set back.
            if not 0 <= now - state.window_at < _OFFSET_WINDOW_S:
                state.window_at, state.earlier_s, state.best_s = now, state.best_s, None
            offset_s = row_time - now
            state.best_s = offset_s if state.best_s is None else max(state.best_s, offset_s)

    def all(self) -> list[Client]:
        """Return all clients that are remembered."""
        with self._lock:
            return [Client(name, state.seen_at, state.offset_s) for name, state in self._clients.items()]


class Counters:
    """All metrics that events change."""

    def __init__(self) -> None:
        self.messages = Counter("messages_received", "Messages from collectors, whatever was in them")
        self.rows_received = Counter("rows_received", "Rows in sound messages, repeated ones included")
        self.rows_duplicate = Counter("rows_duplicate", "Rows that came again and were dropped")
        self.rows_acknowledged = Counter("rows_acknowledged", "Rows that were made durable")
        self.rows_delivered = Counter("rows_delivered", "Rows that storage, or the API inline, has confirmed")
        self.rejected = Counter("rejected", "Messages that were not taken", "reason")
        self.client_rejected = Counter(
            "client_rejected", "Messages of a client that a limit did not let through", "client", "reason"
        )
        self.answers_lost = Counter("answers_lost", "Answers to collectors that were gone or did not read")
        self.spool_failures = Counter("spool_failures", "Groups of messages that the spool did not take", "reason")
        self.commit_s = Histogram("commit_seconds", "Time to make a group of messages durable", COMMIT_BOUNDS_S)
        self.objects_delivered = Counter("objects_delivered", "Objects that storage has confirmed")
        self.object_bytes_delivered = Counter("object_bytes_delivered", "Bytes of these objects")
        self.put_s = Histogram("put_seconds", "Time of a confirmed PUT", PUT_BOUNDS_S)
        self.refreshes = Counter("refreshes", "Refreshed storage credentials")
        self.retries = Counter("retries", "Failed steps that are tried again", "kind", "code")
        self.quarantined = Counter("runs_parked", "Runs that were put aside for a person", "kind", "code")
        self.registered = Counter("runs_registered", "Runs that the API has registered")
        self.closed_as_stale = Counter(
            "runs_closed_as_stale", "Runs that were closed because their collector was silent"
        )
        self.ended = Counter("runs_ended", "Runs that have ended", "state")
        self.clients = ClientActivity()
        self._initialise_series()

    def count_rejection(self, client: str, reason: str) -> None:
        """Count a message that a limit of its client rejected."""
        self.rejected.add(1, reason)
        self.client_rejected.add(1, client or UNNAMED, reason)

    def counters(self) -> Iterator[Counter]:
        """Yield all counters."""
        return (value for value in vars(self).values() if isinstance(value, Counter))

    def histograms(self) -> Iterator[Histogram]:
        """Yield all histograms."""
        return (value for value in vars(self).values() if isinstance(value, Histogram))

    def _initialise_series(self) -> None:
        """Create the series that alerts use. Prometheus sees no increase in a series that begins at 1."""
        for reason in (*RejectCode, *REJECT_REASONS):
            self.rejected.add(0, reason)
        for reason in ("full", "unusable"):
            self.spool_failures.add(0, reason)
        for kind in ("register", "refresh", "finish"):
            for code in ("401", "403"):
                self.retries.add(0, kind, code)
