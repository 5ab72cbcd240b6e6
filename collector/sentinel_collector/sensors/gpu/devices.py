"""Figures of single GPUs of any vendor, and their sums."""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from sentinel_collector.sensors.interfaces import GpuReading
from sentinel_protocol.common.errors import SentinelStreamError


class GpuFaultError(SentinelStreamError):
    """A GPU cannot be read any more: it is lost, off the bus, or its driver is broken."""


class DeviceReading(NamedTuple):
    """One GPU: `usage` 0..1 of the device, memory in MiB (2^20); `process_*` is the tracked tree's share.

    `None` is unknown: the device, its mode or the permissions do not allow the figure. Without a tracked process the
    share is zero. `fault` says why a device cannot be read at all.
    """

    usage: float | None
    vram_mib: float | None
    process_usage: float | None
    process_vram_mib: float | None
    fault: str = ""


def unreadable(fault: str) -> DeviceReading:
    """Return the reading of a device that cannot be read."""
    return DeviceReading(None, None, None, None, fault)


class DeviceFacts(NamedTuple):
    """Model and memory of a GPU; `None` where unknown."""

    model: str | None
    memory_mib: float | None


class GpuSource(Protocol):
    """All GPUs of one vendor. Both methods may block for as long as the driver does."""

    def devices(self, pids: Collection[int]) -> list[DeviceReading]:
        """Read every device now. Raises `GpuFaultError` when none can be read."""

    def facts(self) -> list[DeviceFacts]:
        """Return the facts of each device; does not raise for a device that cannot be read."""


def sum_devices(devices: Sequence[DeviceReading]) -> GpuReading:
    """Return the columns' figures: sums over the devices that can be read. One unknown figure makes its sum unknown.

    "Utilized" counts devices with a usage above zero, for the system and for the tree: a process that only holds memory
    does not use the GPU.
    """
    readable = [device for device in devices if not device.fault]
    usage = [device.usage for device in readable]
    process_usage = [device.process_usage for device in readable]
    return GpuReading(
        system_usage=sum_or_unknown(usage),
        system_vram_mib=sum_or_unknown([device.vram_mib for device in readable]),
        system_utilized=_count_above_zero(usage),
        process_usage=sum_or_unknown(process_usage),
        process_vram_mib=sum_or_unknown([device.process_vram_mib for device in readable]),
        process_utilized=_count_above_zero(process_usage),
    )


def describe_devices(devices: Sequence[DeviceFacts]) -> dict[str, str | int | float]:
    """Return the contract's `host_gpu_*` fields without the unknown ones.

    The model is the most frequent one (of equally frequent ones the first). The memory is that of all GPUs together, in
    MiB, as the existing Python client has it.
    """
    described: dict[str, str | int | float] = {"host_gpu_count": len(devices)}
    models = Counter(device.model for device in devices if device.model)
    if models:
        described["host_gpu_model"] = models.most_common(1)[0][0]
    memory_mib = sum_or_unknown([device.memory_mib for device in devices])
    if devices and memory_mib is not None:
        described["host_gpu_memory_mib"] = round(memory_mib)
    return described


def sum_or_unknown(figures: Sequence[float | None]) -> float | None:
    """Return the sum; `None` when a figure is unknown."""
    known = [figure for figure in figures if figure is not None]
    return math.fsum(known) if len(known) == len(figures) else None


def _count_above_zero(figures: Sequence[float | None]) -> int | None:
    known = [figure for figure in figures if figure is not None]
    return sum(figure > 0 for figure in known) if len(known) == len(figures) else None
