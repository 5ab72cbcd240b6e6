"""Runs a command under a Sampler in a process of its own and prints what the rows say, and the truth, as JSON.

`python sampled_run.py [--adopt] [--interval SECONDS] [--pss-share PART] -- COMMAND…`. The truth is `RUSAGE_CHILDREN`
of this process once all is reaped, and a cgroup's counter (v1 `cpuacct`) where one can be made.
"""

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from sentinel_collector.job.subreaper import set_subreaper
from sentinel_collector.sampling.sampler import Sampler
from sentinel_collector.sensors import baseline
from sentinel_collector.sensors.process_tree.pss_estimator import DEFAULT_SHARE
from sentinel_protocol.common.clock import SystemClock
from sentinel_protocol.wire.sample import COLUMNS, Sample

CPUACCT = "/sys/fs/cgroup/cpuacct"


class Group:
    """A cgroup for the command, where that is possible."""

    def __init__(self) -> None:
        self.path = f"{CPUACCT}/sentinel-stream-test-{os.getpid()}"
        try:
            os.mkdir(self.path)
        except OSError:
            self.path = ""

    def around(self, command: list[str]) -> list[str]:
        if not self.path:
            return command
        return ["sh", "-c", 'echo $$ > "$0/tasks" && exec "$@"', self.path, *command]

    def wait_until_inside(self, job: subprocess.Popen[bytes]) -> None:
        """The shell that moves itself into the group is no part of the command: its memory is not to be seen."""
        while self.path and not _has_ended(job.pid):
            with open(f"/proc/{job.pid}/comm") as comm:
                if comm.read() != "sh\n":
                    return
            time.sleep(0.001)

    def leave(self) -> float | None:
        if not self.path:
            return None
        with open(f"{self.path}/cpuacct.usage") as usage:
            seconds = int(usage.read()) / 1e9
        with contextlib.suppress(OSError):
            os.rmdir(self.path)
        return seconds


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def _reap_orphans(job_pid: int) -> list[tuple[int, resource.struct_rusage]]:
    """Reap every child that has ended but the job."""
    reaped = []
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for pid in (int(word) for word in children if int(word) != job_pid):
        ended, _status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            reaped.append((pid, usage))
    return reaped


def run(command: list[str], *, interval_s: float, adopt: bool, pss_share: float) -> dict[str, object]:
    if adopt and not set_subreaper():
        raise SystemExit("cannot become a sub-reaper")
    group = Group()
    clock = SystemClock()
    before = baseline.Baseline(clock)
    job = subprocess.Popen(group.around(command))
    group.wait_until_inside(job)
    sampler = Sampler(
        clock=clock,
        baseline=before,
        root_pid=job.pid,
        own_child=True,
        interval_s=interval_s,
        adopter_pid=os.getpid() if adopt else 0,
        take_reaped=lambda: _reap_orphans(job.pid) if adopt else [],
        pss_share=pss_share,
    )
    rows: list[Sample] = []
    root_usage: list[resource.struct_rusage] = []

    def reap() -> resource.struct_rusage:
        _pid, status, usage = os.wait4(job.pid, 0)
        job.returncode = os.waitstatus_to_exitcode(status)
        root_usage.append(usage)
        return usage

    while True:
        time.sleep(interval_s)
        ended = _has_ended(job.pid)
        if ended and not adopt:
            break
        rows.append(sampler.sample())
        # Daemons outlive the root, whose zombie stays a member until it is reaped.
        if ended and sampler.living <= 1:
            break
    last = sampler.final(reap)
    if last is not None:
        rows.append(last)
    sampler.close()
    everything = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "columns": COLUMNS,
        "rows": [msgspec.to_builtins(row) for row in rows],
        "root_s": root_usage[0].ru_utime + root_usage[0].ru_stime,
        "reaped_s": everything.ru_utime + everything.ru_stime,
        "group_s": group.leave(),
        "peak_mib": sampler.peak_memory_mib,
        "exit_code": job.returncode,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--adopt", action="store_true")
    parser.add_argument("--interval", type=float, default=0.1)
    parser.add_argument("--pss-share", type=float, default=DEFAULT_SHARE)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    json.dump(
        run(options.command, interval_s=options.interval, adopt=options.adopt, pss_share=options.pss_share), sys.stdout
    )


if __name__ == "__main__":
    main()
