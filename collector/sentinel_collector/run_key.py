"""What names a run, so that a collector that is started again continues it."""

import os
import re
from collections.abc import Sequence

from sentinel_collector.procfs import STAT_START, read_stat
from sentinel_protocol.common.endpoints import Address
from sentinel_protocol.common.hashing import sha256

_SUCCESSOR_SUFFIX = re.compile(r"~[0-9a-f]{12}\Z")


def run_key_of_process(pid: int, *, proc: str = "/proc") -> str:
    """Derive the key from the host's boot, the process and its start time: the same as long as it lives."""
    return _key("process", str(pid), _start_time(pid, proc), _boot_id(proc))


def run_key_of_host(state_dir: str, *, proc: str = "/proc") -> str:
    """Derive the key from the host's boot and the collector's own place: two state directories, two runs."""
    return _key("host", os.path.realpath(state_dir), _boot_id(proc))


def successor_run_key(key: str, token: str) -> str:
    """Return a key for what follows a run that has ended; `token` is drawn anew each time, 12 hexadecimal digits."""
    return f"{_SUCCESSOR_SUFFIX.sub('', key)[:180]}~{token[:12]}"


def rank_uploaders(addresses: Sequence[Address], run_key: str) -> list[Address]:
    """Order the uploaders by a run's preference (rendezvous hashing): the same every time, evenly spread over the runs.

    One that is added or taken away moves only the runs that it is, or was, the first for.
    """
    return sorted(
        dict.fromkeys(addresses),
        key=lambda address: sha256(f"{address.url}\0{run_key}".encode("utf-8", "surrogateescape")),
        reverse=True,
    )


def _key(kind: str, *parts: str) -> str:
    # The node name tells containers of one host apart; hashed, it tells nobody the host's name.
    identity = "\0".join((kind, os.uname().nodename, str(os.getuid()), *parts))
    return f"{kind}-{sha256(identity.encode('utf-8', 'surrogateescape')).hex()[:32]}"


def _start_time(pid: int, proc: str) -> str:
    try:
        return read_stat(pid, STAT_START + 1, proc=proc)[STAT_START].decode()
    except (OSError, ValueError):
        import psutil

        try:
            return str(psutil.Process(pid).create_time())
        except psutil.Error:
            return "gone"


def _boot_id(proc: str) -> str:
    try:
        with open(f"{proc}/sys/kernel/random/boot_id", encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        import psutil

        return str(psutil.boot_time())
