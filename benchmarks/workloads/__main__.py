"""Runs one workload: `python -S -m benchmarks.workloads NAME`.

At its end the root writes what it knows about itself to the file that `BENCH_REPORT` names.
"""

import sys

from benchmarks.workloads import children, cpu, crowd, disk, memory
from benchmarks.workloads.tools import report

WORKLOADS = {**cpu.WORKLOADS, **children.WORKLOADS, **memory.WORKLOADS, **disk.WORKLOADS, **crowd.WORKLOADS}

if __name__ == "__main__":
    report(WORKLOADS[sys.argv[1]]())
