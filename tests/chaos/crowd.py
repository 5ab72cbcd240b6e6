"""`python -m chaos.crowd`: more collectors than an uploader has descriptors for.

Each has the collector's own delivery (backlog, link, file, socket) without its sensors, one row a second. The uploader
is the real command with a low descriptor limit. Exits with 0 when all that was promised has held.
"""

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil
from fakes.process_harness import UPLOADER, Home, wait_until
from fakes.strict_http_server import free_port

from sentinel_collector.console import Console, Verbosity
from sentinel_collector.delivery.delivery import Delivery
from sentinel_collector.run_description import RunDescription
from sentinel_protocol.common.clock import SystemClock
from sentinel_protocol.common.endpoints import parse_address
from sentinel_protocol.wire.curve_keys import ClientCurveKeys, load_server_key, read_key_pair
from sentinel_protocol.wire.messages import Finish
from sentinel_protocol.wire.sample import Sample, encode_sample

SHARE_OF_A_CORE = 0.05
PATIENCE_S = 180.0
_ROUND_S = 0.1
_MACHINES = 8


class Member:
    """One collector of the crowd."""

    def __init__(self, number: int, url: str, keys: ClientCurveKeys, state_dir: Path) -> None:
        self.rows = 0
        self.is_ended = False
        self._next_at = time.monotonic() + number / 200
        self._delivery = Delivery(
            run_key=f"member-{number}",
            incarnation=f"{number:016x}",
            addresses=[parse_address(url, bind=False)],
            local_uploader=None,
            state_dir=str(state_dir),
            description=RunDescription(interval_s=1.0, metadata={}, host={}, cloud={}, cloud_pending=False),
            clock=SystemClock(),
            console=Console(Verbosity.QUIET, fd=os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)),
            on_welcome=lambda _: None,
            keys={url: keys},
        )

    @property
    def is_inside(self) -> bool:
        """Whether an uploader has taken all but the newest rows."""
        return self.rows > 2 and self._delivery.undelivered_rows <= 2

    @property
    def is_durable(self) -> bool:
        return self._delivery.is_acknowledged

    def turn(self, now: float) -> None:
        """Take a row when it is time, and see to the conversation."""
        if now >= self._next_at and not self.is_ended:
            self._next_at += 1.0
            self.rows += 1
            self._delivery.add(encode_sample(Sample(timestamp=time.time(), system_processes=self.rows)))
        else:
            self._delivery.poll()

    def end(self) -> None:
        """The job is over."""
        self.is_ended = True
        self._delivery.finish(Finish(0, 0, "finished", time.time()))

    def close(self) -> None:
        self._delivery.close(None)


class Crowd:
    """All members, and one uploader with few descriptors."""

    def __init__(self, home: Home, *, members: int, descriptors: int) -> None:
        self._home = home
        assert home.run(UPLOADER, "keys", "init").returncode == 0
        keys = [self._key(f"machine-{number}") for number in range(_MACHINES)]
        port, self._http = free_port(), free_port()
        self._log = home.directory / "uploader.log"
        self.uploader = home.start_uploader(
            "--bind", f"tcp://127.0.0.1:{port}", "--http", str(self._http),
            prefix=("sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh"),
        )  # fmt: skip
        self._process = psutil.Process(self.uploader.pid)
        state = home.directory / "members"
        url = f"tcp://127.0.0.1:{port}"
        self.members = [Member(number, url, keys[number % _MACHINES], state) for number in range(members)]

    def _key(self, name: str) -> ClientCurveKeys:
        added = self._home.run(UPLOADER, "keys", "add", name).stdout.splitlines()
        public, secret = (line.partition("=")[2] for line in added)
        return ClientCurveKeys(read_key_pair(secret), load_server_key(public))

    def pass_time(self, seconds: float) -> None:
        """Give every member its turns for so long."""
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until:
            for member in self.members:
                member.turn(now)
            time.sleep(max(0.0, _ROUND_S - (time.monotonic() - now)))

    def cpu_s(self) -> float:
        """CPU seconds that the uploader has used."""
        times = self._process.cpu_times()
        return times.user + times.system

    def inside(self) -> list[Member]:
        return [member for member in self.members if member.is_inside]

    def complaints(self) -> list[str]:
        """The uploader's lines about who is outside."""
        return [line for line in self._log.read_text().splitlines() if "connection limit reached" in line]

    def turned_away(self) -> float:
        """The metric."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._http}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        label = 'reason="connections"'
        return sum(float(line.rpartition(" ")[2]) for line in lines if "_rejected_total{" in line and label in line)

    def leave_in_turn(self) -> None:
        """Each ends as soon as it is inside, until all have been."""
        deadline = time.monotonic() + PATIENCE_S
        # Whoever is inside and has no row under way is durable as well, before its end.
        while self.members:
            assert time.monotonic() < deadline, f"{len(self.members)} have not come in"
            for member in self.inside():
                if not member.is_ended:
                    member.end()
            for member in [member for member in self.members if member.is_durable and member.is_ended]:
                member.close()
                self.members.remove(member)
            self.pass_time(_ROUND_S)

    def rows_delivered(self) -> int:
        """Rows of all runs that have ended."""
        return sum(run["rows"] for run in self._home.local_runs() if run["state"] == "finished")


def judge(home: Home, *, members: int, descriptors: int, seconds: float) -> list[str]:
    """Let the crowd come, stay and go; return what has not held."""
    crowd = Crowd(home, members=members, descriptors=descriptors)
    everybody = list(crowd.members)
    crowd.pass_time(15.0)
    inside = crowd.inside()
    before = crowd.cpu_s()
    crowd.pass_time(seconds)
    share = (crowd.cpu_s() - before) / seconds
    problems = []
    undisturbed = sum(member.is_inside for member in inside)
    print(f"{members} collectors, {descriptors} descriptors: {len(inside)} inside, {undisturbed} of them all the time")
    print(f"the uploader's CPU: {share:.1%} of a core; turned away: {crowd.turned_away():.0f} times")
    print(*crowd.complaints(), sep="\n")
    if not 0 < len(inside) < members or undisturbed < len(inside):
        problems.append("those inside were disturbed, or nobody was outside")
    if share > SHARE_OF_A_CORE:
        problems.append(f"more than {SHARE_OF_A_CORE:.0%} of a core")
    if not crowd.complaints() or not crowd.turned_away():
        problems.append("no line, or no metric")
    crowd.leave_in_turn()
    rows = sum(member.rows for member in everybody)
    wait_until(lambda: crowd.rows_delivered() >= rows, "all rows are delivered", timeout_s=PATIENCE_S)
    print(f"all {members} came in; {crowd.rows_delivered()} of {rows} rows delivered")
    if crowd.rows_delivered() != rows:
        problems.append("rows came twice")
    return problems


def main() -> int:
    """Run it in a directory of its own."""
    parser = argparse.ArgumentParser(prog="make test-crowd", description=__doc__)
    parser.add_argument("--collectors", type=int, default=200)
    parser.add_argument("--descriptors", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long the uploader is watched")
    arguments = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    directory, runtime = Path(tempfile.mkdtemp(prefix="crowd-")), Path(tempfile.mkdtemp(prefix="ss-"))
    home = Home(directory, runtime, os.environ)
    try:
        problems = judge(
            home,
            members=arguments.collectors,
            descriptors=arguments.descriptors,
            seconds=arguments.seconds,
        )
    finally:
        home.close()
        shutil.rmtree(runtime)
        shutil.rmtree(directory)
    print(json.dumps({"problems": problems}))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
