"""The seam for GPU sensors: what one reading holds and what the sampler asks for."""

from collections.abc import Collection
from typing import NamedTuple, Protocol


class GpuReading(NamedTuple):
    """GPUs at one moment; a field that cannot be read is `None`.

    `*_usage` counts GPUs in use (0 to the number of GPUs), `*_vram_mib` is memory in MiB, `*_utilized` counts
    GPUs above zero. `process_*` is the share of the processes that were asked for, zero when none was.
    """

    system_usage: float | None = 0.0
    system_vram_mib: float | None = 0.0
    system_utilized: int | None = 0
    process_usage: float | None = 0.0
    process_vram_mib: float | None = 0.0
    process_utilized: int | None = 0


NO_GPU = GpuReading()
"""What a machine without a GPU reads."""


class GpuSensor(Protocol):
    """One kind of GPU, any number of devices."""

    def read(self, pids: Collection[int]) -> GpuReading:
        """Read all devices and what `pids` (the tracked tree; empty when nothing is tracked) use of them.

        Called once a row, on the sampler's thread: must not block (a device that hangs is waited for
        elsewhere) and must not raise; what cannot be read is `None`.
        """
