"""Two network namespaces and a cable between them: machines that can reach each other and nothing else."""

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

PATIENCE_S = 20.0
_CLONE_NEWNET = 0x40000000
_CABLE = "cable"


def run_tool(*words: str) -> bool:
    """Run an administrator's command; False when it says no."""
    return subprocess.run(words, capture_output=True, check=False, timeout=PATIENCE_S).returncode == 0


class CannotMakeError(Exception):
    """This user or this machine makes no namespaces."""


class Machine:
    """A namespace, which is gone when its holder ends; `address` is that of its end of the cable."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "ip link set lo up && echo made && read line"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        self.is_made = self._holder.stdout.readline() == "made\n"
        self.prefix = ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net", "--"]
        """Words that run a command there."""

    @property
    def pid(self) -> int:
        return self._holder.pid

    def run(self, *words: str) -> bool:
        """Run an administrator's command there; False when it says no."""
        return run_tool(*self.prefix, *words)

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """Let this thread, and those that it starts within the block, be there: their sockets are that machine's."""
        with open("/proc/thread-self/ns/net") as home, open(f"/proc/{self.pid}/ns/net") as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def listening(self) -> set[tuple[str, int]]:
        """Return the addresses (hexadecimal, as the kernel writes them) and ports that somebody listens at there."""
        found = set()
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{self.pid}/net/{table}").read_text().splitlines()[1:]:
                local, _, state = line.split()[1:4]
                if state == "0A":
                    host, port = local.split(":")
                    found.add((host, int(port, 16)))
        return found

    def close(self) -> None:
        self._holder.communicate(timeout=PATIENCE_S)


class TwoMachines:
    """`near` and `far`; raises `CannotMakeError` where that is not possible."""

    def __init__(self) -> None:
        if os.geteuid() != 0 or not all(shutil.which(tool) for tool in ("ip", "unshare", "nsenter")):
            raise CannotMakeError("network namespaces need root, iproute2, unshare and nsenter")
        self.near, self.far = Machine("10.231.77.1"), Machine("10.231.77.2")
        made = self.near.is_made and self.far.is_made
        peer = ("peer", "name", _CABLE, "netns", str(self.far.pid))
        made = made and self.near.run("ip", "link", "add", _CABLE, "type", "veth", *peer)
        for machine in (self.near, self.far):
            made = made and machine.run("ip", "addr", "add", f"{machine.address}/24", "dev", _CABLE)
            made = made and machine.run("ip", "link", "set", _CABLE, "up")
        if not made:
            self.close()
            raise CannotMakeError("network namespaces or veth are not allowed here")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def cut(self) -> None:
        """Pull the cable."""
        assert self.near.run("ip", "link", "set", _CABLE, "down")

    def mend(self) -> None:
        """Plug it in again."""
        assert self.near.run("ip", "link", "set", _CABLE, "up")

    def disturb(self, *, delay_ms: int, loss_percent: float) -> tuple[bool, bool]:
        """Delay what goes there and back by so much, and lose so much of each direction.

        Returns whether the kernel can do that, and if not, whether at least the loss was done.
        """
        netem = ("root", "netem", "delay", f"{delay_ms // 2}ms", "loss", f"{loss_percent}%")
        ends = (self.near, self.far)
        if all(end.run("tc", "qdisc", "add", "dev", _CABLE, *netem) for end in ends):
            return True, True
        match = ("-m", "statistic", "--mode", "random", "--probability", str(loss_percent / 100), "-j", "DROP")
        return False, all(end.run("iptables", "-A", "INPUT", "-i", _CABLE, *match) for end in ends)

    def close(self) -> None:
        """Both are gone, and the cable with them."""
        for machine in (self.near, self.far):
            machine.close()


def _enter(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "cannot enter the network namespace")
