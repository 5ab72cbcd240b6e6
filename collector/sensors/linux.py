"""The whole machine on Linux: every sensor of `/proc`, read next to each other."""

from collector.sensors.baseline import Baseline
from collector.sensors.cpu import CpuSensor
from collector.sensors.disk import DiskSensor
from collector.sensors.memory import MemorySensor
from collector.sensors.network import NetworkSensor
from collector.sensors.population import PopulationSensor
from collector.sensors.readings import SystemReading
from collector.sensors.storage import StorageSensor


class LinuxSystem:
    """`SystemSensors` from `/proc` and `/sys`."""

    def __init__(self, *, baseline: Baseline, proc: str = "/proc", sys: str = "/sys") -> None:
        self._cpu = CpuSensor(proc=proc, baseline=baseline.stat)
        self._memory = MemorySensor(proc=proc)
        self._disk = DiskSensor(proc=proc, sys=sys, baseline=baseline.diskstats)
        self._storage = StorageSensor(proc=proc)
        self._network = NetworkSensor(proc=proc, sys=sys, baseline=baseline.net_dev)
        self._population = PopulationSensor(proc=proc)

    def read(self) -> SystemReading:
        """Read all; the CPU's time last, next to the tree's, which is read after it."""
        memory = self._memory.read()
        disk_read, disk_written = self._disk.read()
        space = self._storage.read()
        received, sent = self._network.read()
        processes = self._population.read()
        cpu = self._cpu.read()
        return SystemReading(
            cpu.cpus,
            cpu.forks,
            cpu.user_us,
            cpu.system_us,
            processes,
            memory,
            disk_read,
            disk_written,
            space.total if space else None,
            space.used if space else None,
            space.free if space else None,
            received,
            sent,
        )

    def close(self) -> None:
        """Give descriptors back."""
        for sensor in (self._cpu, self._memory, self._disk, self._storage, self._network):
            sensor.close()
