"""The uploader that is measured: started, killed, and looked at from outside."""

import contextlib
import os
import signal
import socket
import sqlite3
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.measure import rss_mib
from benchmarks.workspace import UPLOADER, BenchmarkError, Workspace, wait_until

if TYPE_CHECKING:
    import subprocess

_TICKS = os.sysconf("SC_CLK_TCK")
_METRICS = {
    "objects": "sentinel_uploader_objects_delivered_total",
    "puts": "sentinel_uploader_put_seconds_count",
    "commits": "sentinel_uploader_commit_seconds_count",
}


class Usage(NamedTuple):
    """What an uploader has used so far, and holds."""

    at: float
    """Monotonic seconds."""
    cpu_s: float
    io_thread_cpu_s: float
    """Of ZeroMQ's I/O thread alone."""
    rss_mib: float
    descriptors: int
    spool_mib: float
    objects: int
    puts: int
    commits: int


class LoadedUploader:
    """The real command with a directory as its target, at a port of its own on loopback."""

    def __init__(self, workspace: Workspace, words: Sequence[str], *, keys_dir: Path | None) -> None:
        self._workspace = workspace
        self.spool = workspace.directory / "spool"
        self.runs = workspace.directory / "runs"
        self.log = workspace.path(".log")
        self.url = f"tcp://127.0.0.1:{_free_port()}"
        self._http_port = _free_port()
        self._words = [UPLOADER, "serve", "--bind", self.url, "--spool", str(self.spool), "--target", str(self.runs)]
        self._words += ["--http", str(self._http_port), *words]
        if keys_dir is not None:
            self._words += ["--keys", str(keys_dir)]
        self._ended_cpu_s = 0.0
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        """The process that runs now."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> float:
        """Start it and wait until it listens; return how many seconds that took."""
        began = time.monotonic()
        had = self._times_ready()
        with self.log.open("a") as file:
            self._process = process = self._workspace.start(self._words, stderr=file)
        wait_until(lambda: process.poll() is not None or self._times_ready() > had, "the uploader listens")
        self.check()
        return time.monotonic() - began

    def check(self) -> None:
        """Raise `BenchmarkError` when it has ended."""
        if self._process is not None and self._process.poll() is not None:
            raise BenchmarkError(f"the uploader ended: {self.log.read_text()[-2000:]}")

    def kill(self) -> None:
        """Kill it, with whatever it holds."""
        assert self._process is not None
        self._ended_cpu_s += _cpu_s(self.pid)
        self._process.kill()
        self._process.wait()

    def stall(self, seconds: float) -> Usage:
        """Keep it from writing to its spool for so long, as a disk that hangs; return its usage then."""
        with contextlib.closing(sqlite3.connect(self.spool / "spool.db", isolation_level=None, timeout=60)) as other:
            other.execute("BEGIN IMMEDIATE")
            time.sleep(seconds)
            usage = self.usage(counts=False)
            other.execute("ROLLBACK")
        return usage

    def stop(self) -> int:
        """Let it drain and end; return its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)

    def usage(self, *, counts: bool = True) -> Usage:
        """Look at it. With `counts` it is asked for its metrics, which costs it some milliseconds."""
        found = self._metrics() if counts else {}
        return Usage(
            time.monotonic(),
            self._ended_cpu_s + _cpu_s(self.pid),
            _io_thread_cpu_s(self.pid),
            rss_mib([self.pid]),
            len(os.listdir(f"/proc/{self.pid}/fd")),
            sum(path.stat().st_size for path in self.spool.glob("spool.db*")) / 2**20,
            found.get("objects", 0),
            found.get("puts", 0),
            found.get("commits", 0),
        )

    def _metrics(self) -> dict[str, int]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._http_port}/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        values = {name: value for name, _, value in (line.partition(" ") for line in lines)}
        return {what: int(float(values.get(name, "0"))) for what, name in _METRICS.items()}

    def _times_ready(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return self.log.read_text().count("uploader ready")
        return 0


def _cpu_s(pid: int) -> float:
    """CPU seconds of a process with the threads that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _io_thread_cpu_s(pid: int) -> float:
    total_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            if (task / "comm").read_text().startswith("ZMQbg/IO"):
                total_ns += int((task / "schedstat").read_bytes().split()[0])
    return total_ns / 1e9


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
