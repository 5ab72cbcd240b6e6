"""Several uploaders: a run keeps to its own, goes on at another when that is away, and no row is lost or doubled."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from chaos.relay import Relay
from chaos.traffic_recorder import Witness
from fakes.offset_clock import OffsetClock
from fakes.process_harness import COLLECTOR, UPLOADER, Home, kill_collector, rows_of_file, wait_until
from fakes.web import free_port
from rows import row

from sentinel_collector.console import Console, Verbosity
from sentinel_collector.delivery.delivery import Delivery
from sentinel_collector.delivery.failover import PROBE_TIMEOUT_S, Failover, rank_uploaders
from sentinel_collector.delivery.zmq_client import ZmqClient
from sentinel_collector.run_description import RunDescription
from sentinel_protocol.common.clock import SystemClock
from sentinel_protocol.common.endpoints import Address, parse_address
from sentinel_protocol.wire.messages import (
    CollectorMessage,
    Hello,
    Ping,
    Reject,
    RejectCode,
    Samples,
    Welcome,
    decode_from_collector,
    encode,
)
from sentinel_uploader.server.zmq_server import ZmqServer

RUN_KEY = "moving"
_M = TypeVar("_M", bound=CollectorMessage)


class Uploader:
    """One of several, reached through a relay."""

    def __init__(self, home: Home, name: str, witness: Witness) -> None:
        self._home = home
        self._name = name
        self._port = free_port()
        self.relay = Relay(self._port, witness)
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        log = self._home.directory / f"{self._name}.log"
        spool = str(self._home.directory / f"spool-{self._name}")
        bind = f"tcp://127.0.0.1:{self._port}"
        with log.open("a") as file:
            before = file.tell()
            self.process = self._home.start(
                UPLOADER, "--bind", bind, "--spool", spool, "--upload-interval", "0.5", stdout=file, stderr=file
            )
        wait_until(lambda: "uploader ready" in log.read_text()[before:], "it listens")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def runs(self) -> list[dict[str, Any]]:
        return self._home.status("--spool", str(self._home.directory / f"spool-{self._name}"))


class Two:
    """Two uploaders, in the order of the run's preference."""

    def __init__(self, home: Home, uploaders: list[Uploader]) -> None:
        self.home = home
        urls = {uploader.relay.url: uploader for uploader in uploaders}
        ranking = rank_uploaders([parse_address(url, bind=False) for url in urls], RUN_KEY)
        self.first, self.second = (urls[address.url] for address in ranking)
        self.flags = [word for url in sorted(urls) for word in ("--connect", url)]

    def rows_delivered(self) -> list[str]:
        """The rows of all runs together, oldest run first."""
        runs = sorted(self.home.local_runs(), key=lambda run: str(run["run_id"]))
        rows = [row for run in runs for row in self.home.local_rows(run)]
        return sorted(rows, key=lambda row: float(row.partition(",")[0]))


@pytest.fixture
def two(home: Home) -> Iterator[Two]:
    witness = Witness()
    with contextlib.ExitStack() as stack:
        uploaders = [Uploader(home, name, witness) for name in ("one", "other")]
        for uploader in uploaders:
            stack.enter_context(uploader.relay)
            uploader.start()
        yield Two(home, uploaders)
        for uploader in uploaders:
            uploader.kill()


def recorder(two: Two, output: Path) -> subprocess.Popen[str]:
    return two.home.start(
        COLLECTOR, *two.flags, "--run-key", RUN_KEY, "--interval", "0.1", "--failover-after", "4", "--wait", "20",
        "--output", str(output), "--", "cat", stdin=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize("fault", ["killed", "cut off"])
def test_a_run_goes_on_at_another_uploader_and_every_row_arrives_once(two: Two, tmp_path: Path, fault: str) -> None:
    output = tmp_path / "rows.csv"
    collector = recorder(two, output)
    wait_until(lambda: two.first.runs() and two.first.runs()[0]["rows_delivered"] > 3, "the first has some")
    assert not two.second.runs()
    if fault == "killed":
        two.first.kill()
    else:
        two.first.relay.hold()
    wait_until(lambda: two.second.runs() and two.second.runs()[0]["rows_delivered"] > 3, "the run goes on")
    # It is back, and the run keeps to where it is.
    if fault == "killed":
        two.first.start()
    else:
        two.first.relay.release()
    held = two.second.runs()[0]["rows_delivered"]
    wait_until(lambda: two.second.runs()[0]["rows_delivered"] > held, "it goes on there")
    _, complaints = collector.communicate("", timeout=60)
    assert collector.returncode == 0
    assert (
        complaints.count(f"the uploader at {two.first.relay.url} is unreachable; switching to {two.second.relay.url}")
        == 1
    )
    # What the first may have had waits for it, with the end of its part: the next collector delivers it.
    two.home.collector(*two.flags, "--run-key", "another", "--wait", "10", "--", "sleep", "2")
    wait_until(
        lambda: [run["state"] for run in two.first.runs() if run["key"] == RUN_KEY] == ["finished"], "its part ends"
    )
    moved = next(run for run in two.second.runs() if run["key"].startswith(f"{RUN_KEY}~"))
    assert (moved["state"], moved["exit_code"]) == ("finished", 0)
    assert moved["metadata"]["tags"]["continues"] in {two.first.runs()[0]["run_id"], RUN_KEY}
    rows = rows_of_file(output)
    delivered = [row for row in two.rows_delivered() if row in set(rows)]
    assert delivered == rows
    assert len(two.rows_delivered()) - len(rows) <= 5, "more than the other collector's few"


def test_a_collector_that_is_started_again_goes_on_where_its_run_is(two: Two, tmp_path: Path) -> None:
    collector = recorder(two, tmp_path / "rows.csv")
    wait_until(two.first.runs, "the first has it")
    two.first.kill()
    wait_until(lambda: two.second.runs() and two.second.runs()[0]["rows_delivered"] > 3, "the run goes on")
    two.first.start()
    kill_collector(collector)
    assert collector.stdin is not None
    collector.stdin.close()
    again = recorder(two, tmp_path / "rows-2.csv")
    before = two.second.runs()[0]["rows_delivered"]
    wait_until(lambda: two.second.runs()[0]["rows_delivered"] > before + 5, "it goes on there")
    again.communicate("", timeout=60)
    assert [run["state"] for run in two.second.runs()] == ["finished"]


def test_a_run_that_never_reached_its_uploader_begins_at_the_next(two: Two, tmp_path: Path) -> None:
    two.first.kill()
    collector = recorder(two, tmp_path / "rows.csv")
    wait_until(two.second.runs, "it begins there")
    collector.communicate("", timeout=60)
    ((run),) = two.second.runs()
    assert (run["key"], run["state"]) == (RUN_KEY, "finished")
    assert two.rows_delivered() == rows_of_file(tmp_path / "rows.csv")


def mute(state_dir: Path, incarnation: str, routers: Sequence[ZmqServer], clock: OffsetClock) -> Delivery:
    """A collector's delivery to uploaders that say what the test says."""
    return Delivery(
        run_key=RUN_KEY,
        incarnation=incarnation,
        addresses=[parse_address(router.urls[0], bind=False) for router in routers],
        local_uploader=None,
        state_dir=str(state_dir),
        description=RunDescription(interval_s=1.0, metadata={}, host={}, cloud={}, cloud_pending=False),
        clock=clock,
        console=Console(Verbosity.QUIET),
        on_welcome=lambda _: None,
        failover_after_s=5.0,
    )


def heard(delivery: Delivery, router: ZmqServer, kind: type[_M]) -> tuple[bytes, _M]:
    """Let the collector work until the uploader has heard such a message of it; also who has sent it."""
    found: list[tuple[bytes, _M]] = []

    def look() -> bool:
        delivery.poll()
        for arrival in router.receive(limit=10, timeout_s=0.01)[0]:
            message = decode_from_collector(arrival.frame)
            if isinstance(message, kind):
                found.append((arrival.identity, message))
        return bool(found)

    wait_until(look, f"{kind.__name__} comes")
    return found[0]


@pytest.mark.parametrize("known", [True, False], ids=["run that the first knows", "run that the first has never seen"])
def test_rows_that_were_sent_to_another_are_sent_nowhere_else_by_a_collector_that_is_started_again(
    tmp_path: Path, known: bool
) -> None:
    clock = OffsetClock()
    address = parse_address("tcp://127.0.0.1:*", bind=True)
    with ZmqServer([address]) as first, ZmqServer([address]) as second, contextlib.ExitStack() as stack:
        delivery = mute(tmp_path / "state", "before", [first, second], clock)
        stack.callback(delivery.close, None)
        if known:
            whom, _ = heard(delivery, first, Hello)
            first.send(whom, encode(Welcome(1, "run-1")))
            delivery.add(row(1))
            heard(delivery, first, Samples)
        for number in range(2, 5):
            clock.monotonic_s += 3.0
            delivery.add(row(number))
        whom, _ = heard(delivery, second, Ping)
        second.send(whom, encode(Reject(RejectCode.HELLO_FIRST)))
        whom, hello = heard(delivery, second, Hello)
        second.send(whom, encode(Welcome(1, "run-2")))
        _, sent = heard(delivery, second, Samples)
        # Row 2 may have been sent to the first, which is silent since.
        assert [one.process_pid for one in sent.samples][-2:] == [3, 4]
        # Killed at this moment: what lies on disk is what the next one has.
        shutil.copytree(tmp_path / "state", tmp_path / "copy")
        again = mute(tmp_path / "copy", "after", [first, second], clock)
        stack.callback(again.close, None)
        _, greeting = heard(again, second, Hello)
        assert (greeting.run_key, greeting.first_available_seq) == (hello.run_key, 1)
        # Nobody else may ever tell which run this one is the continuation of.
        assert greeting.metadata == hello.metadata == ({"tags": {"continues": "run-1"}} if known else {})


def answering(failover: Failover, router: ZmqServer, *, silent_s: float) -> tuple[Address, ZmqClient]:
    """Look, and let the other one answer, until there is an answer to be had."""
    found: list[tuple[Address, ZmqClient]] = []
    clock = SystemClock()

    def look() -> bool:
        answered = failover.poll_alternative(clock.monotonic(), silent_s)
        if answered is not None:
            found.append(answered)
        for arrival in router.receive(limit=10, timeout_s=0.01)[0]:
            router.send(arrival.identity, encode(Reject(RejectCode.HELLO_FIRST)))
        return bool(found)

    wait_until(look, "it answers")
    return found[0]


def test_another_is_taken_only_when_it_answers() -> None:
    nowhere = [parse_address(f"tcp://127.0.0.1:{free_port()}", bind=False) for _ in range(2)]
    with ZmqServer([parse_address("tcp://127.0.0.1:*", bind=True)]) as router:
        there = parse_address(router.urls[0], bind=False)
        failover = Failover([nowhere[0], nowhere[1], there], {}, after_s=5.0)
        assert failover.poll_alternative(0.0, 4.9) is None
        assert failover.poll_alternative(1.0, 5.0) is None
        assert failover.current == nowhere[0]
        # The one between does not answer in its time; then the next is asked.
        assert failover.poll_alternative(1.0 + PROBE_TIMEOUT_S, 15.0) is None
        answered, transport = answering(failover, router, silent_s=15.0)
        transport.close()
        assert (answered, failover.current) == (there, nowhere[0])
        failover.current = answered
        assert failover.current == there
        failover.pin(nowhere[1].url)
        assert failover.current == nowhere[1]
        failover.pin("tcp://elsewhere:1")
        assert failover.current == nowhere[1]
        failover.close()


def test_one_uploader_is_kept_to_whatever_happens() -> None:
    address = parse_address(f"tcp://127.0.0.1:{free_port()}", bind=False)
    failover = Failover([address], {}, after_s=1.0)
    assert failover.poll_alternative(0.0, 1e6) is None
    failover.close()
