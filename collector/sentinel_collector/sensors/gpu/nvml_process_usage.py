"""The processes' use of one NVIDIA GPU, from NVML's process samples of successive calls.

`nvmlDeviceGetProcessUtilization` returns one sample for each process that used the device since a given time (UNIX
µs), with the mean of its SM utilisation (percent) since then. Without a time it averages over the driver's whole
buffer, which is many seconds. This is the behaviour of NVML's reference and of current drivers. Entries with impossible
values (2147483632 %) or old times occur and are left out.
"""

from collections.abc import Iterable
from typing import NamedTuple

SAMPLE_LAG_US = 250_000
"""The possible age of the driver's newest sample. Its sample period is 1/6 to 1 s, depending on the product."""
HOLD_S = 0.9
"""How long a figure is repeated when the driver has no newer one, because we ask more often than it samples. It is just
below the longest sample period, so that at one reading a second none is repeated."""


class UsageSample(NamedTuple):
    """One process's mean SM utilisation (percent) up to `time_us` (UNIX microseconds)."""

    pid: int
    time_us: int
    percent: int


class ProcessUsage:
    """Turns samples into a figure per process and reading, 0..1 of the device."""

    def __init__(self) -> None:
        self._since_us = 0
        self._asked_at: float | None = None
        self._found_at: float | None = None
        self._usage: dict[int, float] = {}

    def since_us(self, *, now_us: int, monotonic: float) -> int:
        """Return the time stamp to ask from: normally that of the newest sample.

        It is not before the previous reading, because the driver would spread a burst over an idle time before it. And
        it is not in the future, in case the wall clock was set back.
        """
        elapsed_s = 1.0 if self._asked_at is None else monotonic - self._asked_at
        self._asked_at = monotonic
        earliest_us = now_us - int(elapsed_s * 1e6) - SAMPLE_LAG_US
        since_us = max(self._since_us, earliest_us)
        self._since_us = earliest_us if since_us > now_us else since_us
        return self._since_us

    def update(self, samples: Iterable[UsageSample], *, monotonic: float) -> None:
        """Take the samples since `since_us`; without any, all processes are at zero after `HOLD_S`."""
        per_pid: dict[int, list[UsageSample]] = {}
        for sample in samples:
            if sample.time_us > self._since_us and 0 <= sample.percent <= 100:
                per_pid.setdefault(sample.pid, []).append(sample)
        if per_pid:
            self._usage = {pid: _mean(own, self._since_us) for pid, own in per_pid.items()}
            self._since_us = max(sample.time_us for own in per_pid.values() for sample in own)
            self._found_at = monotonic
        elif self._found_at is None or monotonic - self._found_at >= HOLD_S:
            self._usage = {}

    def of(self, pids: Iterable[int]) -> float:
        """Return the usage of these processes together, at most the whole device."""
        usage = self._usage
        return min(1.0, sum(usage.get(pid, 0.0) for pid in pids)) if usage else 0.0


def _mean(samples: list[UsageSample], since_us: int) -> float:
    """Return the mean (0..1) of a process's samples, weighted with the time since the sample before."""
    samples.sort(key=lambda sample: sample.time_us)
    weighted, before_us = 0.0, since_us
    for sample in samples:
        weighted += sample.percent * (sample.time_us - before_us)
        before_us = sample.time_us
    return weighted / (before_us - since_us) / 100
