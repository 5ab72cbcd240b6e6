"""Measures a tracker's own usage: CPU per sample, RSS and PSS, at rest and with many processes or much memory."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.measure import CpuMeter, median, pss_mib, rss_mib
from benchmarks.trackers import (
    PROC,
    Collector,
    default_tracker,
    has_accounting,
    start_peers,
)
from benchmarks.workspace import BenchmarkError, Workspace, end, is_settled, wait_until, workload

SITUATIONS = {
    "rest": "at rest (one sleeping process)",
    "foreign": "1,000 foreign processes more",
    "tree": "tracked tree of 200",
    "resident": "job of 2 GiB resident",
}
GROWTH = "growth"
NAMES = (*SITUATIONS, GROWTH)
_BESIDE = ("rest", "tree")
"""Situations that include `--accounting proc`, once: its cost depends on the size of the tree."""
_JOBS = {"rest": "idle", "foreign": "idle"}
WARM_UP_S = 3.0


@dataclass(frozen=True)
class Plan:
    """Samples of a window (one a second)."""

    samples: int
    resident_samples: int
    """The only window: PSS of so much memory is read about once in 80 s, and all samples in between share its cost."""
    growth_samples: int


FULL = Plan(samples=15, resident_samples=90, growth_samples=100_000)
QUICK = Plan(samples=4, resident_samples=8, growth_samples=5_000)


@dataclass(frozen=True)
class Cost:
    """One window of one tracker: CPU milliseconds per sample, memory at its end in MiB."""

    cpu_ms: float
    rss_mib: float
    pss_mib: float


@dataclass
class Costs:
    """All windows of one situation, by tracker."""

    windows: dict[str, list[Cost]] = field(default_factory=dict)
    is_exact: bool = True

    def cpu_ms(self, tracker: str) -> float | None:
        """Median CPU per sample."""
        return median(cost.cpu_ms for cost in self.windows.get(tracker, ()))

    def rss_mib(self, tracker: str) -> float | None:
        """Median resident set."""
        return median(cost.rss_mib for cost in self.windows.get(tracker, ()))

    def pss_mib(self, tracker: str) -> float | None:
        """Median proportional set."""
        return median(cost.pss_mib for cost in self.windows.get(tracker, ()))


def measure(
    workspace: Workspace, *, runs: int, only: str | None, plan: Plan, say: Callable[[str], None]
) -> dict[str, Costs]:
    """Measure every situation, or `only` one."""
    situations = {name: Costs() for name in SITUATIONS if only in {None, name}}
    for run in range(runs):
        for name, costs in situations.items():
            if name == "resident" and run:
                continue
            samples = plan.resident_samples if name == "resident" else plan.samples
            say(f"overhead: {name}, run {run + 1} of {runs}, {samples} samples")
            _window(workspace, name, costs, default_tracker(), samples, with_peers=True)
    if has_accounting():
        for name, costs in situations.items():
            if name in _BESIDE:
                say(f"overhead: {name}, --accounting proc")
                _window(workspace, name, costs, PROC, plan.samples, with_peers=False)
    return situations


def _window(workspace: Workspace, name: str, costs: Costs, tracker: str, samples: int, *, with_peers: bool) -> None:
    """Let the trackers record the same job for a while, and measure their usage."""
    crowd = workspace.start_workload("foreign") if name == "foreign" else None
    peers = start_peers(workspace) if with_peers else {}
    job = workload(_JOBS.get(name, name))
    collector = Collector(workspace, tracker=tracker, job=job, rows=False)
    pid = collector.job_pid()
    phase = time.time() % 1.0
    wait_until(lambda: is_settled(pid), "the job is there")
    for peer in peers.values():
        peer.track(pid)
    pids = {tracker: collector.pids} | {label: peer.pids for label, peer in peers.items()}
    meters = {label: CpuMeter(workspace, some) for label, some in pids.items()}
    costs.is_exact = all(meter.is_exact for meter in meters.values())
    time.sleep(WARM_UP_S)
    # The window begins and ends between samples: the peer samples at whole seconds, ours at seconds since its start.
    quiet = phase / 2 if phase >= 0.5 else (1 + phase) / 2
    time.sleep((quiet - time.time()) % 1.0)
    before = {label: meter.cpu_s() for label, meter in meters.items()}
    time.sleep(samples)
    for label, meter in meters.items():
        cpu_ms = (meter.cpu_s() - before[label]) / samples * 1e3
        costs.windows.setdefault(label, []).append(Cost(cpu_ms, rss_mib(pids[label]), pss_mib(pids[label])))
    processes = [collector.process, *(peer.process for peer in peers.values())]
    for process in processes:
        if process.poll() is not None:
            raise BenchmarkError(f"a tracker ended during the measurement: {process.args!r}")
    workspace.end_jobs(pid)
    collector.process.wait(30)
    for process in [*processes, *([crowd] if crowd else [])]:
        end(process)
    workspace.end_cgroups()
