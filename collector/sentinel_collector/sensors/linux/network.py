"""Bytes received and sent by the machine, from `/proc/net/dev` (`proc(5)`).

Loopback never counts, and each byte counts once. Where the network name space has hardware (an interface with a
`device` link in `/sys/class/net`), only the hardware counts. Bridges, bonds, VLANs, tunnels and the host's ends of
containers' links carry the same bytes, or bytes that never leave the machine. Hardware below other hardware (a virtual
function under its synthetic twin) counts through the upper one. Without hardware, as in a container, an interface
counts unless it is stacked on another (`lower_*`) or is a bridge, bond, tunnel or dummy. Where that leaves none, taps
and tuns count: a rootless container (slirp4netns, pasta) has no other interface.
"""

import os
from collections.abc import Iterator

from sentinel_collector.procfs import link_target
from sentinel_collector.sensors.linux.byte_counters import CounterFile, parse_pair

_UNCOUNTED_FILES = ("bridge", "bonding", "brport")
_TUN_FILE = "tun_flags"
_UNCOUNTED_NAMES = ("dummy", "ifb", "tunl", "sit", "gre", "erspan", "ip6tnl", "ip_vti", "teql")


class NetworkSensor:
    """Growth of the counted interfaces' counters. The first is measured against `baseline`."""

    def __init__(self, *, proc: str, sys: str, baseline: bytes) -> None:
        self._sys = f"{sys}/class/net"
        self._counted: dict[bytes, bool] = {}
        self._file = CounterFile(f"{proc}/net/dev", baseline=baseline, parse=self._parse)

    def read(self) -> tuple[int | None, int | None]:
        """Return bytes received and sent since the previous reading; `None` without `/proc/net/dev`."""
        return self._file.growth() or (None, None)

    def close(self) -> None:
        """Give the descriptor back."""
        self._file.close()

    def _parse(self, data: bytes) -> Iterator[tuple[bytes, int, int]]:
        counted = self._counted
        lines = [line.rpartition(b":") for line in data.splitlines()[2:]]
        names = [padded_name.strip() for padded_name, _, _ in lines]
        if not counted.keys() >= set(names):
            self._classify(names)
        for name, (_, separator, values) in zip(names, lines, strict=True):
            if separator and counted[name]:
                fields = values.split(None, 9)
                if len(fields) >= 9:
                    yield name, *parse_pair(fields[0], fields[8])

    def _classify(self, names: list[bytes]) -> None:
        """Decide about all names: a new one may carry the bytes of others. One that counts from now on starts anew."""
        text = {name: name.decode(errors="replace") for name in names}
        counted = counted_interfaces(sys_net=self._sys, names=list(text.values()))
        self._counted.clear()
        self._counted.update((name, text[name] in counted) for name in names)


def counted_interfaces(*, sys_net: str, names: list[str]) -> set[str]:
    """Return those of `names` whose bytes count (see the module's docstring); `sys_net` is `/sys/class/net`."""
    try:
        present = os.listdir(sys_net)
    except OSError:
        present = []
    hardware = {name for name in present if name in names and os.path.exists(f"{sys_net}/{name}/device")}
    if hardware:
        return {
            name
            for name in names
            if name in hardware and os.path.basename(link_target(f"{sys_net}/{name}/master")) not in hardware
        }
    single = {name for name in names if name != "lo" and not _is_stacked(sys_net, name)}
    return {name for name in single if not os.path.exists(f"{sys_net}/{name}/{_TUN_FILE}")} or single


def _is_stacked(sys_net: str, name: str) -> bool:
    if name.startswith(_UNCOUNTED_NAMES):
        return True
    try:
        files = os.listdir(f"{sys_net}/{name}")
    except OSError:
        return False
    return any(file in _UNCOUNTED_FILES or file.startswith("lower_") for file in files)
