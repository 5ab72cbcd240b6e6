"""Measures the delays of a wrapped job: of its start, and of the collector's end after the job's."""

import time
from collections.abc import Callable, Sequence

from benchmarks.measure import median
from benchmarks.tables import check, number, table
from benchmarks.workspace import COLLECTOR, Workspace

_JOBS = {
    "0 s": ("date", "+%s.%N"),
    "1 s": ("sh", "-c", "date +%s.%N; sleep 1; date +%s.%N"),
}
"""Both print the times when they begin and when they are about to end."""


class Times:
    """Seconds of all repetitions of one job, started in one way."""

    def __init__(self) -> None:
        self.until_running: list[float] = []
        self.after_end: list[float] = []

    def cells(self) -> list[str]:
        """Return median, least and 90th percentile of both, in ms."""
        both = (self.until_running, self.after_end)
        values = (value for series in both for value in (middle(series), min(series), _p90(series)))
        return [number(value * 1e3, 1) for value in values]


def measure(workspace: Workspace, *, pairs: int, say: Callable[[str], None]) -> str:
    """Start the same jobs directly and through the collector in turn; returns the Markdown."""
    say(f"start: {pairs} pairs")
    through = [COLLECTOR, "--no-cloud", "--quiet", "--connect", workspace.address, "--"]
    ways: dict[str, Sequence[str]] = {"directly": (), "through the collector": through}
    times = {(way, job): Times() for job in _JOBS for way in ways}
    for repetition in range(pairs + 1):
        for (way, job), result in times.items():
            once = _once(workspace, [*ways[way], *_JOBS[job]])
            # The first of each fills the page cache.
            if repetition:
                result.until_running.append(once[0])
                result.after_end.append(once[1])
    rows = [[f"{way}, job of {job}", *result.cells()] for (way, job), result in times.items()]
    started = {way: middle(times[way, "0 s"].until_running + times[way, "1 s"].until_running) for way in ways}
    delay_ms = (started["through the collector"] - started["directly"]) * 1e3
    after_ms = {job: middle(times["through the collector", job].after_end) * 1e3 for job in _JOBS}
    until, after = "until the job runs, ms", "from the job's end to the command's, ms"
    header = ["started", until, "least", "p90", after, "least", "p90"]
    return "\n".join(
        (
            table(header, rows),
            "",
            f"{pairs} of each in turn, `--connect` to a live uploader.",
            "",
            check(f"the job's start is delayed by at most 60 ms ({delay_ms:.1f} ms)", _above(delay_ms, 60)),
            *(
                check(f"the collector ends within 150 ms after a job of {job} ({ms:.1f} ms)", _above(ms, 150))
                for job, ms in after_ms.items()
            ),
        )
    )


def _once(workspace: Workspace, words: Sequence[str]) -> tuple[float, float]:
    """Return the seconds until the job has begun, and from its end until the whole command has ended."""
    began = time.time()
    process = workspace.start(words)
    out, _ = process.communicate(timeout=60)
    ended = time.time()
    said = [float(line) for line in out.split()]
    return said[0] - began, ended - said[-1]


def middle(values: Sequence[float]) -> float:
    """Return the median of what is not empty."""
    value = median(values)
    assert value is not None
    return value


def _p90(values: Sequence[float]) -> float:
    return sorted(values)[int(len(values) * 0.9)]


def _above(value: float, limit: float) -> list[str]:
    return [f"{value:.1f} ms"] if value > limit else []
