"""Runs the collector's parts from sensor to acknowledgement a hundred thousand times at full speed.

`python -m benchmarks.growth ADDRESS SAMPLES PID` does with each row what `sentinel_collector.session` does, without its
waits: Sampler, RunStatistics and Delivery to a live uploader. It waits for acknowledgements only, once a hundred rows
are in flight. It prints resident memory at stages as JSON.
"""

import json
import sys
import tempfile
import time
from resource import RUSAGE_SELF, getrusage

from sentinel_collector.console import Console, Verbosity
from sentinel_collector.delivery.delivery import Delivery
from sentinel_collector.run_description import RunDescription
from sentinel_collector.sampling.sampler import Sampler
from sentinel_collector.sensors import baseline
from sentinel_protocol.common.clock import SystemClock
from sentinel_protocol.common.endpoints import parse_address
from sentinel_protocol.wire.run_statistics import RunStatistics
from sentinel_protocol.wire.sample import encode_sample

_ON_THEIR_WAY = 100
_POLL_S = 0.05
_DEADLINE_S = 30.0


def main() -> None:
    address, samples, pid = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    clock = SystemClock()
    before = baseline.Baseline(clock)
    sampler = Sampler(clock=clock, baseline=before, root_pid=pid, own_child=False, interval_s=1.0)
    statistics = RunStatistics()
    stages = {samples * percent // 100: 0.0 for percent in (1, 10, 25, 50, 75, 100)}
    with tempfile.TemporaryDirectory() as state_dir:
        delivery = Delivery(
            run_key=f"growth-{pid}",
            incarnation="0123456789abcdef",
            addresses=[parse_address(address, bind=False)],
            local_uploader=None,
            state_dir=state_dir,
            description=RunDescription(interval_s=1.0, metadata={}, host={}, cloud={}, cloud_pending=False),
            clock=clock,
            console=Console(Verbosity.NORMAL),
            on_welcome=lambda _welcome: None,
        )
        began, used = time.monotonic(), _cpu_s()
        for count in range(1, samples + 1):
            sample = sampler.sample()
            statistics.add([sample])
            delivery.add(encode_sample(sample))
            deadline = time.monotonic() + _DEADLINE_S
            while delivery.undelivered_rows > _ON_THEIR_WAY:
                delivery.wait(_POLL_S)
                if time.monotonic() > deadline:
                    raise SystemExit("the uploader acknowledges nothing")
            if count in stages:
                stages[count] = _rss_mib()
        seconds = time.monotonic() - began
        cpu_ms = (_cpu_s() - used) / samples * 1e3
        deadline = time.monotonic() + _DEADLINE_S
        while delivery.undelivered_rows and time.monotonic() < deadline:
            delivery.wait(_POLL_S)
        figures = {"rss_mib": stages, "seconds": seconds, "cpu_ms": cpu_ms, "unacknowledged": delivery.undelivered_rows}
        print(json.dumps(figures), flush=True)
        delivery.close(None)
        sampler.close()


def _cpu_s() -> float:
    used = getrusage(RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _rss_mib() -> float:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS:")) / 1024


if __name__ == "__main__":
    main()
