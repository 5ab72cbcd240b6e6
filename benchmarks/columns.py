"""Compares our columns with the peer's on the same machine, with the same job, at the same time."""

import time
from collections.abc import Callable, Sequence

import psutil

from benchmarks.tables import UNKNOWN, check, table
from benchmarks.trackers import PROCFS, PSUTIL, Collector, Record, Row, default_tracker, has_peer, start_peers
from benchmarks.workspace import Workspace, workload

_LEFT_OUT = ("timestamp", "process_pid")
_MEANT = {
    ("system_disk_space_used_gb", PROCFS): "it counts the blocks that are reserved for root as used",
    ("system_net_recv_bytes", PSUTIL): "it counts loopback",
    ("system_net_sent_bytes", PSUTIL): "it counts loopback",
}
"""Intended differences."""
_MEANT_MOUNTED_TWICE = {
    (f"system_disk_space_{part}_gb", label): "it counts a file system once for each of its mounts"
    for part in ("total", "used", "free")
    for label in (PSUTIL, PROCFS)
}
"""Applies where a file system has two mounts, as with a container engine."""


def measure(workspace: Workspace, *, window_s: float, say: Callable[[str], None]) -> str:
    """Let all trackers record one job that computes, forks, holds memory and writes; return means and differences."""
    if not has_peer():
        return UNKNOWN
    say(f"columns: {window_s:.0f} s")
    ours = default_tracker()
    peers = start_peers(workspace)
    collector = Collector(workspace, tracker=ours, job=workload("mixed"))
    pid = collector.job_pid()
    for peer in peers.values():
        peer.track(pid)
    time.sleep(4.0)
    began = time.time()
    time.sleep(window_s)
    ended = time.time()
    time.sleep(1.5)
    records = {label: peer.record() for label, peer in peers.items()}
    workspace.end_jobs(pid)
    records[ours] = collector.record()
    means = {label: _means(record, began, ended) for label, record in records.items()}
    reasons = (_MEANT_MOUNTED_TWICE if _some_mounted_twice() else {}) | _MEANT
    lines, failures, meant = [], [], []
    for column, mean in means[ours].items():
        if column in _LEFT_OUT or "gpu" in column:
            continue
        cells = [_figure(mean)]
        for label in (PSUTIL, PROCFS):
            other = means[label].get(column)
            cells.append(_figure(other))
            if other is not None and not _agrees(column, mean, other):
                if (column, label) in reasons:
                    meant.append(f"- `{column}`, {label}: meant, {reasons[column, label]}")
                else:
                    failures.append(f"{column} {_figure(mean)} / {label} {_figure(other)}")
        lines.append([f"`{column}`", *cells])
    return "\n".join(
        (
            table(["mean", ours, PSUTIL, PROCFS], lines),
            "",
            f"Means over {window_s:.0f} s; CPU seconds and bytes per second.",
            "",
            check("memory, space and bytes within 2 %, CPU within 5 % or 0.05 cores", failures),
            *meant,
        )
    )


def _some_mounted_twice() -> bool:
    devices = [partition.device for partition in psutil.disk_partitions()]
    return len(set(devices)) < len(devices)


def _means(record: Record, began: float, ended: float) -> dict[str, float]:
    return _mean_of_rows(record.system, began, ended) | _mean_of_rows(record.process, began, ended)


def _mean_of_rows(rows: Sequence[Row], began: float, ended: float) -> dict[str, float]:
    """Return the means of levels, and of interval counts the sum over the rows' time."""
    inside = [index for index, row in enumerate(rows) if index and began <= row["timestamp"] <= ended]
    length_s = rows[inside[-1]]["timestamp"] - rows[inside[0] - 1]["timestamp"]
    means = {}
    for column in rows[0]:
        total = sum(rows[index].get(column, 0.0) for index in inside)
        is_count = column.endswith(("_bytes", "_utime", "_stime"))
        means[column] = total / (length_s if is_count else len(inside))
    return means


def _agrees(column: str, ours: float, theirs: float) -> bool:
    if column.endswith(("_utime", "_stime", "_cpu_usage")):
        return abs(ours - theirs) <= max(0.05 * theirs, 0.05)
    # A few blocks of the file system, or one packet, are no real difference.
    floor = {"bytes": 4096.0, "mib": 0.5}.get(column.rpartition("_")[2], 1.0)
    return abs(ours - theirs) <= max(0.02 * theirs, floor)


def _figure(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"
