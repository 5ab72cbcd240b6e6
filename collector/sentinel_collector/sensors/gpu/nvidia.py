"""NVIDIA GPUs through NVML (the driver's `libnvidia-ml.so.1`, called through pynvml), never through `nvidia-smi`.

pynvml is imported when the first `NvidiaGpus` is made.

MIG: the calls used here have no utilisation for a GPU in MIG mode or for its instances, so usage and "utilized" are
unknown there. Memory is the sum over the instances that this process can see.
"""

import os
from collections.abc import Collection
from typing import Any

from sentinel_collector.procfs import INITIAL_PID_NAMESPACE, link_target
from sentinel_collector.sensors.gpu.devices import (
    DeviceFacts,
    DeviceReading,
    GpuFaultError,
    sum_or_unknown,
    unreadable,
)
from sentinel_collector.sensors.gpu.nvml_process_usage import ProcessUsage, UsageSample
from sentinel_protocol.common.clock import Clock

REOPEN_AFTER_S = 30.0
"""How often NVML is started again while it does not start or readings fail: a GPU that was reset is found again."""
IDLE_VRAM_MIB = 64.0
"""More memory than the driver keeps on an idle GPU: some process uses the GPU."""

_MIB = 1 << 20

_PROCESS_LISTS = (
    ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2"),
    ("nvmlDeviceGetGraphicsRunningProcesses_v3", "nvmlDeviceGetGraphicsRunningProcesses_v2"),
    ("nvmlDeviceGetMPSComputeRunningProcesses_v3", "nvmlDeviceGetMPSComputeRunningProcesses_v2"),
)
"""Newest first. Drivers before release 510 have no third version."""


class NvidiaGpus:
    """Every GPU that NVML shows. One thread reads them. NVML may start later than `__init__`."""

    def __init__(self, *, clock: Clock, proc: str) -> None:
        import pynvml

        self._nvml: Any = pynvml
        self._clock = clock
        self._proc = proc
        self._is_nested = link_target(f"{proc}/self/ns/pid") != INITIAL_PID_NAMESPACE
        self._unanswered = frozenset(
            {
                pynvml.NVML_ERROR_INVALID_ARGUMENT,
                pynvml.NVML_ERROR_NOT_SUPPORTED,
                pynvml.NVML_ERROR_NO_PERMISSION,
                pynvml.NVML_ERROR_NO_DATA,
                pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
                pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
                pynvml.NVML_ERROR_INSUFFICIENT_SIZE,  # A list grew between NVML's two calls.
            }
        )
        self._failing = False
        self._handles: dict[int, Any] = {}
        self._usage: list[ProcessUsage] = []
        self._most_devices = 0
        self.start_error: int | None = None
        """NVML's error code while it has not started."""
        self.start_fault = ""
        try:
            self._open()
        except GpuFaultError as fault:
            self._failing = True
            self.start_fault = str(fault)

    def devices(self, pids: Collection[int]) -> list[DeviceReading]:
        """Read every device; raises `GpuFaultError` when none can be read."""
        if self._failing and self._clock.monotonic() - self._opened_at >= REOPEN_AFTER_S:
            self._reopen()
        self._failing = True
        if self.start_fault:
            raise GpuFaultError(self.start_fault)
        readings = [self._read(index, pids) for index in range(len(self._usage))]
        lost = self._most_devices - len(readings)
        readings += [unreadable(f"NVML: {len(readings)} of {self._most_devices} GPUs are left")] * lost
        faults = [reading.fault for reading in readings if reading.fault]
        if faults and len(faults) == len(readings):
            raise GpuFaultError(faults[0])
        self._failing = bool(faults)
        return readings

    def facts(self) -> list[DeviceFacts]:
        """Return name and memory of every device, `None` for a lost one."""
        return [self._facts(index) for index in range(len(self._usage))]

    def _open(self) -> None:
        self._opened_at = self._clock.monotonic()
        try:
            self._nvml.nvmlInit()
            count = self._nvml.nvmlDeviceGetCount()
        except self._nvml.NVMLError as error:
            self.start_error, self.start_fault = error.value, f"NVML: {error}"
            raise GpuFaultError(self.start_fault) from error
        self.start_error, self.start_fault = None, ""
        self._handles = {}
        self._usage = [ProcessUsage() for _ in range(count)]
        self._most_devices = max(self._most_devices, count)

    def _reopen(self) -> None:
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError as error:
            if error.value != self._nvml.NVML_ERROR_UNINITIALIZED:
                raise GpuFaultError(f"NVML: {error}") from error
        self._open()

    def _handle(self, index: int) -> Any:
        handle = self._handles.get(index)
        if handle is None:
            handle = self._handles[index] = self._nvml.nvmlDeviceGetHandleByIndex(index)
        return handle

    def _read(self, index: int, pids: Collection[int]) -> DeviceReading:
        try:
            handle = self._handle(index)
            parts = self._mig_instances(handle)
            if parts is None:
                return self._read_whole(handle, self._usage[index], pids)
            return self._read_parts(parts, pids)
        except self._nvml.NVMLError as error:
            return unreadable(f"NVIDIA GPU {index}: {error}")

    def _read_whole(self, handle: Any, usage: ProcessUsage, pids: Collection[int]) -> DeviceReading:
        rates = self._ask("nvmlDeviceGetUtilizationRates", handle)
        memory = self._memory(handle)
        reading = DeviceReading(
            usage=None if rates is None else rates.gpu / 100,
            vram_mib=None if memory is None else memory.used / _MIB,
            process_usage=0.0,
            process_vram_mib=0.0,
        )
        if not pids:
            return reading
        listed = self._memory_by_pid(handle)
        if listed is not None and self._pids_are_foreign(listed, reading):
            return reading._replace(process_usage=None, process_vram_mib=None)
        return reading._replace(
            process_usage=self._process_usage(handle, usage, pids),
            process_vram_mib=_vram_of(listed, pids),
        )

    def _read_parts(self, parts: list[Any], pids: Collection[int]) -> DeviceReading:
        used = [self._memory(part) for part in parts]
        used_mib = [None if memory is None else memory.used / _MIB for memory in used]
        own_mib: list[float | None] = []
        for part, vram_mib in zip(parts, used_mib, strict=True) if pids else ():
            listed = self._memory_by_pid(part)
            foreign = listed is not None and self._pids_are_foreign(listed, DeviceReading(None, vram_mib, None, None))
            own_mib.append(None if foreign else _vram_of(listed, pids))
        return DeviceReading(None, sum_or_unknown(used_mib), None if pids else 0.0, sum_or_unknown(own_mib))

    def _mig_instances(self, handle: Any) -> list[Any] | None:
        """Return the handles of the GPU's MIG instances, `None` when it is not in MIG mode."""
        mode = self._ask("nvmlDeviceGetMigMode", handle)
        if mode is None or mode[0] != self._nvml.NVML_DEVICE_MIG_ENABLE:
            return None
        parts = []
        for index in range(self._ask("nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
            try:
                part = self._ask("nvmlDeviceGetMigDeviceHandleByIndex", handle, index)
            except self._nvml.NVMLError_NotFound:
                continue  # No instance, or one of another container.
            if part is not None:
                parts.append(part)
        return parts

    def _memory(self, handle: Any) -> Any:
        """Return total and used bytes, by version 2 if possible: its `used` leaves out the driver's reserve."""
        memory = self._ask("nvmlDeviceGetMemoryInfo", handle, self._nvml.nvmlMemory_v2)
        return memory if memory is not None else self._ask("nvmlDeviceGetMemoryInfo", handle)

    def _memory_by_pid(self, handle: Any) -> dict[int, int | None] | None:
        """Return bytes per process (`None`: unknown). A process in several lists counts once, with the highest."""
        by_pid: dict[int, int | None] = {}
        answered = False
        for versions in _PROCESS_LISTS:
            processes = next((found for name in versions if (found := self._ask(name, handle)) is not None), None)
            if processes is None:
                continue
            answered = True
            for process in processes:
                known = by_pid.get(process.pid)
                if known is None or (process.usedGpuMemory or 0) > known:
                    by_pid[process.pid] = process.usedGpuMemory
        return by_pid if answered else None

    def _process_usage(self, handle: Any, usage: ProcessUsage, pids: Collection[int]) -> float | None:
        now = self._clock.monotonic()
        since_us = usage.since_us(now_us=int(self._clock.now() * 1e6), monotonic=now)
        try:
            found = self._ask("nvmlDeviceGetProcessUtilization", handle, since_us)
        except self._nvml.NVMLError as error:
            # pynvml raises NVML_SUCCESS when there is nothing to return.
            if error.value not in {self._nvml.NVML_ERROR_NOT_FOUND, self._nvml.NVML_SUCCESS}:
                raise
            found = []
        if found is None:
            return None
        usage.update((UsageSample(one.pid, one.timeStamp, one.smUtil) for one in found), monotonic=now)
        return usage.of(pids)

    def _pids_are_foreign(self, listed: Collection[int], device: DeviceReading) -> bool:
        """Return whether NVML's process ids are useless here, as in some containers.

        Some drivers list the host's ids in a container, which may be those of other processes here. Ids that `/proc`
        does not know show this. Other drivers list no processes. A busy GPU without processes shows that.
        """
        if not self._is_nested:
            return False
        if listed:
            return not all(os.path.exists(f"{self._proc}/{pid}") for pid in listed)
        return (device.usage or 0) > 0 or (device.vram_mib or 0) > IDLE_VRAM_MIB

    def _facts(self, index: int) -> DeviceFacts:
        try:
            handle = self._handle(index)
            memory = self._memory(handle)
            model = self._ask("nvmlDeviceGetName", handle)
        except self._nvml.NVMLError:
            return DeviceFacts(None, None)
        return DeviceFacts(model, None if memory is None else memory.total / _MIB)

    def _ask(self, function: str, *arguments: Any) -> Any:
        """Call NVML; `None` where the device, its mode, the driver or the permissions do not allow it. May raise."""
        try:
            return getattr(self._nvml, function)(*arguments)
        except self._nvml.NVMLError as error:
            if error.value in self._unanswered:
                return None
            raise


def _vram_of(listed: dict[int, int | None] | None, pids: Collection[int]) -> float | None:
    if listed is None:
        return None
    total = 0
    for pid in pids:
        used = listed.get(pid, 0)
        if used is None:
            return None
        total += used
    return total / _MIB
