"""Finds the GPUs of all vendors and makes one sensor of them.

Where there is no GPU nothing beyond this module and `ctypes` is imported.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from sentinel_protocol.common.clock import Clock

if TYPE_CHECKING:
    from sentinel_collector.sensors.gpu.amd import AmdCard
    from sentinel_collector.sensors.gpu.devices import GpuSource
    from sentinel_collector.sensors.gpu.worker import GpuWorker, OpenedSources

START_WAIT_S = 0.5
"""How long opening waits for a driver. Without persistence mode NVML takes seconds; it then reports later."""


def open_gpu_sensor(
    *, clock: Clock, warn: Callable[[str], None], sysfs: str = "/sys", proc: str = "/proc"
) -> "GpuWorker | None":
    """Return a `GpuSensor` for all GPUs, `None` where there are none (the columns are zero then).

    A driver that is installed but does not start counts as no GPU and causes one warning. For one that takes longer
    than `START_WAIT_S` to start, all figures are unknown until it has started.
    """
    with_nvidia = nvml_loads()
    cards = _amd_cards(sysfs)
    if not with_nvidia and not cards:
        return None
    from sentinel_collector.sensors.gpu.worker import GpuWorker

    open_sources = partial(_open_sources, with_nvidia=with_nvidia, cards=cards, clock=clock, proc=proc)
    sensor = GpuWorker(open_sources, clock=clock, warn=warn)
    if sensor.wait_until_open(START_WAIT_S) and not sensor.has_devices():
        sensor.close()
        return None
    return sensor


def nvml_loads() -> bool:
    """Return whether the NVIDIA driver's library loads. Importing pynvml to find out would cost 13 MiB."""
    import ctypes

    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


def _amd_cards(sysfs: str) -> "list[AmdCard]":
    if not os.path.isdir(f"{sysfs}/class/drm"):
        return []
    from sentinel_collector.sensors.gpu.amd import find_amd_cards

    return find_amd_cards(sysfs)


def _open_sources(*, with_nvidia: bool, cards: "list[AmdCard]", clock: Clock, proc: str) -> "OpenedSources":
    from sentinel_collector.sensors.gpu.devices import GpuFaultError
    from sentinel_collector.sensors.gpu.worker import OpenedSources

    sources: list[GpuSource] = []
    warnings: list[str] = []
    if with_nvidia:
        from sentinel_collector.sensors.gpu.nvidia import NvidiaGpus

        try:
            nvidia = NvidiaGpus(clock=clock, proc=proc)
        except GpuFaultError as fault:
            warnings.append(str(fault))
        else:
            if nvidia.facts():
                sources.append(nvidia)
    if cards:
        from sentinel_collector.sensors.gpu.amd import AmdGpus

        sources.append(AmdGpus(cards, clock=clock, proc=proc))
    return OpenedSources(sources, warnings)
