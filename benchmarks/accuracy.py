"""Compares the sum over a run's rows with the job's real usage."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.cgroup import own_places
from benchmarks.measure import lateness_p99_ms, median
from benchmarks.trackers import AUTO, Collector, Record, default_tracker, has_accounting, start_peers
from benchmarks.workspace import Workspace, workload

CPU = {
    "busy": "one busy process",
    "pool": "pool of 2",
    "brief": "children of 20 to 80 ms",
    "nested": "nested children",
    "of-thread": "child of a thread",
    "daemon": "daemon, forked twice",
    "threads": "2 busy threads",
    "ignored-brief": "SIGCHLD ignored, 20 to 80 ms",
    "ignored-long": "SIGCHLD ignored, 2 s",
    "short": "0.3 s job",
}
AUTO_REAPED = frozenset({"ignored-brief", "ignored-long"})
OUTLIVES_PARENT = AUTO_REAPED | {"daemon"}
MEMORY, DISK = "shared", "write"
NAMES = (*CPU, MEMORY, DISK)


@dataclass
class Run:
    """One run of one workload: the truth and each tracker's rows."""

    truth: dict[str, float]
    records: dict[str, Record]
    began_at: float


@dataclass
class Results:
    """All runs of one workload."""

    runs: list[Run] = field(default_factory=list)

    def truth(self, name: str) -> float | None:
        """Median over the runs."""
        return median(run.truth.get(name) for run in self.runs)

    def figure(self, tracker: str, of: Callable[[Run, Record], float | None]) -> float | None:
        """Median over the runs that `tracker` took part in."""
        return median(of(run, run.records[tracker]) for run in self.runs if tracker in run.records)

    def uses_cgroup(self, tracker: str) -> bool:
        """Whether the collector had a cgroup in every run."""
        return all(run.records[tracker].accounting == "cgroup" for run in self.runs if tracker in run.records)

    def relative(self, tracker: str, name: str, of: Callable[[Record], float]) -> float | None:
        """Median of the recorded part of the truth."""
        return self.figure(tracker, lambda run, record: of(record) / run.truth[name] if name in run.truth else None)


@dataclass
class Accuracy:
    """All workloads, and the p99 deviation of sample times in ms by tracker (empty where it was not measured)."""

    results: dict[str, Results]
    lateness: dict[str, float | None]


def cpu_s(record: Record) -> float:
    """CPU seconds of all rows."""
    return sum(row["process_utime"] + row["process_stime"] for row in record.process)


def memory_mib(record: Record) -> float:
    """The highest memory of a row."""
    return max((row["process_memory_mib"] for row in record.process), default=0.0)


def written_bytes(record: Record) -> float:
    """Bytes of all rows."""
    return sum(row["process_disk_write_bytes"] for row in record.process)


def measure(
    workspace: Workspace,
    *,
    trackers: Sequence[str],
    runs: int,
    only: str | None,
    idle_s: float,
    say: Callable[[str], None],
) -> Accuracy:
    """Run all workloads under each of our `trackers`; the peer's implementations measure beside the first."""
    taken = _hierarchies_of_collector(workspace)
    results = {name: Results() for name in NAMES if only in {None, name}}
    for number_of_run in range(runs):
        for name, result in results.items():
            say(f"accuracy: {name}, run {number_of_run + 1} of {runs}")
            for tracker in trackers:
                result.runs.append(_run(workspace, name, tracker, taken, with_peers=tracker == trackers[0]))
    lateness: dict[str, float | None] = {}
    if only is None:
        say("accuracy: times of samples")
        lateness = _lateness(workspace, idle_s)
    return Accuracy(results, lateness)


def _run(workspace: Workspace, name: str, tracker: str, taken: frozenset[str], *, with_peers: bool) -> Run:
    """Run a workload under the collector, with or without the peer's implementations beside it."""
    cgroup = workspace.cgroup(not_in=taken if tracker == AUTO else frozenset())
    report = workspace.path(".report")
    peers = start_peers(workspace) if with_peers else {}
    began_at = time.time()
    job = ["env", f"BENCH_REPORT={report}", *workload(name)]
    collector = Collector(workspace, tracker=tracker, job=job, cgroup=cgroup)
    pid = collector.job_pid()
    for peer in peers.values():
        peer.track(pid)
    records = {tracker: collector.record()}
    records |= {label: peer.record() for label, peer in peers.items()}
    truth: dict[str, float] = json.loads(report.read_text())
    if cgroup is not None:
        truth["cpu_s"] = cgroup.cpu_s()
        cgroup.remove()
    elif name in OUTLIVES_PARENT:
        del truth["cpu_s"]
    return Run(truth, records, began_at)


def _hierarchies_of_collector(workspace: Workspace) -> frozenset[str]:
    """Find out in which cgroup hierarchies the collector counts: the truth has to come from another.

    One cgroup within the other would be changed by the other's making, moving and removing.
    """
    if not has_accounting():
        return frozenset()
    collector = Collector(workspace, tracker=AUTO, job=["sleep", "1.5"])
    pid = collector.job_pid()
    time.sleep(1.0)
    ours, jobs = own_places(), own_places(pid)
    collector.record()
    return frozenset(hierarchy for hierarchy, place in jobs.items() if ours[hierarchy] != place)


def _lateness(workspace: Workspace, idle_s: float, interval_s: float = 0.1) -> dict[str, float | None]:
    job = workspace.start_workload("idle")
    peers = start_peers(workspace, interval_s)
    ours = default_tracker()
    collector = Collector(workspace, tracker=ours, interval_s=interval_s, pid=job.pid)
    for peer in peers.values():
        peer.track(job.pid)
    time.sleep(idle_s)
    rows = {label: peer.record().process for label, peer in peers.items()}
    job.kill()
    job.wait()
    rows[ours] = collector.record().process
    return {label: lateness_p99_ms(some, interval_s) for label, some in rows.items()}
