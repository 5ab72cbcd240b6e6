"""The processes' use of AMD GPUs, from the kernel's DRM client statistics (`drm-usage-stats.rst`, Linux 5.19).

For each open file of a GPU, `/proc/PID/fdinfo/FD` has the busy time of the engines and the memory of its client.
Descriptors that were duplicated or inherited show the same client, which counts once.
"""

import os
from collections.abc import Collection
from typing import NamedTuple

from sentinel_collector.procfs import STAT_STATE, read_file, read_stat

FORGET_AFTER_SCANS = 10
"""After so many scans, descriptors of other files are inspected again: their numbers may have been reused."""

_ENGINES = frozenset({b"drm-engine-gfx", b"drm-engine-compute"})
"""The engines of `gpu_busy_percent`. Copy and video engines are not part of it."""
ENGINE_COUNT = len(_ENGINES)
"""How many engines of a client can be busy at a time."""

_MEMORY_KEYS = (b"drm-resident-vram", b"drm-memory-vram", b"drm-total-vram")
"""From exact to coarse. `drm-memory-` is the older name of `drm-resident-`."""
_UNITS = {b"": 1, b"KiB": 1 << 10, b"MiB": 1 << 20, b"GiB": 1 << 30}


class DrmClient(NamedTuple):
    """One client of one GPU: nanoseconds of its graphics and compute work so far, and bytes of VRAM."""

    pci_address: str
    client_id: int
    busy_ns: int
    vram_bytes: int


class DrmScan(NamedTuple):
    """The clients of a set of processes, each once.

    `is_complete` is false when a process could not be read. `uses_kfd` is true when a process computes through ROCm,
    whose queues the engines' counters do not include.
    """

    clients: list[DrmClient]
    is_complete: bool
    uses_kfd: bool


class DrmClients:
    """Finds the AMD clients of processes. It remembers other descriptors, so that a scan is mostly `listdir`."""

    def __init__(self, *, proc: str) -> None:
        self._proc = proc
        self._scans = 0
        self._others: dict[int, set[str]] = {}

    def scan(self, pids: Collection[int]) -> DrmScan:
        """Read the clients of these processes. An ended process or a zombie has none."""
        self._scans += 1
        if self._scans % FORGET_AFTER_SCANS == 0:
            self._others.clear()
        clients: dict[tuple[str, int], DrmClient] = {}
        others: dict[int, set[str]] = {}
        is_complete, uses_kfd = True, False
        for pid in pids:
            try:
                kfd = self._scan_process(pid, clients, others)
            except PermissionError:
                # The directory of a zombie belongs to root, but the zombie has no descriptors.
                is_complete = is_complete and self._is_zombie(pid)
            except (FileNotFoundError, ProcessLookupError):
                continue
            else:
                uses_kfd = uses_kfd or kfd
        self._others = others
        return DrmScan(list(clients.values()), is_complete, uses_kfd)

    def _scan_process(self, pid: int, clients: dict[tuple[str, int], DrmClient], others: dict[int, set[str]]) -> bool:
        directory = f"{self._proc}/{pid}"
        known = self._others.get(pid, set())
        still_others = others[pid] = set()
        uses_kfd = False
        for descriptor in os.listdir(f"{directory}/fd"):
            if descriptor in known:
                still_others.add(descriptor)
                continue
            try:
                target = os.readlink(f"{directory}/fd/{descriptor}")
                if target == "/dev/kfd":
                    uses_kfd = True
                elif not target.startswith("/dev/dri/"):
                    still_others.add(descriptor)
                else:
                    client = parse_fdinfo(read_file(f"{directory}/fdinfo/{descriptor}"))
                    if client is not None:
                        clients[client.pci_address, client.client_id] = client
            except FileNotFoundError:
                continue  # Closed meanwhile.
        return uses_kfd

    def _is_zombie(self, pid: int) -> bool:
        try:
            return read_stat(pid, 1, proc=self._proc)[STAT_STATE] in {b"Z", b"X"}
        except (OSError, ValueError):
            return True


def parse_fdinfo(text: bytes) -> DrmClient | None:
    """Return the AMD client of the text; `None` for other drivers and for kernels without these statistics."""
    fields = {}
    for line in text.splitlines():
        key, _, value = line.partition(b":")
        fields[key] = value.strip()
    if fields.get(b"drm-driver") != b"amdgpu":
        return None
    try:
        return DrmClient(
            pci_address=fields[b"drm-pdev"].decode(),
            client_id=int(fields[b"drm-client-id"]),
            busy_ns=sum(int(value.split()[0]) for key, value in fields.items() if key in _ENGINES),
            vram_bytes=next((_bytes(fields[key]) for key in _MEMORY_KEYS if key in fields), 0),
        )
    except (KeyError, ValueError, IndexError):
        return None


def _bytes(value: bytes) -> int:
    number, _, unit = value.partition(b" ")
    return int(number) * _UNITS[unit.strip()]
