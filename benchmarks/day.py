"""A day of one run in minutes: both real commands, an upload every minute of their own time, a strict backend.

It checks that neither process grows, and that an upload cycle costs no more at the end than at the beginning.
"""

import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.measure import rss_mib
from benchmarks.tables import check, number, table
from benchmarks.virtual import VirtualTime
from benchmarks.workspace import ROOT, BenchmarkError, Workspace, wait_until, workload

HOUR_S = 3600.0
INTERVAL_S = 5.0
UPLOAD_S = 60.0
_GROWN = 0.10
_STALL_S = 120.0
_LOOK_S = 0.005
_ENDS_H = 4
"""Hours at either end whose median is the cost of a cycle."""


class Mark(NamedTuple):
    """Memory of both processes, and their CPU time so far."""

    collector_mib: float
    uploader_mib: float
    collector_cpu_s: float
    uploader_cpu_s: float


class Day(NamedTuple):
    """Results: a mark at the first sample and after each hour, and the delivered rows."""

    marks: list[Mark]
    objects: int
    rows: int
    seconds: float


def measure(workspace: Workspace, hours: int, say: Callable[[str], None]) -> str:
    """Let `hours` pass; returns the Markdown."""
    # The fakes belong to the tests and are not installed.
    sys.path.append(str(ROOT / "tests"))
    from fakes.backend import Backend

    path = workspace.path(".time")
    virtual = VirtualTime.create(path)
    began = time.monotonic()
    with Backend(now=virtual.now) as backend:
        uploader = _start_uploader(workspace, path, backend.environ)
        collector = _start_collector(workspace, path)
        marks = [_mark(collector.pid, uploader.pid)]
        for hour in range(1, hours + 1):
            _wait_for(virtual, hour * HOUR_S, (collector, uploader))
            marks.append(_mark(collector.pid, uploader.pid))
            say(f"day: {hour} of {hours} hours, {time.monotonic() - began:.0f} s")
        _end(workspace, collector, uploader)
        objects = len(backend.s3.objects())
        rows = len(backend.rows(backend.only_run()))
    virtual.close()
    return _markdown(Day(marks, objects, rows, time.monotonic() - began))


def _start_uploader(workspace: Workspace, time_file: Path, environ: Mapping[str, str]) -> "subprocess.Popen[str]":
    log = workspace.path(".log")
    words = [sys.executable, "-m", "benchmarks.virtual", str(time_file), "uploader", "serve"]
    words += ["--bind", workspace.address, "--spool", str(workspace.directory / "spool")]
    with log.open("w") as file:
        process = workspace.start([*words, "--upload-interval", str(UPLOAD_S)], env=environ, stderr=file)
    wait_until(lambda: process.poll() is not None or "uploader ready" in log.read_text(), "the uploader listens")
    return process


def _start_collector(workspace: Workspace, time_file: Path) -> "subprocess.Popen[str]":
    words = [sys.executable, "-m", "benchmarks.virtual", str(time_file), "collector", "--connect", workspace.address]
    words += ["--interval", str(INTERVAL_S), "--wait", "60", "--quiet", "--summary-json", str(_summary(workspace))]
    return workspace.start([*words, "--", *workload("coming-and-going")])


def _summary(workspace: Workspace) -> Path:
    return workspace.directory / "summary.json"


def _mark(collector: int, uploader: int) -> Mark:
    return Mark(rss_mib([collector]), rss_mib([uploader]), _cpu_s(collector), _cpu_s(uploader))


def _cpu_s(pid: int) -> float:
    """CPU seconds of a process without its children."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(file.read_bytes().split()[0]) for file in tasks) / 1e9


def _wait_for(virtual: VirtualTime, until_s: float, processes: Sequence["subprocess.Popen[str]"]) -> None:
    moved_at, before_s = time.monotonic(), -1.0
    while (passed_s := virtual.passed_s) < until_s:
        now = time.monotonic()
        if passed_s > before_s:
            moved_at, before_s = now, passed_s
        ended = [process.returncode for process in processes if process.poll() is not None]
        if ended or now - moved_at > _STALL_S:
            raise BenchmarkError(f"time stands still after {passed_s:.0f} s, exit codes {ended}")
        time.sleep(_LOOK_S)


def _end(workspace: Workspace, collector: "subprocess.Popen[str]", uploader: "subprocess.Popen[str]") -> None:
    """End the job, and wait for the delivery."""
    for child in Path(f"/proc/{collector.pid}/task/{collector.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    try:
        collector.wait(_STALL_S)
    except subprocess.TimeoutExpired:
        raise BenchmarkError("the collector does not end") from None
    summary = json.loads(_summary(workspace).read_text())
    if summary["undelivered_rows"]:
        raise BenchmarkError(f"not everything is delivered: {summary}")
    uploader.terminate()
    uploader.wait(_STALL_S)


def _markdown(day: Day) -> str:
    marks, hours = day.marks, len(day.marks) - 1
    cycles = HOUR_S / UPLOAD_S
    cycle_ms = [
        (later.uploader_cpu_s - mark.uploader_cpu_s) / cycles * 1e3 for mark, later in itertools.pairwise(marks)
    ]
    sample_ms = [
        (later.collector_cpu_s - mark.collector_cpu_s) / (HOUR_S / INTERVAL_S) * 1e3
        for mark, later in itertools.pairwise(marks)
    ]
    shown = sorted({1, 2, 6, 12, 18, hours} & set(range(1, hours + 1)))
    rows = [
        [
            str(hour),
            number(marks[hour].collector_mib, 2),
            number(marks[hour].uploader_mib, 2),
            number(sample_ms[hour - 1], 2),
            number(cycle_ms[hour - 1], 1),
        ]
        for hour in shown
    ]
    header = ["hour", "collector RSS (MiB)", "uploader RSS (MiB)", "CPU per sample (ms)", "CPU per cycle (ms)"]
    ends = max(1, min(_ENDS_H, hours // 2))
    morning, evening = statistics.median(cycle_ms[:ends]), statistics.median(cycle_ms[-ends:])
    how = (
        f"{day.rows:,} samples of {hours} hours in {day.seconds:.0f} s, {day.objects:,} objects; "
        f"a cycle is a minute of the uploader: {UPLOAD_S / INTERVAL_S:.0f} samples taken in and committed one by one, "
        "a batch cut and put, its share of new credentials."
    )
    first, last = marks[1], marks[-1]
    grown = [
        f"{name} {before:.2f} to {after:.2f} MiB"
        for name, before, after in (
            ("collector", first.collector_mib, last.collector_mib),
            ("uploader", first.uploader_mib, last.uploader_mib),
        )
        if after > before * (1 + _GROWN)
    ]
    slower = [f"{morning:.1f} to {evening:.1f} ms"] if evening > morning * (1 + _GROWN) else []
    checks = (
        check("RSS at the end within 10 % of that after the first hour", grown),
        check(f"CPU of a cycle in the last {ends} hours within 10 % of that in the first {ends}", slower),
    )
    return "\n".join((how, "", table(header, rows), "", *checks))
