"""Runs a command under a Sampler with an exact counter, in a process of its own, and prints what came of it as JSON.

`python accounted_run.py PROC -- COMMAND…`: PROC is the `/proc` in which cgroups are looked for. Printed are the rows'
CPU seconds, the kernel's for the job (`wait4`), the cgroup's for all that was in it, and what of these were ours.
"""

import json
import os
import resource
import sys
import time

from sentinel_collector.sampling.sampler import Sampler
from sentinel_collector.sensors import baseline
from sentinel_collector.sensors.cgroup.accounting import RunCgroupScope
from sentinel_protocol.common.clock import SystemClock


def main() -> None:
    proc, command = sys.argv[1], sys.argv[3:]
    clock = SystemClock()
    before = baseline.Baseline(clock)
    with RunCgroupScope("cgroup", proc=proc) as accounting:
        pid = accounting.spawn_inside(lambda: os.posix_spawn(command[0], command, os.environ))
        counter = accounting.counter
        assert counter is not None
        # What we use ourselves must not show up.
        used_ns = time.process_time_ns() + 100_000_000
        while time.process_time_ns() < used_ns:
            pass
        sampler = Sampler(
            clock=clock, baseline=before, root_pid=pid, own_child=True, interval_s=0.1, accounting=counter
        )
        rows = []
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            rows.append(sampler.sample())
            time.sleep(0.1)
        usages: list[resource.struct_rusage] = []

        def reap() -> resource.struct_rusage:
            usages.append(os.wait4(pid, 0)[2])
            return usages[0]

        last = sampler.final(reap)
        assert last is not None
        rows.append(last)
        name = sampler.accounting
        sampler.close()
        found = {
            "accounting": name,
            "path": counter.path,
            "user_s": sum(row.process_utime or 0.0 for row in rows),
            "system_s": sum(row.process_stime or 0.0 for row in rows),
            "job_user_s": usages[0].ru_utime,
            "job_system_s": usages[0].ru_stime,
            "group_s": counter._cpu.total_us() / 1e6,
            "own_s": counter._own_us / 1e6,
        }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
