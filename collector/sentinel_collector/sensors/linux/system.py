"""All sensors of the machine or the container on Linux, read one after the other."""

from collections.abc import Callable

from sentinel_collector.sensors.baseline import Baseline, network_proc
from sentinel_collector.sensors.cgroup.container_view import ContainerView
from sentinel_collector.sensors.interfaces import MemoryReading, SystemReading
from sentinel_collector.sensors.linux.cpu import CpuSensor
from sentinel_collector.sensors.linux.disk import DiskSensor
from sentinel_collector.sensors.linux.filesystems import FilesystemSensor
from sentinel_collector.sensors.linux.memory import MemorySensor
from sentinel_collector.sensors.linux.network import NetworkSensor
from sentinel_collector.sensors.linux.process_count import ProcessCountSensor


class LinuxSystem:
    """`SystemSensors` from `/proc` and `/sys`.

    With `container`, CPU time, memory and processes are the container's. The network is that of our name space in any
    case, and disks and file systems are the visible ones. In a container that has the machine's root directory at
    `host_root`, everything is read below it, and the network is the machine's.
    """

    def __init__(
        self,
        *,
        baseline: Baseline,
        container: ContainerView | None = None,
        host_root: str = "",
        warn: Callable[[str], None] = lambda _: None,
        on_started: Callable[[int], None] = lambda _: None,
        proc: str = "/proc",
        sys: str = "/sys",
    ) -> None:
        self._container = container
        network = network_proc(proc, host_root)
        proc, sys = f"{host_root}{proc}", f"{host_root}{sys}"
        self._cpu = CpuSensor(proc=proc, baseline=baseline.stat)
        self._memory = MemorySensor(proc=proc)
        self._disk = DiskSensor(proc=proc, sys=sys, baseline=baseline.diskstats)
        self._filesystems = FilesystemSensor(proc=proc, warn=warn, on_started=on_started)
        self._network = NetworkSensor(proc=network, sys=sys, baseline=baseline.net_dev)
        self._process_count = ProcessCountSensor(proc=proc)

    def read(self) -> SystemReading:
        """Read all sensors. CPU time comes last, close to the tree's, which is read next."""
        memory = self._read_memory()
        disk = self._disk.read()
        space = self._filesystems.read()
        network = self._network.read()
        processes = self._container.processes() if self._container is not None else None
        if processes is None:
            processes = self._process_count.read()
        cpu = self._cpu.read()
        if self._container is not None and self._container.has_cpu:
            user_us, system_us = self._container.cpu_growth_us() or (None, None)
            cpu = cpu._replace(user_us=user_us, system_us=system_us)
        return SystemReading(cpu, processes, memory, disk, space, network)

    def _read_memory(self) -> MemoryReading:
        host = self._memory.read()
        if self._container is None or not self._container.has_memory:
            return host
        found = self._container.memory()
        if found is None:
            return MemoryReading()
        # Without a limit the container can use all that the host has left.
        return found._replace(free=host.free) if found.free is None else found

    def close(self) -> None:
        """Give descriptors back."""
        for sensor in (self._cpu, self._memory, self._disk, self._filesystems, self._network):
            sensor.close()
        if self._container is not None:
            self._container.close()
