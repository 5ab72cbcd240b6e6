"""What processes use of AMD GPUs, from the kernel's DRM client statistics (`drm-usage-stats.rst`, Linux 5.19).

Every open file of a GPU has a text in `/proc/PID/fdinfo/FD` with the busy time of the engines and the memory of its
client. Descriptors that were duplicated or inherited name the same client: it counts once.
"""

import os
from collections.abc import Collection
from typing import NamedTuple

from sentinel_collector.procfs import STAT_STATE, read_stat

FORGET_AFTER_SCANS = 10
"""A descriptor that was something else is looked at again after so many scans: its number may have been reused."""

_ENGINES = frozenset({b"drm-engine-gfx", b"drm-engine-compute"})
"""What `gpu_busy_percent` measures as well; copy and video engines run beside it."""
ENGINE_COUNT = len(_ENGINES)
"""How many engines of one client may be busy at a time."""

_MEMORY_KEYS = (b"drm-resident-vram", b"drm-memory-vram", b"drm-total-vram")
"""From the exact to the coarse; `drm-memory-` is the older name of `drm-resident-`."""
_UNITS = {b"": 1, b"KiB": 1 << 10, b"MiB": 1 << 20, b"GiB": 1 << 30}


class DrmClient(NamedTuple):
    """One client of one GPU: nanoseconds its graphics and compute work kept the GPU busy so far, bytes of VRAM."""

    pci_address: str
    client_id: int
    busy_ns: int
    vram_bytes: int


class DrmScan(NamedTuple):
    """The clients of a set of processes, each once.

    `is_complete` is false when a process could not be looked into; `uses_kfd` is true when one of them computes
    through ROCm, whose queues the engines' counters do not see.
    """

    clients: list[DrmClient]
    is_complete: bool
    uses_kfd: bool


class DrmClients:
    """Finds the AMD clients of processes; remembers which descriptors are none, so that a scan is mostly `listdir`."""

    def __init__(self, *, proc: str) -> None:
        self._proc = proc
        self._scans = 0
        self._others: dict[int, set[str]] = {}

    def scan(self, pids: Collection[int]) -> DrmScan:
        """Read the clients of these processes; one that ended or is a zombie has none."""
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
                # The descriptors of a zombie belong to root, but there are none.
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
                    with open(f"{directory}/fdinfo/{descriptor}", "rb", buffering=0) as file:
                        client = parse_fdinfo(file.read())
                    if client is not None:
                        clients[client.pci_address, client.client_id] = client
            except FileNotFoundError:
                continue  # closed meanwhile
        return uses_kfd

    def _is_zombie(self, pid: int) -> bool:
        try:
            return read_stat(pid, 1, proc=self._proc)[STAT_STATE] in {b"Z", b"X"}
        except (OSError, ValueError):
            return True


def parse_fdinfo(text: bytes) -> DrmClient | None:
    """Return the AMD client that the text describes; `None` for other drivers and for kernels that do not tell."""
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
