"""`python -m oracle.network`: a run at 10 Hz across two network namespaces with delay, loss and a cut of a minute.

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

import psutil
from standins.product import COLLECTOR, UPLOADER, Home, rows_of_file, wait_until

from oracle.relay import Relay

DELAY_MS = 100
LOSS_PERCENT = 2
PORT = 7740
_NEAR, _FAR = "10.231.77.1", "10.231.77.2"
_PATIENCE_S = 120.0


def run_tool(*words: str) -> bool:
    """Run an administrator's command; False when it says no."""
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


class Link:
    """Two namespaces and the cable between them."""

    def __init__(self) -> None:
        self.near, self.far = (f"sst-{os.getpid()}-{end}" for end in ("near", "far"))
        self._cables = [f"sst{os.getpid()}n", f"sst{os.getpid()}f"]
        self.has_netem = False
        self.has_loss = False

    def __enter__(self) -> "Link":
        made = all(run_tool("ip", "netns", "add", name) for name in (self.near, self.far))
        made = made and run_tool("ip", "link", "add", self._cables[0], "type", "veth", "peer", "name", self._cables[1])
        for name, cable, address in zip((self.near, self.far), self._cables, (_NEAR, _FAR), strict=True):
            made = made and run_tool("ip", "link", "set", cable, "netns", name)
            made = made and run_tool(*self.inside(name), "ip", "addr", "add", f"{address}/24", "dev", cable)
            made = made and run_tool(*self.inside(name), "ip", "link", "set", "lo", "up")
            made = made and run_tool(*self.inside(name), "ip", "link", "set", cable, "up")
        if not made:
            self.__exit__()
            raise SystemExit("cannot make network namespaces: needs root, iproute2 and veth")
        self._disturb()
        return self

    def __exit__(self, *_: object) -> None:
        for name in (self.near, self.far):
            run_tool("ip", "netns", "del", name)

    def inside(self, name: str) -> list[str]:
        """Words that run a command in one of the namespaces."""
        return ["ip", "netns", "exec", name]

    def cut(self) -> None:
        """Pull the cable."""
        assert run_tool(*self.inside(self.near), "ip", "link", "set", self._cables[0], "down")

    def mend(self) -> None:
        """Plug it in again."""
        assert run_tool(*self.inside(self.near), "ip", "link", "set", self._cables[0], "up")

    def _disturb(self) -> None:
        # Both ends: half of the delay, and the loss of one direction, each.
        netem = ("root", "netem", "delay", f"{DELAY_MS // 2}ms", "loss", f"{LOSS_PERCENT}%")
        ends = list(zip((self.near, self.far), self._cables, strict=True))
        self.has_netem = all(run_tool(*self.inside(name), "tc", "qdisc", "add", "dev", c, *netem) for name, c in ends)
        if not self.has_netem:
            match = ("-m", "statistic", "--mode", "random", "--probability", str(LOSS_PERCENT / 100), "-j", "DROP")
            self.has_loss = all(
                run_tool(*self.inside(name), "iptables", "-A", "INPUT", "-i", c, *match) for name, c in ends
            )

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
        yield f"tcp://{_FAR}:{PORT}"
        return
    relay = home.start(
        *link.inside(link.near), sys.executable, "-m", "oracle.network", "--relay", stdin=subprocess.PIPE,
        env={"PYTHONPATH": os.environ.get("PYTHONPATH", "")}, cwd=os.getcwd(),
    )  # fmt: skip
    assert relay.stdout is not None
    assert relay.stdin is not None
    yield relay.stdout.readline().strip()
    relay.stdin.close()
    relay.wait(20)


def serve_relay() -> int:
    """Delay what passes until the standard input is closed."""
    with Relay(PORT, None, target_host=_FAR) as relay:
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
        bind = f"tcp://{_FAR}:{PORT}"
        spool = ("--spool", str(home.directory / "spool"))
        serve = ("serve", "--bind", bind, "--upload-interval", "5", *spool)
        home.start(*link.inside(link.far), UPLOADER, *serve, stdout=file, stderr=file)
    wait_until(lambda: "uploader ready" in log.read_text(), "the uploader listens")
    output = home.directory / "rows.csv"
    with way_to_uploader(home, link) as url:
        words = ("--connect", url, "--interval", "0.1", "--output", str(output), "--wait", "60", "--", "cat")
        collector = home.start(
            *link.inside(link.near), COLLECTOR, *words, env=environ, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        process = psutil.Process(collector.pid)
        wait_until(lambda: home.status(*spool), "the run has begun")
        time.sleep(5.0)
        before = cpu_share(process, 20.0)
        link.cut()
        during = cpu_share(process, cut_s)
        link.mend()
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
    parser.add_argument("--relay", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.relay:
        return serve_relay()
    directory, runtime = Path(tempfile.mkdtemp(prefix="network-")), Path(tempfile.mkdtemp(prefix="ss-"))
    home = Home(directory, runtime, os.environ)
    try:
        with Link() as link:
            print(link.describe(), flush=True)
            try:
                problems = judge(home, link, cut_s=arguments.cut)
            finally:
                home.close()
    finally:
        shutil.rmtree(runtime)
        shutil.rmtree(directory)
    print("\n".join(problems) or "the run arrived whole, and the cut cost nothing")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
