"""The two installed commands as processes, in a home of their own; whatever they leave behind fails the test."""

import contextlib
import csv
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sentinel_protocol.wire.sample import CSV_HEADER

BIN = Path(sys.executable).parent
COLLECTOR = str(BIN / "sentinel-collector")
UPLOADER = str(BIN / "sentinel-uploader")
DEADLINE_S = 60.0
"""For what has to happen at some time; far above what it takes on a loaded machine."""
_OWN_VARIABLES = ("SENTINEL_", "TRACKER_", "AWS_", "XDG_", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")


def wait_until(happened: Callable[[], Any], what: str, *, timeout_s: float = DEADLINE_S) -> Any:
    """Return the first true value of `happened`; fails the test with `what` after the deadline."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = happened()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(0.02)


class Home:
    """A user's directories and environment, and every process started in them."""

    def __init__(self, directory: Path, runtime: Path, environ: Mapping[str, str]) -> None:
        self.directory = directory
        self.runtime = runtime
        self.state = directory / "state" / "sentinel-stream"
        self.runs = directory / "data" / "sentinel-stream" / "runs"
        self.environ = {name: value for name, value in environ.items() if not name.startswith(_OWN_VARIABLES)} | {
            "HOME": str(directory),
            "XDG_STATE_HOME": str(directory / "state"),
            "XDG_DATA_HOME": str(directory / "data"),
            "XDG_RUNTIME_DIR": str(runtime),
            "SENTINEL_NO_CLOUD": "1",
        }
        self._processes: list[subprocess.Popen[str]] = []

    @property
    def address(self) -> str:
        """A Unix socket for an uploader of this home."""
        return f"ipc://{self.runtime}/u.sock"

    def start(self, *words: str, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
        """Start a command; its output is collected as text."""
        process = subprocess.Popen(
            words,
            env=self.environ | dict(env or {}),
            stdout=options.pop("stdout", subprocess.PIPE),
            stderr=options.pop("stderr", subprocess.PIPE),
            text=True,
            cwd=options.pop("cwd", self.directory),
            **options,
        )
        self._processes.append(process)
        return process

    def run(
        self, *words: str, env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        process = self.start(*words, env=env, **options)
        out, err = process.communicate(timeout=DEADLINE_S)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def collector(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `sentinel-collector` to its end."""
        return self.run(COLLECTOR, *words, **options)

    def start_uploader(
        self, *words: str, log: str = "uploader.log", prefix: Sequence[str] = (), **options: Any
    ) -> subprocess.Popen[str]:
        """Start `sentinel-uploader serve` at `address` and wait until it listens; its log goes to a file.

        `prefix` are words that run it elsewhere, such as those of a `SmallDisk`.
        """
        path = self.directory / log
        with open(path, "a", encoding="utf-8") as file:
            spool = () if "--spool" in words else ("--spool", str(self.directory / "spool"))
            before = path.stat().st_size
            process = self.start(
                *prefix,
                UPLOADER,
                "serve",
                "--bind",
                self.address,
                *spool,
                *words,
                stdout=file,
                stderr=file,
                **options,
            )
        wait_until(
            lambda: process.poll() is not None or "uploader ready" in path.read_text(encoding="utf-8")[before:],
            "the uploader listens",
        )
        assert process.poll() is None, path.read_text(encoding="utf-8")
        return process

    def status(self, *words: str) -> list[dict[str, Any]]:
        """Return the runs of `sentinel-uploader status --json`, of all spools together."""
        return self.status_of(self.run(UPLOADER, "status", "--json", *words))

    @staticmethod
    def status_of(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
        """Return the runs that a `status --json` has named."""
        assert done.returncode == 0, done.stderr
        return [run for spool in json.loads(done.stdout) for run in spool["runs"]]

    def local_runs(self) -> list[dict[str, Any]]:
        """Return the `run.json` of every local run, oldest first."""
        runs = [json.loads(path.read_text(encoding="utf-8")) for path in self.runs.glob("*/run.json")]
        # The ids of one second's runs are in no order.
        return sorted(runs, key=lambda run: (run["started_at"], run["run_id"]))

    def local_rows(self, run: Mapping[str, Any]) -> list[str]:
        """Return the CSV lines of a local run's objects, headers checked and left out."""
        return rows_of_objects((self.runs / run["run_id"] / name).read_bytes() for name in run["objects"])

    def close(self) -> None:
        """End the remaining processes, local uploaders included."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait(DEADLINE_S)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        for pid in self.running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not self.running(), "every process of the test is gone")

    def running(self) -> list[int]:
        """Return the processes that have this home in their environment, whoever started them."""
        mark = f"XDG_RUNTIME_DIR={self.runtime}\0".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if mark in (entry / "environ").read_bytes() and b") Z " not in (entry / "stat").read_bytes():
                        found.append(int(entry.name))
        return found


@contextlib.contextmanager
def home_in(directory: Path) -> Iterator[Home]:
    """A home in this directory, its processes and sockets gone at the end."""
    # A Unix socket's path is short; pytest's own directories are not.
    runtime = Path(tempfile.mkdtemp(prefix="ss-"))
    made = Home(directory, runtime, os.environ)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(runtime)


def rows_of_objects(bodies: Iterable[bytes]) -> list[str]:
    """Return the CSV lines of gzipped objects in their order; each has to begin with the header."""
    rows: list[str] = []
    for body in bodies:
        text = gzip.decompress(body)
        assert text.startswith(CSV_HEADER)
        rows += text[len(CSV_HEADER) :].decode().splitlines()
    return rows


def rows_of_file(path: Path) -> list[str]:
    """Return the CSV lines of an `--output` file without the header."""
    text = path.read_bytes()
    assert text.startswith(CSV_HEADER)
    return text[len(CSV_HEADER) :].decode().splitlines()


def timestamps(rows: Sequence[str]) -> list[float]:
    """Return the first column."""
    return [float(row[0]) for row in csv.reader(rows)]


def has_state(pid: int, letter: str) -> bool:
    """Whether a process has this state (`T`: stopped, `Z`: a zombie; field 3 of `proc(5)`)."""
    return f") {letter} ".encode() in Path(f"/proc/{pid}/stat").read_bytes()


def job_of(collector_pid: int) -> int:
    """Return the pid of a collector's job."""
    (job,) = set(_children(collector_pid)) - set(recorders_of(collector_pid))
    return job


def recorders_of(collector_pid: int) -> list[int]:
    """Return the pid of a collector's recorder, if there is one: it has the collector's command line."""
    own = Path(f"/proc/{collector_pid}/cmdline").read_bytes()
    found = []
    for pid in _children(collector_pid):
        with contextlib.suppress(FileNotFoundError):  # It has ended meanwhile.
            if Path(f"/proc/{pid}/cmdline").read_bytes() == own:
                found.append(pid)
    return found


def recorder_of(collector_pid: int) -> int:
    """Return the pid of a collector's recorder."""
    (recorder,) = wait_until(lambda: recorders_of(collector_pid), "there is a recorder")
    return int(recorder)


def kill_collector(process: subprocess.Popen[str]) -> None:
    """Kill a collector and its recorder, which would record on; the collector first, which would start another."""
    recorders = recorders_of(process.pid)
    process.kill()
    for pid in recorders:
        os.kill(pid, signal.SIGKILL)
    process.wait(DEADLINE_S)


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def python(code: str) -> list[str]:
    """Words that run a piece of Python."""
    return [sys.executable, "-c", code]


def busy(seconds: float, exit_code: int = 0) -> list[str]:
    """Words of a job that uses so many seconds of CPU, however long that takes on a loaded machine."""
    lines = (
        "import time",
        f"while time.process_time() < {seconds}: pass",
        f"raise SystemExit({exit_code})",
    )
    return python("\n".join(lines))
