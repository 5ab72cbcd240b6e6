"""The processes that are disturbed: collectors with the record of what they sampled, and uploaders."""

import contextlib
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from fakes.process_harness import COLLECTOR, UPLOADER, Home

from chaos.clock import ShiftedClock
from chaos.disk import SmallDisk
from chaos.record import VANISHED, End, Generation, Part, Tail

INTERVAL_S = 0.2
END_WAIT_S = 3
"""`--wait` of every collector: one that finds nobody leaves its rows to the next soon."""
FAILOVER_AFTER_S = 2.0
"""A run may move when its uploader is only slow to start again: as often as possible."""
SMALL_SPOOL = "192KiB"
_SPIN_WINDOW_S = 5.0
_SPIN_SHARE = 0.9
_JOB = """
import os, sys, time
while not os.path.exists(sys.argv[1]):
    time.sleep(0.05)
raise SystemExit(int(sys.argv[2]))
"""


class Process(ABC):
    """A process of ours that may be down, paused, or about to end."""

    def __init__(self, home: Home, name: str) -> None:
        self.home = home
        self.name = name
        self.clock = ShiftedClock(home.directory, name)
        self.log = home.directory / f"{name}.log"
        self.process: subprocess.Popen[str] | None = None
        self.told_to_end_at: float | None = None
        self.paused = False
        self.problems: list[str] = []
        self._used_before: tuple[float, float] = (0.0, 0.0)

    @property
    def is_up(self) -> bool:
        """Whether there is a process that nobody has told to end."""
        return self.process is not None and self.told_to_end_at is None

    @property
    @abstractmethod
    def has_begun(self) -> bool:
        """Whether the process has come as far as its work: before, it dies of any signal, having done nothing."""

    @abstractmethod
    def start(self) -> None:
        """Start it; does not wait until it has begun."""

    def start_if_down(self) -> None:
        """Start it, unless somebody else has done so meanwhile."""
        if self.process is None:
            self.start()

    def launch(self, *words: str, **environ: str) -> None:
        """Start the command; what it says goes to its log."""
        with open(self.log, "a", encoding="utf-8") as log:
            log.write(f"--- {' '.join(words[1 : words.index('--')] if '--' in words else words[1:])}\n")
            log.flush()
            self.process = self.home.start(*words, env=self.clock.environ | environ, stdout=log, stderr=log)
        self.told_to_end_at = None
        self.paused = False
        self._used_before = (time.monotonic(), 0.0)

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
        """Return the exit code of a process that has ended by itself, once; look whether it spins."""
        if self.process is None:
            return None
        if (code := self.process.poll()) is None:
            self._watch(self.process.pid)
            return None
        self.process = None
        return code

    def _watch(self, pid: int) -> None:
        since, used_before_s = self._used_before
        now = time.monotonic()
        if now - since < _SPIN_WINDOW_S:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            times = psutil.Process(pid).cpu_times()
            used_s = times.user + times.system
            self._used_before = (now, used_s)
            if used_s - used_before_s > _SPIN_SHARE * (now - since):
                self.problems.append(f"{self.name} has used {used_s - used_before_s:.1f} s of CPU in {now - since:.1f}")


class Uploader(Process):
    """An uploader at a fixed port, with a spool of its own that may lie on a disk of its own."""

    def __init__(
        self,
        home: Home,
        name: str,
        *,
        port: int,
        stale_after_s: float,
        environ: dict[str, str],
        token: str,
        small: bool,
    ) -> None:
        super().__init__(home, name)
        place = home.directory / f"{name}-disk"
        self.disk = SmallDisk(place)
        self.spool = place / "spool"
        self.port = port
        self._stale_after_s = stale_after_s
        self._small = ["--spool-max", SMALL_SPOOL] if small else []
        self.token = token
        self._environ = environ | {"SENTINEL_API_TOKEN": token}
        self.started_at: list[float] = []

    @property
    def has_begun(self) -> bool:
        return "uploader ready" in self.log.read_text(encoding="utf-8").rpartition("--- ")[2]

    def start(self) -> None:
        """Start it; does not wait until it listens."""
        self.started_at.append(time.monotonic())
        words = self.disk.inside(
            UPLOADER, "serve", "--bind", f"tcp://127.0.0.1:{self.port}", "--spool", str(self.spool),
            "--upload-interval", "1", "--stale-after", str(self._stale_after_s), *self._small,
        )  # fmt: skip
        self.launch(*words, **self._environ)

    def command(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run another of the uploader's commands on this spool."""
        return self.home.run(*self.disk.inside(UPLOADER, *words, "--spool", str(self.spool)))

    def runs(self) -> list[dict[str, Any]]:
        """Return the runs as `status --json` has them, none while there is no spool yet."""
        if not self.disk.path(self.spool / "spool.db").exists():
            return []
        return self.home.status_of(self.command("status", "--json"))


class Collector(Process):
    """A collector, the processes that it was over time, and what each of them sampled.

    With even numbers it tracks a foreign process, with odd ones it wraps a job that ends with `exit_code`. Every third
    has a state directory of its own, so that its clock may go wrong: files of several collectors are told apart by age.
    With several addresses its run moves when its uploader is away.
    """

    def __init__(self, home: Home, number: int, addresses: Sequence[str]) -> None:
        super().__init__(home, f"collector-{number}")
        self._connect = [word for address in addresses for word in ("--connect", address)]
        self.may_move = len(addresses) > 1
        self._wraps = number % 2 == 1
        self.is_alone = number % 3 == 2
        self.state_dir = home.state / (f"{self.name}-state" if self.is_alone else "collector")
        self.exit_code = 3 if number % 4 == 1 else 0
        self.generations: list[Generation] = []
        self._lives = 0
        self._target: subprocess.Popen[str] | None = None
        self._tail: Tail | None = None
        self._begin_life()

    @property
    def run(self) -> Generation:
        """The run that is being recorded."""
        return self.generations[-1]

    @property
    def output(self) -> Path:
        """`--output` of the run, continued by each collector of it."""
        return self.home.directory / f"{self.run.name}.csv"

    @property
    def moves(self) -> int:
        """How often it has said that it goes on at another uploader."""
        return self.log.read_text(encoding="utf-8").count(" is unreachable; switching to ") if self.may_move else 0

    @property
    def has_begun(self) -> bool:
        return bool(self.run.parts and self.run.parts[-1].rows)

    def start(self) -> None:
        """Start a process that continues the run, or begins one when the last one's end was reported."""
        part = Part()
        self._tail = Tail(self.output, part)
        self.run.parts.append(part)
        what = ["--", *self._job()] if self._target is None else ["--pid", str(self._target.pid)]
        key = ["--run-key", f"{self.name}-{self._lives}"] if self._wraps else []
        self.launch(
            COLLECTOR, *self._connect, "--failover-after", str(FAILOVER_AFTER_S), "--interval", str(INTERVAL_S),
            "--wait", str(END_WAIT_S), *key, "--state-dir", str(self.state_dir), "--output", str(self.output),
            "--job-name", self.run.name, *what,
        )  # fmt: skip

    def look(self) -> None:
        """Take in what has been sampled."""
        if self._tail is not None:
            self._tail.look()

    def kill(self) -> None:
        """Kill the collector, and the job with it: the next one has its own."""
        assert self.process is not None
        # Stopped first: it must not start its job between the look at its children and its end.
        self.process.send_signal(signal.SIGSTOP)
        jobs = psutil.Process(self.process.pid).children() if self._wraps else []
        part = self.run.parts[-1]
        part.was_killed, part.was_ending = True, self.told_to_end_at is not None
        super().kill()
        for job in jobs:
            with contextlib.suppress(psutil.NoSuchProcess):
                job.kill()
        self._part_is_over()

    def vanish(self) -> None:
        """Kill it for good: nobody continues this run. The next one of this name has another job, another run."""
        self.kill()
        self.run.ends.append(VANISHED)
        self.run.abandoned = True
        if self._target is not None:
            self._target.kill()
            self._target.wait(10)
        self._begin_life()

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
        self._part_is_over()
        self.generations.append(Generation(f"{self.name}-run-{len(self.generations)}"))

    def close(self) -> None:
        """Forget the generation that was never begun."""
        if not self.run.parts:
            self.generations.pop()
        if self._target is not None:
            self._target.wait(10)

    def _begin_life(self) -> None:
        self._lives += 1
        self._stop_file = self.home.directory / f"{self.name}.stop-{self._lives}"
        self._target = None if self._wraps else self.home.start(*self._job(), stdout=subprocess.DEVNULL)
        self.generations.append(Generation(f"{self.name}-run-{len(self.generations)}"))

    def _job(self) -> list[str]:
        return [sys.executable, "-S", "-c", _JOB, str(self._stop_file), str(self.exit_code)]

    def _part_is_over(self) -> None:
        assert self._tail is not None
        self._tail.close()
        self._tail = None
