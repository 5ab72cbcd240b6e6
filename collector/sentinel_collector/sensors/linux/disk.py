"""Bytes read from and written to whole disks, from `/proc/diskstats` (the kernel's `iostats.rst`).

A whole disk is a device of `/sys/block` (so no partition) that is not made of other disks. It has no `slaves` (device
mapper, md, bcache), none of the drivers that put a disk on a file, on memory or on another disk, and is not hidden. So
each byte counts once, at the disk that stores it.

A multipath NVMe name space has a head (`nvme0n1`) and hidden paths (`nvme0c1n1`). Kernels before 6.4 count its I/O in
the paths only. There the paths count.
"""

import os
import re
from collections.abc import Iterator

from sentinel_collector.procfs import read_file
from sentinel_collector.sensors.linux.byte_counters import CounterFile, parse_pair

SECTOR_BYTES = 512
"""The unit of `/proc/diskstats`. The disk's own sector size does not matter."""

_COMPOSED = ("loop", "ram", "zram", "dm-", "md", "zd", "drbd", "bcache")


_NVME_PATH = re.compile(rb"(nvme[0-9]+)c[0-9]+(n[0-9]+)")


class DiskSensor:
    """Growth of the counters of all whole disks. The first is measured against `baseline`."""

    def __init__(self, *, proc: str, sys: str, baseline: bytes) -> None:
        self._sys = sys
        self._whole: dict[bytes, bool] = {}
        self._heads: dict[bytes, bytes] = {}
        """The head of each NVMe path."""
        self._file = CounterFile(f"{proc}/diskstats", baseline=baseline, parse=self._parse)

    def read(self) -> tuple[int | None, int | None]:
        """Return bytes read and written since the previous reading; `None` without `/proc/diskstats`."""
        sectors = self._file.growth()
        return (None, None) if sectors is None else (sectors[0] * SECTOR_BYTES, sectors[1] * SECTOR_BYTES)

    def close(self) -> None:
        """Give the descriptor back."""
        self._file.close()

    def _parse(self, data: bytes) -> Iterator[tuple[bytes, int, int]]:
        whole, heads = self._whole, self._heads
        paths: list[tuple[bytes, int, int]] = []
        counting: set[bytes] = set()
        for line in data.splitlines():
            head = line.split(None, 3)
            if len(head) < 4:
                continue
            name = head[2]
            known = whole.get(name)
            if known is None:
                known = whole[name] = is_whole_disk(name.decode(errors="replace"), sys=self._sys)
                if path := _NVME_PATH.fullmatch(name):
                    heads[name] = path[1] + path[2]
            if not known and name not in heads:
                continue
            fields = head[3].split(None, 7)
            if len(fields) < 7:
                continue
            pair = parse_pair(fields[2], fields[6])
            if name in heads:
                paths.append((name, *pair))
                continue
            if heads and any(pair):
                counting.add(name)
            yield name, *pair
        # A path is listed before or after its head.
        for path_reading in paths:
            if heads[path_reading[0]] not in counting:
                yield path_reading


def is_whole_disk(name: str, *, sys: str = "/sys") -> bool:
    """Return whether a device of `/proc/diskstats` is a whole disk (see the module's docstring)."""
    if name.startswith(_COMPOSED):
        return False
    # The kernel writes a slash in a device's name (cciss/c0d0) as an exclamation mark.
    directory = f"{sys}/block/{name.replace('/', '!')}"
    try:
        if not os.path.isdir(directory):
            return False
        if read_file(f"{directory}/hidden").strip() == b"1":
            return False
    except OSError:
        pass
    try:
        return not os.listdir(f"{directory}/slaves")
    except OSError:
        return True
