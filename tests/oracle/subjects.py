"""The processes that are disturbed: collectors with the record of what they sampled, and the uploader."""

import contextlib
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from standins.product import COLLECTOR, UPLOADER, Home

from protocol.sample import CSV_HEADER

INTERVAL_S = 0.2
STALE_AFTER_S = "40"
"""Longer than any collector is away: a run that is closed for its silence was not continued as it should have been."""
END_WAIT_S = 3
"""`--wait` of every collector: one that finds nobody leaves its rows to the next soon."""
_JOB = """
import os, sys, time
while not os.path.exists(sys.argv[1]):
    time.sleep(0.05)
raise SystemExit(int(sys.argv[2]))
"""


@dataclass(frozen=True)
class End:
    """How a run is to be reported to the API."""

    status: str
    exit_code: int | None


@dataclass
class Part:
    """What one collector process sampled: the rows of its `--output`, and whether it was killed."""

    output: Path
    was_killed: bool = False

    def rows(self) -> list[str]:
        """Return the whole lines behind the header, in order."""
        if not self.output.exists():
            return []
        content = self.output.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        return whole[len(CSV_HEADER) :].decode().splitlines()


@dataclass
class Generation:
    """The parts of one run, up to an end that a collector lived to report.

    `ends` are the ends that were begun: more than one where a collector was killed while it ended.
    """

    name: str
    parts: list[Part] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)


class Process:
    """A process of ours that may be down, paused, or about to end."""

    def __init__(self, home: Home, name: str) -> None:
        self.home = home
        self.name = name
        self.log = home.directory / f"{name}.log"
        self.process: subprocess.Popen[str] | None = None
        self.told_to_end_at: float | None = None
        self.paused = False
        self.problems: list[str] = []

    @property
    def is_up(self) -> bool:
        """Whether there is a process that nobody has told to end."""
        return self.process is not None and self.told_to_end_at is None

    def launch(self, *words: str, **environ: str) -> None:
        """Start the command; what it says goes to its log."""
        with open(self.log, "a", encoding="utf-8") as log:
            log.write(f"--- {' '.join(words[1 : words.index('--')] if '--' in words else words[1:])}\n")
            log.flush()
            self.process = self.home.start(*words, env=environ, stdout=log, stderr=log)
        self.told_to_end_at = None
        self.paused = False

    def send(self, signum: signal.Signals) -> None:
        """Signal the process."""
        assert self.process is not None
        self.process.send_signal(signum)
        self.paused = {signal.SIGSTOP: True, signal.SIGCONT: False}.get(signum, self.paused)

    def terminate(self) -> None:
        """Tell the process to end."""
        self.send(signal.SIGTERM)
        self.told_to_end_at = time.monotonic()

    def kill(self) -> None:
        """Kill the process and reap it."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)
        self.process = None

    def poll(self) -> int | None:
        """Return the exit code of a process that has ended by itself, once."""
        if self.process is None or (code := self.process.poll()) is None:
            return None
        self.process = None
        return code


class Uploader(Process):
    """The one uploader of the drama, at a fixed port."""

    def __init__(self, home: Home, port: int, environ: dict[str, str]) -> None:
        super().__init__(home, "uploader")
        self.spool = home.directory / "spool"
        self._port = port
        self._environ = environ
        self.started_at: list[float] = []

    def start(self) -> None:
        """Start it; does not wait until it listens."""
        self.started_at.append(time.monotonic())
        self.launch(
            UPLOADER, "serve", "--bind", f"tcp://127.0.0.1:{self._port}", "--spool", str(self.spool),
            "--upload-interval", "1", "--stale-after", STALE_AFTER_S, **self._environ,
        )  # fmt: skip


class Collector(Process):
    """A collector, the processes that it was over time, and what each of them sampled.

    With even numbers it tracks a foreign process, with odd ones it wraps a job that ends with `exit_code`.
    """

    def __init__(self, home: Home, number: int, address: str) -> None:
        super().__init__(home, f"collector-{number}")
        self._number = number
        self._address = address
        self._stop_file = home.directory / f"{self.name}.stop"
        self._wraps = number % 2 == 1
        self.exit_code = 3 if number % 4 == 1 else 0
        self._parts = 0
        self.generations = [Generation(f"{self.name}-0")]
        self._target = None if self._wraps else home.start(*self._job(), stdout=subprocess.DEVNULL)

    def _job(self) -> list[str]:
        return [sys.executable, "-S", "-c", _JOB, str(self._stop_file), str(self.exit_code)]

    @property
    def run(self) -> Generation:
        """The run that is being recorded."""
        return self.generations[-1]

    @property
    def has_sampled(self) -> bool:
        """Whether the process that runs now has written a row."""
        return bool(self.run.parts and self.run.parts[-1].rows())

    def start(self) -> None:
        """Start a process that continues the run, or begins one when the last one's end was reported."""
        part = Part(self.home.directory / f"{self.name}-{self._parts}.csv")
        self._parts += 1
        self.run.parts.append(part)
        what = ["--", *self._job()] if self._target is None else ["--pid", str(self._target.pid)]
        key = ["--run-key", self.name] if self._wraps else []
        self.launch(
            COLLECTOR, "--connect", self._address, "--interval", str(INTERVAL_S), "--wait", str(END_WAIT_S), *key,
            "--output", str(part.output), "--job-name", self.run.name, *what,
        )  # fmt: skip

    def kill(self) -> None:
        """Kill the collector, and the job with it: the next one has its own."""
        assert self.process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            jobs = psutil.Process(self.process.pid).children() if self._wraps else []
            self.run.parts[-1].was_killed = True
            super().kill()
            for job in jobs:
                job.kill()

    def terminate(self) -> None:
        """Tell the collector to end; its job dies of it."""
        self.run.ends.append(End("failed", 128 + signal.SIGTERM) if self._wraps else End("finished", None))
        super().terminate()

    def end_target(self) -> None:
        """Let the job, or the process that is tracked, come to its own end."""
        self._stop_file.touch()
        if self._wraps:
            self.run.ends.append(End("failed" if self.exit_code else "finished", self.exit_code))
        else:
            self.run.ends.append(End("finished", None))
        self.told_to_end_at = time.monotonic()

    def ended(self, code: int) -> None:
        """The process is gone by itself: what it was told to do, or a defect."""
        expected = (self.run.ends[-1].exit_code or 0) if self.told_to_end_at is not None else None
        if code != expected:
            self.problems.append(f"{self.name}: ended with {code} instead of {expected}, see {self.log}")
        self.generations.append(Generation(f"{self.name}-{len(self.generations)}"))

    def close(self) -> None:
        """Forget the generation that was never begun."""
        if not self.run.parts:
            self.generations.pop()
        if self._target is not None:
            self._target.wait(10)
