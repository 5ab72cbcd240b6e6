"""A directory and an environment of the benchmark. Closing it ends its processes and removes its files."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any

from benchmarks.cgroup import Cgroup, own_places

ROOT = Path(__file__).resolve().parent.parent
_BIN = Path(sys.executable).parent
COLLECTOR = str(_BIN / "sentinel-collector")
UPLOADER = str(_BIN / "sentinel-uploader")
_NOT_INHERITED = ("SENTINEL_", "TRACKER_", "AWS_", "XDG_", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
_DEADLINE_S = 60.0
_COLLECTORS_END_S = 3.0


class BenchmarkError(Exception):
    """The benchmark cannot go on."""


class Workspace:
    """Temporary directory, environment, processes and cgroups of one benchmark; a context manager.

    Every process that is started here has `mark` in its environment, and so has whatever it starts: on leaving, by
    Ctrl-C too, all of them are killed, then cgroups and files are removed.
    """

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="bench-"))
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)} | {
            "HOME": str(self.directory),
            "TMPDIR": str(self.directory),
            "XDG_RUNTIME_DIR": str(self.directory),
            "XDG_STATE_HOME": str(self.directory / "state"),
            "XDG_DATA_HOME": str(self.directory / "data"),
            "SENTINEL_NO_CLOUD": "1",
        }
        self._processes: list[subprocess.Popen[str]] = []
        self._collectors: list[subprocess.Popen[str]] = []
        self._cgroups: list[Cgroup] = []
        self._count = 0

    def __enter__(self) -> "Workspace":
        self._previous = signal.signal(signal.SIGTERM, _interrupt)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        held = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self.end_processes()
            self.end_cgroups()
            shutil.rmtree(self.directory, ignore_errors=True)
        finally:
            signal.signal(signal.SIGINT, held)
            signal.signal(signal.SIGTERM, self._previous)

    @property
    def address(self) -> str:
        """Where the uploader of this workspace listens."""
        return f"ipc://{self.directory}/u.sock"

    def path(self, suffix: str) -> Path:
        """Return a new name in the directory."""
        self._count += 1
        return self.directory / f"{self._count:04}{suffix}"

    def start(
        self, words: Sequence[str], *, env: Mapping[str, str] | None = None, stderr: int | IO[Any] | None = None
    ) -> subprocess.Popen[str]:
        """Start a process in a session of its own: a Ctrl-C at the terminal reaches the benchmark alone."""
        process = subprocess.Popen(
            words,
            env=self.environ | dict(env or {}),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
        self._processes.append(process)
        if words[0] == COLLECTOR:
            self._collectors.append(process)
        return process

    def start_workload(self, name: str) -> subprocess.Popen[str]:
        """Start a workload that runs until it is killed, and wait until all its processes exist."""
        process = self.start(workload(name))
        wait_until(lambda: is_settled(process.pid), f"the workload {name} is ready")
        return process

    def start_uploader(self) -> subprocess.Popen[str]:
        """Start an uploader that delivers to a directory and wait until it listens."""
        log = self.path(".log")
        words = [UPLOADER, "serve", "--bind", self.address, "--spool", str(self.directory / "spool")]
        with log.open("w") as file:
            process = self.start([*words, "--target", str(self.directory / "runs")], stderr=file)
        wait_until(lambda: process.poll() is not None or "uploader ready" in log.read_text(), "the uploader listens")
        if process.poll() is not None:
            raise BenchmarkError(f"the uploader ended: {log.read_text()}")
        return process

    def cgroup(self, *, not_in: frozenset[str] = frozenset()) -> Cgroup | None:
        """Make a cgroup that counts CPU time, in none of the hierarchies `not_in`; `None` where none can be made."""
        for hierarchy, place in own_places().items():
            if hierarchy in not_in:
                continue
            self._count += 1
            with contextlib.suppress(OSError):
                cgroup = Cgroup.make(f"{place}/bench-{os.getpid()}-{self._count}", hierarchy)
                self._cgroups.append(cgroup)
                return cgroup
        return None

    def end_jobs(self, pid: int) -> None:
        """Kill a process that another one started here, and its descendants."""
        for descendant in [pid, *_descendants(pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(descendant, signal.SIGKILL)

    def end_cgroups(self) -> None:
        """Remove the cgroups, empty by now."""
        for cgroup in self._cgroups:
            cgroup.remove()
        self._cgroups.clear()

    def end_processes(self) -> None:
        """Kill whatever runs, the children of children too, and reap it.

        Collectors come last: without their jobs they end by themselves, and remove the cgroups that they have made.
        """
        direct = {process.pid for process in self._processes}
        for pid in self._strays():
            if pid not in direct:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + _COLLECTORS_END_S
        while any(process.poll() is None for process in self._collectors) and time.monotonic() < deadline:
            time.sleep(0.02)
        for process in self._processes:
            end(process)
        self._processes.clear()
        self._collectors.clear()
        deadline = time.monotonic() + _DEADLINE_S
        while (strays := self._strays()) and time.monotonic() < deadline:
            for pid in strays:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def _strays(self) -> list[int]:
        mark = f"XDG_RUNTIME_DIR={self.directory}\0".encode()
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError):
                    if mark in Path(f"/proc/{name}/environ").read_bytes():
                        found.append(int(name))
        return found


def workload(name: str) -> list[str]:
    """Words of a workload's command."""
    return [sys.executable, "-S", "-m", "benchmarks.workloads", name]


def end(process: subprocess.Popen[str]) -> None:
    """Kill a process with its session and reap it."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait(_DEADLINE_S)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def wait_until(happened: Callable[[], object], what: str) -> None:
    """Wait until the condition holds; raises `BenchmarkError` after a minute."""
    deadline = time.monotonic() + _DEADLINE_S
    while not happened():
        if time.monotonic() > deadline:
            raise BenchmarkError(f"not within {_DEADLINE_S:.0f} s: {what}")
        time.sleep(0.01)


def is_settled(pid: int) -> bool:
    """Whether a process sleeps in pause(2) or has used no CPU for a while: its set-up is complete."""
    before = _used_ticks(pid)
    time.sleep(0.15)
    return before == _used_ticks(pid) > 0


def _descendants(pid: int) -> list[int]:
    children = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            children += [int(word) for word in Path(f"/proc/{pid}/task/{thread}/children").read_text().split()]
    return children + [one for child in children for one in _descendants(child)]


def _used_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return int(fields[11]) + int(fields[12])


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
