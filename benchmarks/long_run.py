"""Checks that the collector's memory does not grow: the samples of a day at full speed."""

import json
import sys

from benchmarks.tables import check, number, table
from benchmarks.workspace import BenchmarkError, Workspace, end, workload

_GROWN_MIB = 0.25
"""Fluctuation of the allocator."""


def measure(workspace: Workspace, samples: int) -> str:
    """Run `benchmarks.growth` beside a job whose processes come and go; returns the Markdown."""
    job = workspace.start(workload("coming-and-going"))
    log = workspace.path(".err")
    words = [sys.executable, "-m", "benchmarks.growth", workspace.address, str(samples), str(job.pid)]
    with log.open("w") as file:
        driver = workspace.start(words, stderr=file)
    assert driver.stdout is not None
    line = driver.stdout.readline()
    if not line:
        driver.wait()
        raise BenchmarkError(f"the accelerated run ended with {driver.returncode}: {log.read_text()}")
    end(driver)
    end(job)
    figures = json.loads(line)
    rss = figures["rss_mib"]
    rows = [[f"{int(count):,}", number(float(mib), 2)] for count, mib in rss.items()]
    values = list(rss.values())
    grown = values[-1] - values[1]
    how = (
        f"{samples:,} samples in {figures['seconds']:.0f} s, {figures['cpu_ms']:.2f} ms of CPU each, "
        f"{figures['unacknowledged']} not acknowledged at the end."
    )
    return "\n".join(
        (
            "### Memory over a long run",
            "",
            how,
            "",
            table(["samples", "RSS (MiB)"], rows),
            "",
            check("RSS not growing after the first tenth", [f"{grown:+.2f} MiB"] if grown > _GROWN_MIB else []),
        )
    )
