"""`python -m chaos.network`: a run at 10 Hz across two network namespaces with delay, loss and a cut of a minute.

Needs root. Delay and loss come from `tc netem`; a kernel without it gets the loss from iptables' `statistic` match and
the delay from a relay in the collector's namespace, and the report says so. Exits with 0 when the run came whole.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
from fakes.process_harness import COLLECTOR, UPLOADER, Home, rows_of_file, wait_until
from fakes.two_machines import CannotMakeError, TwoMachines

from chaos.relay import Relay

DELAY_MS = 100
LOSS_PERCENT = 2
PORT = 7740
_PATIENCE_S = 120.0


class Link(NamedTuple):
    """The machines of a collector (`near`) and an uploader (`far`), and what is wrong with the cable."""

    machines: TwoMachines
    has_netem: bool
    has_loss: bool

    def describe(self) -> str:
        """How the disturbance is made on this kernel."""
        if self.has_netem:
            return f"tc netem: {DELAY_MS} ms, {LOSS_PERCENT} % loss"
        loss = f"{LOSS_PERCENT} % loss by iptables" if self.has_loss else "no loss (iptables has no statistic match)"
        return f"this kernel has no netem: {loss}, {DELAY_MS} ms by a relay"


@contextlib.contextmanager
def way_to_uploader(home: Home, link: Link) -> Iterator[str]:
    """Yield the address that the collector connects to: through a relay where the kernel cannot delay."""
    if link.has_netem:
        yield f"tcp://{link.machines.far.address}:{PORT}"
        return
    relay = home.start(
        *link.machines.near.prefix, sys.executable, "-m", "chaos.network",
        "--relay", link.machines.far.address, stdin=subprocess.PIPE,
        env={"PYTHONPATH": os.environ.get("PYTHONPATH", "")}, cwd=os.getcwd(),
    )  # fmt: skip
    assert relay.stdout is not None
    assert relay.stdin is not None
    yield relay.stdout.readline().strip()
    relay.stdin.close()
    relay.wait(20)


def serve_relay(target_host: str) -> int:
    """Delay what passes until the standard input is closed."""
    with Relay(PORT, None, target_host=target_host) as relay:
        relay.delay(DELAY_MS / 2000)
        print(relay.url, flush=True)
        sys.stdin.read()
    return 0


def cpu_share(process: psutil.Process, seconds: float) -> float:
    """Watch a process for so long."""
    before = sum(process.cpu_times()[:2])
    time.sleep(seconds)
    return (sum(process.cpu_times()[:2]) - before) / seconds


def judge(home: Home, link: Link, *, cut_s: float) -> Sequence[str]:
    """Record a job across the link, cut it in the middle; return what has not held."""
    assert home.run(UPLOADER, "keys", "init").returncode == 0
    added = home.run(UPLOADER, "keys", "add", "far-away").stdout.splitlines()
    environ = dict(line.split("=", 1) for line in added)
    log = home.directory / "uploader.log"
    with log.open("w") as file:
        bind = f"tcp://{link.machines.far.address}:{PORT}"
        spool = ("--spool", str(home.directory / "spool"))
        serve = ("serve", "--bind", bind, "--upload-interval", "5", *spool)
        home.start(*link.machines.far.prefix, UPLOADER, *serve, stdout=file, stderr=file)
    wait_until(lambda: "uploader ready" in log.read_text(), "the uploader listens")
    output = home.directory / "rows.csv"
    with way_to_uploader(home, link) as url:
        words = ("--connect", url, "--interval", "0.1", "--output", str(output), "--wait", "60", "--", "cat")
        collector = home.start(
            *link.machines.near.prefix, COLLECTOR, *words, env=environ, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        process = psutil.Process(collector.pid)
        wait_until(lambda: home.status(*spool), "the run has begun")
        time.sleep(5.0)
        before = cpu_share(process, 20.0)
        link.machines.cut()
        during = cpu_share(process, cut_s)
        link.machines.mend()
        time.sleep(10.0)
        _, said = collector.communicate("", timeout=_PATIENCE_S)
    print(said.strip())
    wait_until(lambda: home.local_runs() and home.local_runs()[0]["state"] == "finished", "the run has ended")
    (run,) = home.local_runs()
    taken, arrived = rows_of_file(output), home.local_rows(run)
    print(f"rows: {len(taken)} taken, {len(arrived)} arrived, the same: {taken == arrived}")
    print(f"the collector's CPU: {before:.2%} of a core before the cut, {during:.2%} during it")
    problems = [] if taken == arrived and collector.returncode == 0 else ["the run has not arrived whole"]
    if during > before * 1.1:
        problems.append("the cut costs CPU")
    return problems


def main() -> int:
    """Run it in directories and namespaces of its own."""
    parser = argparse.ArgumentParser(prog="make test-network", description=__doc__)
    parser.add_argument("--cut", type=float, default=60.0, help="seconds without a network")
    parser.add_argument("--relay", metavar="HOST", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.relay:
        return serve_relay(arguments.relay)
    directory, runtime = Path(tempfile.mkdtemp(prefix="network-")), Path(tempfile.mkdtemp(prefix="ss-"))
    home = Home(directory, runtime, os.environ)
    try:
        with TwoMachines() as machines:
            link = Link(machines, *machines.disturb(delay_ms=DELAY_MS, loss_percent=LOSS_PERCENT))
            print(link.describe(), flush=True)
            try:
                problems = judge(home, link, cut_s=arguments.cut)
            finally:
                home.close()
    except CannotMakeError as error:
        raise SystemExit(str(error)) from error
    finally:
        shutil.rmtree(runtime)
        shutil.rmtree(directory)
    print("\n".join(problems) or "the run arrived whole, and the cut cost nothing")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
