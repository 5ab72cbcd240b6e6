"""Finds the GPUs of all vendors and makes one sensor of them.

Where there is no GPU nothing beyond this module and `ctypes` is imported.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from sentinel_collector.procfs import read_file
from sentinel_protocol.common.clock import Clock

if TYPE_CHECKING:
    from sentinel_collector.sensors.gpu.amd import AmdCard
    from sentinel_collector.sensors.gpu.devices import GpuSource
    from sentinel_collector.sensors.gpu.worker import GpuWorker, OpenedSources

_NVIDIA = b"0x10de"
_DRIVER_NOT_LOADED = 9
"""`NVML_ERROR_DRIVER_NOT_LOADED` of nvml.h."""
START_WAIT_S = 0.5
"""How long opening waits for a driver. Without persistence mode NVML takes seconds; it then reports later."""


def open_gpu_sensor(
    *, clock: Clock, warn: Callable[[str], None], sysfs: str = "/sys", proc: str = "/proc"
) -> "GpuWorker | None":
    """Return a `GpuSensor` for all GPUs, `None` where there are none (the columns are zero then).

    While a driver does not start, all figures are unknown, and it is tried again. A library without a kernel driver and
    without a device (an image for GPUs on another machine) counts as no GPU.
    """
    with_nvidia = nvml_loads()
    cards = _amd_cards(sysfs)
    if not with_nvidia and not cards:
        return None
    from sentinel_collector.sensors.gpu.worker import GpuWorker

    open_sources = partial(_open_sources, with_nvidia=with_nvidia, cards=cards, clock=clock, proc=proc, sysfs=sysfs)
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


def _has_nvidia_device(sysfs: str) -> bool:
    """Whether a PCI device is NVIDIA's, or the list of devices cannot be read."""
    try:
        devices = os.listdir(f"{sysfs}/bus/pci/devices")
        return any(read_file(f"{sysfs}/bus/pci/devices/{name}/vendor").strip() == _NVIDIA for name in devices)
    except OSError:
        return True


def _open_sources(*, with_nvidia: bool, cards: "list[AmdCard]", clock: Clock, proc: str, sysfs: str) -> "OpenedSources":
    from sentinel_collector.sensors.gpu.worker import OpenedSources

    sources: list[GpuSource] = []
    warnings: list[str] = []
    if with_nvidia:
        from sentinel_collector.sensors.gpu.nvidia import NvidiaGpus

        nvidia = NvidiaGpus(clock=clock, proc=proc)
        if nvidia.start_error == _DRIVER_NOT_LOADED and not _has_nvidia_device(sysfs):
            warnings.append(nvidia.start_fault)
        elif nvidia.start_fault or nvidia.facts():
            sources.append(nvidia)
    if cards:
        from sentinel_collector.sensors.gpu.amd import AmdGpus

        sources.append(AmdGpus(cards, clock=clock, proc=proc))
    return OpenedSources(sources, warnings)
