"""The contract's `host_*` fields of this machine (GPU fields come from the GPU sensor)."""

import os

from sentinel_collector.procfs import read_file
from sentinel_collector.sensors.cgroup.container_view import ContainerView
from sentinel_collector.sensors.linux.filesystems import FilesystemSensor
from sentinel_collector.sensors.linux.network import counted_interfaces

HostInfo = dict[str, str | int | float]

_CPUINFO_BYTES = 1 << 14
_MODEL_KEYS = ("model name", "hardware", "cpu model", "cpu", "processor", "uarch")
"""x86 and most others; ARM boards; MIPS; POWER; s390 and old ARM; RISC-V."""
_ARM_IMPLEMENTERS = {
    "0x41": "ARM",
    "0x42": "Broadcom",
    "0x43": "Cavium",
    "0x46": "Fujitsu",
    "0x48": "HiSilicon",
    "0x4e": "NVIDIA",
    "0x50": "Applied Micro",
    "0x51": "Qualcomm",
    "0x61": "Apple",
    "0x6d": "Microsoft",
    "0xc0": "Ampere",
}
_ARM_PARTS = {
    "0xd03": "Cortex-A53",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd40": "Neoverse-V1",
    "0xd49": "Neoverse-N2",
    "0xd4f": "Neoverse-V2",
    "0xd83": "Neoverse-V3",
    "0xd8e": "Neoverse-N3",
}


def host_info(
    *,
    share_identity: bool = False,
    container: ContainerView | None = None,
    host_root: str = "",
    proc: str = "/proc",
    sys: str = "/sys",
    etc: str = "/etc",
) -> HostInfo:
    """Return the known facts of the machine, without those that identify it unless `share_identity`. Never raises.

    With `container`, processors and memory are those that the container may use. With `host_root`, the machine's root
    directory in a container, the name is the machine's. There is no address then: ours is the container's.
    """
    proc, sys, etc = f"{host_root}{proc}", f"{host_root}{sys}", f"{host_root}{etc}"
    info: HostInfo = {"host_vcpus": (os.cpu_count() or 1) if container is None else container.vcpus}
    info["host_server_allocation"] = "shared" if _is_confined(container, host_root) else "dedicated"
    model = cpu_model(proc=proc, sys=sys)
    if model:
        info["host_cpu_model"] = model
    memory_mib = (container is not None and container.memory_mib) or _memory_mib(proc)
    if memory_mib:
        info["host_memory_mib"] = memory_mib
    storage_gb = _storage_gb(proc)
    if storage_gb:
        info["host_storage_gb"] = storage_gb
    if share_identity:
        info.update(_identity(proc=proc, sys=sys, etc=etc, is_container=bool(host_root)))
    return info


def _is_confined(container: ContainerView | None, host_root: str) -> bool:
    """Whether the run may use only a part of the machine.

    Either a container has limits, or a scheduler pins its jobs to processors. Limits of a hypervisor are not visible.
    """
    if host_root:
        return False
    if container is not None:
        return container.limited or container.vcpus < (os.cpu_count() or 1)
    # Missing on macOS.
    return hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) < (os.cpu_count() or 1)


def cpu_model(*, proc: str = "/proc", sys: str = "/sys") -> str:
    """Return the name of the first processor, empty when the kernel does not show it.

    64-bit ARM shows numbers instead of a name (`CPU implementer`, `CPU part`). They are translated where the part is
    well known. Without them, the device tree's model is returned.
    """
    try:
        text = read_file(f"{proc}/cpuinfo", _CPUINFO_BYTES).decode(errors="replace")
    except OSError:
        import platform

        return platform.processor()
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, separator, value = line.partition(":")
        if separator:
            found.setdefault(key.strip().lower(), value.strip())
    for key in _MODEL_KEYS:
        value = found.get(key, "")
        # `processor` is a number on most machines and a name on a few.
        if value and not value.isdigit():
            return " ".join(value.split())
    implementer, part = found.get("cpu implementer", ""), found.get("cpu part", "")
    if implementer:
        return f"{_ARM_IMPLEMENTERS.get(implementer, implementer)} {_ARM_PARTS.get(part, part)}".strip()
    try:
        return read_file(f"{sys}/firmware/devicetree/base/model").rstrip(b"\0\n").decode(errors="replace")
    except OSError:
        return ""


def _memory_mib(proc: str) -> float:
    try:
        words = read_file(f"{proc}/meminfo").split(None, 2)
        return round(int(words[1]) / 1024, 3) if words[0] == b"MemTotal:" else 0.0
    except (OSError, ValueError, IndexError):
        pass
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 20), 3)
    except (OSError, ValueError):
        return 0.0


def _storage_gb(proc: str) -> float:
    sensor = FilesystemSensor(proc=proc)
    try:
        space = sensor.read()
    finally:
        sensor.close()
    return round(space.total / 1e9, 3) if space is not None else 0.0


def _identity(*, proc: str, sys: str, etc: str, is_container: bool) -> HostInfo:
    info: HostInfo = {}
    hostname = _first_line(f"{etc}/hostname") if is_container else os.uname().nodename
    if hostname:
        info["host_hostname"] = hostname
    machine_id = _first_line(f"{etc}/machine-id")
    # systemd writes "uninitialized" into an image before its first boot.
    if machine_id and machine_id != "uninitialized":
        info["host_id"] = machine_id
    address = "" if is_container else _address(proc=proc, sys=sys)
    if address:
        info["host_ip"] = address
    return info


def _first_line(path: str) -> str:
    try:
        return read_file(path).decode(errors="replace").strip().partition("\n")[0]
    except OSError:
        return ""


def _address(*, proc: str, sys: str) -> str:
    """Return the first global address: IPv4 before IPv6, the default route's interface first, counted ones next.

    It comes from the kernel's tables. No packet is sent and no name is looked up.
    """
    import socket

    import psutil

    try:
        table = psutil.net_if_addrs()
    except (OSError, psutil.Error):
        return ""
    first = _default_interface(proc)
    counted = counted_interfaces(sys_net=f"{sys}/class/net", names=list(table))
    names = sorted(table, key=lambda name: (name != first, name not in counted, name))
    for family in (socket.AF_INET, socket.AF_INET6):
        for name in names:
            for one in table[name]:
                address = one.address.partition("%")[0]
                if one.family == family and not _is_local(address):
                    return address
    return ""


def _is_local(address: str) -> bool:
    import ipaddress

    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return True
    return parsed.is_loopback or parsed.is_link_local or parsed.is_unspecified


def _default_interface(proc: str) -> str:
    """Return the interface of the IPv4 default route with the lowest metric (`/proc/net/route`), empty without one."""
    best: tuple[int, str] | None = None
    try:
        lines = read_file(f"{proc}/net/route").decode(errors="replace").splitlines()[1:]
    except OSError:
        return ""
    for line in lines:
        fields = line.split()
        if len(fields) >= 8 and fields[1] == "00000000" and fields[7] == "00000000":
            best = min(best or (1 << 62, ""), (int(fields[6]), fields[0]))
    return best[1] if best else ""
