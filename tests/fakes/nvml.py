"""A machine with GPUs that are not there: a stub of the driver's library, and a child process that reads them.

The child runs the collector's real code with the real pynvml; its dynamic loader finds the stub.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from sentinel_collector.sensors.interfaces import GpuReading

STUB_SOURCE = Path(__file__).parent.parent / "stubs" / "nvml_stub.c"
LIBRARY = "libnvidia-ml.so.1"
START_US = 1_700_000_000_000_000
"""UNIX microseconds at which a child's clock starts."""
PATIENCE_S = 60.0
"""How long tests wait for what must happen."""


def build_nvml_stub(directory: Path) -> Path:
    """Compile the stub into the directory; a machine without a C compiler fails the tests that need it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "the GPU tests need a C compiler (cc or gcc) for the stub of libnvidia-ml.so.1"
    command = [compiler, "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(directory / LIBRARY)]
    subprocess.run([*command, str(STUB_SOURCE)], check=True)
    return directory


def break_library(directory: Path) -> Path:
    """Put a file there that the dynamic loader finds first and cannot load: no driver, on any machine."""
    (directory / LIBRARY).write_text("not a library")
    return directory


class NvmlPlay:
    """What the stub plays (its script) and what it was asked (its calls)."""

    def __init__(self, directory: Path) -> None:
        self.script_path = directory / "nvml_script"
        self.calls_path = directory / "nvml_calls"
        self.calls_path.touch()
        self.say("")

    def say(self, *lines: str) -> None:
        """Replace the script at once; the language is described in the stub's source."""
        new = self.script_path.with_suffix(".new")
        new.write_text("\n".join(line for text in lines for line in text.splitlines()) + "\n")
        new.replace(self.script_path)

    def count(self, call: str) -> int:
        """Return how often the stub noted the line, such as `nvmlInitWithFlags -` or `error FUNCTION 0`."""
        return self.calls_path.read_text().splitlines().count(call)

    def wait_for(self, call: str) -> None:
        """Wait until the stub has noted the line."""
        wait_until(lambda: self.count(call) > 0, f"the stub never noted {call!r}")


def wait_until(condition: Callable[[], bool], otherwise: str) -> None:
    """Poll until the condition holds; fails with the text when that takes too long."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.002)


class ReaderAnswer(NamedTuple):
    """`reading` is what was read (`None`: no sensor), `held_s` how long the caller was held by the child's own clock,
    `warnings` and `threads` all warnings so far and the threads alive, `info` the registration's fields."""

    reading: GpuReading | None
    warnings: list[str]
    held_s: float
    threads: int
    info: dict[str, Any]
    has_pynvml: bool


class GpuReader:
    """A child process with an open GPU sensor; a context manager that ends it."""

    def __init__(self, library: Path, play: NvmlPlay | None = None, *, sysfs: Path | None = None, proc: Path) -> None:
        environ = {**os.environ, "LD_LIBRARY_PATH": str(library)}
        if play is not None:
            environ |= {"NVML_STUB_SCRIPT": str(play.script_path), "NVML_STUB_CALLS": str(play.calls_path)}
        command = [sys.executable, __file__, str(sysfs or proc / "no-sysfs"), str(proc)]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ, text=True, bufsize=1
        )

    def open(self, *, patience_s: float = PATIENCE_S) -> ReaderAnswer:
        """Open the sensor; with `patience_s=0` every wait is over at once, by the child's clock as well."""
        return self._ask({"pids": None, "advance_s": 0, "patience_s": patience_s})

    def read(self, pids: Collection[int], *, advance_s: float = 1.0, patience_s: float = PATIENCE_S) -> ReaderAnswer:
        """Let the child's clock go on and read."""
        return self._ask({"pids": list(pids), "advance_s": advance_s, "patience_s": patience_s})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._child.stdin
        assert self._child.stdout
        self._child.stdin.close()
        try:
            assert self._child.wait(PATIENCE_S) == 0
        finally:
            self._child.kill()
            self._child.stdout.close()
            self._child.wait()

    def _ask(self, question: dict[str, Any]) -> ReaderAnswer:
        assert self._child.stdin
        assert self._child.stdout
        self._child.stdin.write(json.dumps(question) + "\n")
        answer = json.loads(self._child.stdout.readline())
        reading = answer.pop("reading")
        return ReaderAnswer(reading=None if reading is None else GpuReading(*reading), **answer)


class HandClock:
    """A clock that moves when it is told to, and by the timeout of a wait that was in vain.

    Waits last, in real time, until the event or for `patience_s`.
    """

    def __init__(self) -> None:
        self.elapsed_s = 0.0
        self.held_s = 0.0
        self.patience_s = PATIENCE_S

    def now(self) -> float:
        return START_US / 1e6 + self.elapsed_s

    def monotonic(self) -> float:
        return 1000.0 + self.elapsed_s

    def thread_time(self) -> float:
        return 0.0

    def wait_for(self, event: threading.Event, timeout_s: float | None) -> bool:
        if timeout_s is None:
            return event.wait()
        if event.wait(self.patience_s):
            return True
        self.elapsed_s += timeout_s
        self.held_s += timeout_s
        return False


def _answer_questions(sysfs: str, proc: str, questions: Iterable[str]) -> None:
    from sentinel_collector.sensors.gpu.factory import open_gpu_sensor

    clock = HandClock()
    warnings: list[str] = []
    sensor = None
    for line in questions:
        question = json.loads(line)
        clock.elapsed_s += question["advance_s"]
        clock.patience_s = question["patience_s"]
        clock.held_s = 0.0
        reading = None
        if question["pids"] is None:
            sensor = open_gpu_sensor(clock=clock, warn=warnings.append, sysfs=sysfs, proc=proc)
        elif sensor is not None:
            reading = sensor.read(question["pids"])
        answer = {
            "reading": reading,
            "warnings": warnings,
            "held_s": clock.held_s,
            "threads": threading.active_count(),
            "info": sensor.gpu_info() if sensor is not None else {},
            "has_pynvml": "pynvml" in sys.modules,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _answer_questions(sys.argv[1], sys.argv[2], sys.stdin)
