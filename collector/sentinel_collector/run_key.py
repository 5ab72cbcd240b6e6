"""Run keys: a collector that is started again derives the same key and continues the run."""

import os
import re

from sentinel_collector.procfs import STAT_START, read_stat
from sentinel_protocol.common.hashing import sha256

_SUCCESSOR_SUFFIX = re.compile(r"~[0-9a-f]{12}\Z")


def run_key_of_process(pid: int, *, proc: str = "/proc") -> str:
    """Derive the key from the host's boot, the process and its start time."""
    return _key("process", str(pid), _start_time(pid, proc), _boot_id(proc))


def run_key_of_host(state_dir: str, *, proc: str = "/proc") -> str:
    """Derive the key from the host's boot and the state directory: two state directories make two runs."""
    return _key("host", os.path.realpath(state_dir), _boot_id(proc))


def successor_run_key(key: str, token: str = "") -> str:
    """Return a key for the run that follows an ended one; `token` has 12 hexadecimal digits (default: random)."""
    return f"{_SUCCESSOR_SUFFIX.sub('', key)[:180]}~{token[:12] or os.urandom(6).hex()}"


def _key(kind: str, *parts: str) -> str:
    # The node name distinguishes containers of one host. Hashed, it does not disclose the host's name.
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
