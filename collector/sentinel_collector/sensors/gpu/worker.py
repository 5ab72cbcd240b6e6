"""Reads the GPUs in a thread of their own, so that a driver that hangs blocks only that thread."""

import threading
from collections.abc import Callable, Collection
from typing import NamedTuple

from sentinel_collector.sensors.gpu.devices import DeviceReading, GpuSource, describe_devices, sum_devices
from sentinel_collector.sensors.interfaces import GpuReading
from sentinel_protocol.common.clock import Clock

READ_BUDGET_S = 0.02
"""How long a reading may block its caller. Most drivers need less than 5 ms for all their devices."""
HUNG_AFTER_S = 1.0
MAX_AGE_INTERVALS = 2.5
"""A reading may be two intervals old; the half is for jitter."""

UNKNOWN = GpuReading(None, None, None, None, None, None)


class OpenedSources(NamedTuple):
    """The opened sources, and warnings about those that could not be opened."""

    sources: list[GpuSource]
    warnings: list[str]


class _Result(NamedTuple):
    """A reading, the monotonic time of its request, and the error if it failed."""

    asked_at: float
    reading: GpuReading
    fault: str | None
    lost: tuple[str, ...] = ()
    """Why single devices are left out of the reading."""


class GpuWorker:
    """The `GpuSensor` of a machine with GPUs: one daemon thread opens the sources and answers one request at a time.

    While a call hangs, no other one is made, callers are not blocked, and all figures are unknown. After it returns,
    readings go on. Each warning is given once, through `warn`, on the caller's thread.
    """

    def __init__(self, open_sources: Callable[[], OpenedSources], *, clock: Clock, warn: Callable[[str], None]) -> None:
        self._clock = clock
        self._warn = warn
        self._open_sources = open_sources
        self._warned: set[str] = set()
        self._last_read_at: float | None = None
        self._facts: dict[str, str | int | float] = {}
        self._asked = threading.Event()
        self._answered = threading.Event()
        self._lock = threading.Lock()  # Guards the attributes below: the thread and its callers write them.
        self._busy_since: float | None = clock.monotonic()
        self._opened: OpenedSources | None = None
        self._pids: Collection[int] = ()
        self._finished: _Result | None = None
        self._is_closed = False
        threading.Thread(target=self._serve, name="gpu", daemon=True).start()

    def wait_until_open(self, timeout_s: float) -> bool:
        """Wait until the sources are open; False when the driver takes longer."""
        opened = self._clock.wait_for(self._answered, timeout_s)
        self._warn_about_sources()
        return opened

    def has_devices(self) -> bool:
        """Return whether there is a source, as far as it is known by now."""
        return bool(self._opened and self._opened.sources)

    def gpu_info(self) -> dict[str, str | int | float]:
        """Return `host_gpu_model`, `host_gpu_count` and `host_gpu_memory_mib` (all GPUs together) as far as known."""
        return dict(self._facts)

    def read(self, pids: Collection[int]) -> GpuReading:
        """Return the figures of now, or of at most two intervals ago when the driver is slow, else unknown ones.

        Blocks for at most `READ_BUDGET_S`, and not at all while an earlier call has not returned.
        """
        now = self._clock.monotonic()
        interval_s = None if self._last_read_at is None else now - self._last_read_at
        self._last_read_at = now
        if self._ask(frozenset(pids), now):
            self._clock.wait_for(self._answered, READ_BUDGET_S)
        with self._lock:
            finished, busy_since = self._finished, self._busy_since
        self._warn_about_sources()
        if busy_since is not None and self._clock.monotonic() - busy_since >= HUNG_AFTER_S:
            self._warn_once("GPU: a call to the driver does not return; the GPU fields stay empty until it does")
            return UNKNOWN
        if finished is None:
            return UNKNOWN
        if finished.fault is not None:
            self._warn_once(f"GPU: {finished.fault}; the GPU fields stay empty until it can be read again")
        for fault in finished.lost:
            self._warn_once(f"GPU: {fault}; it is left out of the GPU fields until it can be read again")
        age_s = now - finished.asked_at
        if age_s > 0 and (interval_s is None or age_s > MAX_AGE_INTERVALS * interval_s):
            return UNKNOWN
        return finished.reading

    def close(self) -> None:
        """Let the thread end after its call. It never keeps the process alive."""
        with self._lock:
            self._is_closed = True
        self._asked.set()

    def _ask(self, pids: Collection[int], now: float) -> bool:
        with self._lock:
            if self._busy_since is not None or self._is_closed:
                return False
            self._busy_since = now
            self._pids = pids
            self._answered.clear()
        self._asked.set()
        return True

    def _serve(self) -> None:
        try:
            opened = self._open_sources()
            facts = _facts(opened.sources)
        except Exception as error:  # noqa: BLE001 - any error of a driver becomes a warning
            opened, facts = OpenedSources([], [f"{type(error).__name__}: {error}"]), {}
        with self._lock:
            self._opened, self._facts, self._busy_since = opened, facts, None
            self._answered.set()
        while (request := self._next_request()) is not None:
            finished = _read(opened.sources, *request)
            if not facts and finished.fault is None:
                # A driver has started later.
                facts = _facts(opened.sources)
            with self._lock:
                self._finished, self._facts, self._busy_since = finished, facts, None
                self._answered.set()

    def _next_request(self) -> tuple[Collection[int], float] | None:
        """Wait for a request and return its processes and time; `None` after `close`."""
        while True:
            self._clock.wait_for(self._asked, None)
            self._asked.clear()
            with self._lock:
                if self._is_closed:
                    return None
                if self._busy_since is not None:
                    return self._pids, self._busy_since

    def _warn_about_sources(self) -> None:
        for warning in self._opened.warnings if self._opened else ():
            self._warn_once(f"GPU: {warning}; it is not measured")

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._warn(text)


def _facts(sources: list[GpuSource]) -> dict[str, str | int | float]:
    devices = [fact for source in sources for fact in source.facts()]
    return describe_devices(devices) if devices else {}


def _read(sources: list[GpuSource], pids: Collection[int], asked_at: float) -> _Result:
    devices: list[DeviceReading] = []
    faults = []
    for source in sources:
        try:
            devices += source.devices(pids)
        except Exception as error:  # noqa: BLE001 - any error of a driver becomes a warning
            faults.append(str(error) or type(error).__name__)
    if not devices:
        return _Result(asked_at, UNKNOWN, faults[0] if faults else None)
    faults += [device.fault for device in devices if device.fault]
    return _Result(asked_at, sum_devices(devices), None, tuple(faults))
