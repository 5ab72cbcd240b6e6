"""AMD GPUs through the amdgpu driver's sysfs files (kernel documentation, `gpu/amdgpu`) and DRM's `fdinfo`."""

import os
import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from sentinel_collector.procfs import read_file
from sentinel_collector.sensors.gpu.devices import DeviceFacts, DeviceReading, GpuFaultError, unreadable
from sentinel_collector.sensors.gpu.drm_clients import ENGINE_COUNT, DrmClient, DrmClients
from sentinel_protocol.common.clock import Clock

_AMD_VENDOR = "0x1002"
_CARD = re.compile(r"card\d+")
_MIB = 1 << 20


class AmdCard(NamedTuple):
    """One GPU: its directory in sysfs, its PCI address (`0000:03:00.0`), and its PCI id where sysfs has it."""

    directory: str
    pci_address: str
    pci_id: str


def find_amd_cards(sysfs: str) -> list[AmdCard]:
    """Return the AMD GPUs in the order of their numbers."""
    drm = f"{sysfs}/class/drm"
    try:
        names = [name for name in os.listdir(drm) if _CARD.fullmatch(name)]
    except OSError:
        return []
    cards = []
    for name in sorted(names, key=lambda name: int(name[len("card") :])):
        directory = f"{drm}/{name}/device"
        if _read_text(f"{directory}/vendor") != _AMD_VENDOR:
            continue
        lines = (_read_text(f"{directory}/uevent") or "").splitlines()
        facts = dict(line.split("=", 1) for line in lines if "=" in line)
        cards.append(AmdCard(directory, facts.get("PCI_SLOT_NAME", ""), facts.get("PCI_ID", "")))
    return cards


class AmdGpus:
    """The given AMD GPUs. One thread reads them."""

    def __init__(self, cards: Sequence[AmdCard], *, clock: Clock, proc: str) -> None:
        self._cards = list(cards)
        self._clock = clock
        self._clients = DrmClients(proc=proc)
        self._busy_ns: dict[tuple[str, int], int] = {}
        self._read_at: float | None = None

    def devices(self, pids: Collection[int]) -> list[DeviceReading]:
        """Read every card; raises `GpuFaultError` when all are gone."""
        readings = []
        for card, share in zip(self._cards, self._shares(pids), strict=True):
            try:
                readings.append(DeviceReading(*_read_card(card), *share))
            except GpuFaultError as fault:
                readings.append(unreadable(str(fault)))
        if all(reading.fault for reading in readings):
            raise GpuFaultError(readings[0].fault)
        return readings

    def facts(self) -> list[DeviceFacts]:
        """Return model (the product's name, else the PCI id) and memory of every card."""
        facts = []
        for card in self._cards:
            name = (
                _read_text(f"{card.directory}/product_name") or (card.pci_id and f"AMD GPU {card.pci_id}") or "AMD GPU"
            )
            total = _read_number(f"{card.directory}/mem_info_vram_total")
            facts.append(DeviceFacts(name, None if total is None else total / _MIB))
        return facts

    def _shares(self, pids: Collection[int]) -> list[tuple[float | None, float | None]]:
        """Return the processes' usage (0..1) and MiB of each card; the first reading has no usage.

        When a client ends, its work since the previous reading is lost.
        """
        now = self._clock.monotonic()
        elapsed_ns = None if self._read_at is None else (now - self._read_at) * 1e9
        self._read_at = now
        scan = self._clients.scan(pids)
        grown_ns = self._growth(scan.clients, elapsed_ns or 0.0)
        usage_is_known = scan.is_complete and not scan.uses_kfd
        shares: list[tuple[float | None, float | None]] = []
        for card in self._cards:
            own = [client for client in scan.clients if client.pci_address == card.pci_address]
            vram_mib = sum(client.vram_bytes for client in own) / _MIB if scan.is_complete else None
            usage = None if pids else 0.0
            if usage_is_known and elapsed_ns:
                usage = min(1.0, sum(grown_ns[client.pci_address, client.client_id] for client in own) / elapsed_ns)
            shares.append((usage, vram_mib))
        return shares

    def _growth(self, clients: Sequence[DrmClient], elapsed_ns: float) -> dict[tuple[str, int], int]:
        """Return the growth of each client's busy time.

        A new client has started at zero, unless it was busy for longer than the elapsed time: then it existed before,
        unread. A counter may fall for a while; its highest value counts until it is passed (`drm-usage-stats.rst`).
        """
        before, self._busy_ns = self._busy_ns, {}
        grown = {}
        for client in clients:
            key = client.pci_address, client.client_id
            known_ns = before.get(key, 0 if client.busy_ns <= ENGINE_COUNT * elapsed_ns else client.busy_ns)
            self._busy_ns[key] = max(known_ns, client.busy_ns)
            grown[key] = self._busy_ns[key] - known_ns
        return grown


def _read_card(card: AmdCard) -> tuple[float | None, float | None]:
    """Return usage (0..1) and MiB in use."""
    if _read_text(f"{card.directory}/power/runtime_status") == "suspended":
        # Any other file would wake it up.
        return 0.0, 0.0
    percent = _read_number(f"{card.directory}/gpu_busy_percent")
    used = _read_number(f"{card.directory}/mem_info_vram_used")
    if used is None and not os.path.exists(f"{card.directory}/vendor"):
        raise GpuFaultError(f"AMD GPU {card.pci_address}: it is gone")
    return None if percent is None else min(percent, 100) / 100, None if used is None else used / _MIB


def _read_text(path: str) -> str | None:
    try:
        return read_file(path).decode(errors="replace").strip()
    except OSError:
        return None


def _read_number(path: str) -> int | None:
    text = _read_text(path)
    return int(text) if text is not None and text.isdecimal() else None
