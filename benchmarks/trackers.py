"""The collector and the peer, each as a process with a job to record and rows to return.

Rows have the names of our columns (`process_utime`, `system_cpu_usage`, …). The peer has separate rows for the process
and for the system; ours hold both.
"""

import csv
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cgroup import Cgroup
from benchmarks.workspace import COLLECTOR, ROOT, BenchmarkError, Workspace, end, wait_until

PROC = "ours, proc"
AUTO = "ours, auto"
PSUTIL = "peer, psutil"
PROCFS = "peer, procfs"
OURS = (PROC, AUTO)
PEERS = (PSUTIL, PROCFS)
PEER_PYTHON = os.environ.get("PEER_PYTHON", str(ROOT / ".venv-peer" / "bin" / "python"))
_DEADLINE_S = 120.0
_AS_ITSELF = '[ -z "$2" ] || echo $$ >"$2"; echo $$ >"$1"; shift 2; exec "$@"'
"""The job moves itself into its cgroup, if there is one, and prints its pid before it executes the workload."""

Row = dict[str, float]


@dataclass
class Record:
    """A tracker's record of one run."""

    process: list[Row]
    system: list[Row]
    accounting: str = ""
    """The source of its CPU time as the collector reports it."""


class Collector:
    """`sentinel-collector` with `--connect` to the workspace's uploader and without cloud discovery.

    Tracks `job`, which it starts (and which goes into `cgroup`), or the running process `pid`. Rows are written to a
    file only where `rows` says so.
    """

    def __init__(
        self,
        workspace: Workspace,
        *,
        tracker: str,
        interval_s: float = 1.0,
        job: Sequence[str] = (),
        cgroup: Cgroup | None = None,
        pid: int | None = None,
        rows: bool = True,
    ) -> None:
        self._output = workspace.path(".csv")
        self._summary = workspace.path(".json")
        self._log = workspace.path(".err")
        self._pid_file = workspace.path(".pid")
        words = [COLLECTOR, "--no-cloud", "--quiet", "--interval", str(interval_s), "--connect", workspace.address]
        words += ["--run-key", self._output.stem + workspace.directory.name, "--summary-json", str(self._summary)]
        if has_accounting():
            words += ["--accounting", "auto" if tracker == AUTO else "proc"]
        if rows:
            words += ["--output", str(self._output)]
        into = "" if cgroup is None else f"{cgroup.path}/cgroup.procs"
        tell = ["sh", "-c", _AS_ITSELF, "sh", str(self._pid_file), into]
        words += ["--pid", str(pid)] if pid is not None else ["--", *tell, *job]
        with self._log.open("w") as log:
            self.process = workspace.start(words, stderr=log)

    @property
    def pids(self) -> list[int]:
        """The processes that do the tracking: the waiter, and the recorder, which has the same command line."""
        own = self.process.pid
        words = Path(f"/proc/{own}/cmdline").read_bytes()
        children = map(int, Path(f"/proc/{own}/task/{own}/children").read_text().split())
        return [own, *(pid for pid in children if Path(f"/proc/{pid}/cmdline").read_bytes() == words)]

    def job_pid(self) -> int:
        """Wait until the job has been started and return its pid."""
        file = self._pid_file
        wait_until(lambda: file.exists() and file.read_text().endswith("\n"), "the job starts")
        return int(file.read_text())

    def record(self) -> Record:
        """Wait for the end and return the rows; raises `BenchmarkError` when it fails."""
        self.process.communicate(timeout=_DEADLINE_S)
        if not self._summary.exists():
            raise BenchmarkError(f"the collector ended with {self.process.returncode}: {self._log.read_text()}")
        rows: list[Row] = []
        if self._output.exists():
            with self._output.open(newline="") as file:
                rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
        return Record(rows, rows, json.loads(self._summary.read_text())["accounting"])


class Peer:
    """The peer's `ResourceTracker` in a process of its own, imported and ready; see peer.py."""

    def __init__(self, workspace: Workspace, *, tracker: str, interval_s: float = 1.0) -> None:
        implementation = "psutil" if tracker == PSUTIL else "procfs"
        words = [PEER_PYTHON, str(ROOT / "benchmarks" / "peer.py"), implementation, str(interval_s)]
        self.process = workspace.start(words)
        self.pids: list[int] = []
        if self._answer() != "ready":
            raise BenchmarkError(f"the peer does not start: {' '.join(words)}")

    def track(self, pid: int) -> None:
        """Begin."""
        self._say(str(pid))
        self.pids = [int(word) for word in self._answer().split()]

    def record(self) -> Record:
        """Stop and return the rows."""
        self._say("stop")
        process, system = json.loads(self._answer())
        end(self.process)
        return Record(_named("process", process), _named("system", system))

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise BenchmarkError("the peer has ended")
        return line.rstrip("\n")


def _named(scope: str, rows: list[dict[str, Any]]) -> list[Row]:
    def name(column: str) -> str:
        return column if column == "timestamp" else f"{scope}_{column}"

    return [{name(column): float(value or 0) for column, value in row.items()} for row in rows]


def start_peers(workspace: Workspace, interval_s: float = 1.0) -> dict[str, Peer]:
    """Start both implementations; none where the peer's environment is missing."""
    return {one: Peer(workspace, tracker=one, interval_s=interval_s) for one in PEERS} if has_peer() else {}


def default_tracker() -> str:
    """Return the accounting of our default run."""
    return AUTO if has_accounting() else PROC


def has_peer() -> bool:
    """Whether the peer's environment exists; `make bench` builds it."""
    return os.access(PEER_PYTHON, os.X_OK)


def has_accounting() -> bool:
    """Whether the collector knows `--accounting`."""
    if not _known:
        done = subprocess.run([COLLECTOR, "--help"], capture_output=True, text=True, check=True)
        _known.append("--accounting" in done.stdout)
    return _known[0]


_known: list[bool] = []
