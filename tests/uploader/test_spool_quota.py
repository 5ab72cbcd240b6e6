"""One client at its allowed rate fills its share of the spool, and not the spool: nobody else has to wait for it."""

import json
import random
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fakes.backend import Backend
from fakes.curve_uploader import Guarded
from fakes.process_harness import COLLECTOR, UPLOADER, Home, rows_of_file, timestamps, wait_until
from fakes.raw_collector import RawCollector, collectors_of
from fakes.scripted_backend import SteppedClock
from fakes.uploader_harness import finish, frame, hello, open_spool_at, samples
from fakes.web import free_port

from sentinel_protocol.wire.curve_keys import ClientCurveKeys, read_key_pair
from sentinel_protocol.wire.messages import PROTOCOL_VERSION, Ack, Finish, Hello, Reject, RejectCode, Samples, Welcome
from sentinel_protocol.wire.sample import Sample
from sentinel_uploader.app.settings import SETTINGS
from sentinel_uploader.limits import ClientLimits

SPOOL = 4 << 20
CHUNK = 100
NOISY_COLUMNS = ("system_utime", "system_stime", "system_cpu_usage", "process_utime", "process_stime")


def flood(collector: RawCollector, key: str = "run") -> int:
    """Send rows until the uploader does not take more; return how many it has."""
    collector.say(hello(key))
    acked = collector.hear_until(Welcome).next_seq - 1
    while True:
        collector.say(samples(acked + 1, acked + CHUNK))
        answer = collector.next(20.0)
        if isinstance(answer, Reject):
            assert (answer.code, answer.retry) == (RejectCode.BUSY, True)
            return acked
        assert isinstance(answer, Ack), answer
        acked = answer.seq


def held(guarded: Guarded, name: str) -> int:
    return guarded.spool.usage.spool_bytes(name)


def test_a_flood_takes_half_and_the_others_go_on(tmp_path: Path) -> None:
    guarded = Guarded(tmp_path, max_bytes=SPOOL, asked=ClientLimits(max_client_rows_per_s=1 << 30))
    try:
        with collectors_of(guarded.url) as collectors:
            keys = {name: guarded.key_of(name) for name in ("bad", "worse", "good")}
            bad, worse, good = (collectors.connect(keys=key, receives=100_000) for key in keys.values())
            flood(bad)
            assert guarded.rejected("spool-share") == 1
            assert guarded.counters.client_rejected.value("bad", "spool-share") == 1
            limit = guarded.spool._database.rows_limit_bytes
            assert limit * 0.4 < held(guarded, "bad") <= limit * 0.5
            # A new run is no way round it, and the next one that floods gets half of what is left.
            bad.say(hello("another"))
            assert bad.hear_until(Reject).code == RejectCode.BUSY
            flood(worse)
            assert limit * 0.2 < held(guarded, "worse") <= limit * 0.25
            good.say(hello())
            good.hear(Welcome)
            for first in range(1, 5001, CHUNK):
                good.say(samples(first, first + CHUNK - 1))
                assert good.hear(Ack).seq == first + CHUNK - 1
            assert guarded.counters.spool_failures.value("full") == 0
            # Its end needs no room.
            acked = guarded.runs()["bad", "run"].durable_seq
            bad.say(hello())
            bad.hear_until(Welcome)
            bad.say(finish(acked))
            assert bad.hear_until(Ack).finish
    finally:
        guarded.close()


def test_a_client_that_is_alone_may_use_all(tmp_path: Path) -> None:
    guarded = Guarded(tmp_path, max_bytes=SPOOL, asked=ClientLimits(max_client_rows_per_s=1 << 30))
    try:
        with collectors_of(guarded.url) as collectors:
            only = collectors.connect(keys=guarded.key_of("only"), receives=100_000)
            flood(only)
            assert guarded.counters.spool_failures.value("full") == 1
            assert guarded.rejected("spool-share") == 0
            assert held(guarded, "only") > guarded.spool._database.rows_limit_bytes * 0.85
    finally:
        guarded.close()


def test_what_clients_hold_is_known_after_a_restart(tmp_path: Path) -> None:
    clock = SteppedClock()
    spool = open_spool_at(tmp_path / "spool", clock)
    for owner, rows in (("alice", 400), ("bob", 40)):
        run = spool.open_run(hello(metadata={"job_name": owner * 100}), owner=owner)
        spool.append([frame(run, 1, rows)], [])
    before = {owner: spool.usage.spool_bytes(owner) for owner in ("alice", "bob", "carol")}
    assert before["alice"] > before["bob"] > before["carol"] == 0
    spool.close()
    spool = open_spool_at(tmp_path / "spool", clock)
    assert {owner: spool.usage.spool_bytes(owner) for owner in before} == before
    assert spool.usage.clients == 2
    spool.close()


@pytest.mark.parametrize("wrong", ["0%", "101%", "50", 0.5, "half", "-1%", ""])
def test_a_share_is_a_percentage(wrong: object) -> None:
    setting = next(setting for setting in SETTINGS if setting.name == "client_spool_share")
    assert setting.parse("75 %") == 0.75
    with pytest.raises(ValueError, match="percentage"):
        setting.parse(wrong)


class Flooding:
    """A client that sends what it has as fast as it may, with rows that do not compress well, and gives up nothing."""

    def __init__(self, collector: RawCollector) -> None:
        self._collector = collector
        self._random = random.Random(5)
        self._rows: list[Sample] = []
        self.acked = 0
        self.held_back = 0

    @property
    def times(self) -> list[float]:
        return [row.timestamp for row in self._rows]

    def turn(self) -> bool:
        """Greet, and send until something is not taken or a thousand rows more are; True when it has all it made."""
        self._collector.say(Hello(PROTOCOL_VERSION, "flood", "first", 1.0))
        self.acked = self._collector.hear_until(Welcome).next_seq - 1
        for _ in range(10):
            while len(self._rows) < self.acked + CHUNK:
                noise: dict[str, Any] = {name: self._random.random() * 1e6 for name in NOISY_COLUMNS}
                self._rows.append(Sample(timestamp=1e9 + len(self._rows), **noise))
            self._collector.say(Samples(self.acked + 1, self._rows[self.acked : self.acked + CHUNK]))
            answer = wait_until(lambda: self._collector.next(1.0), "it is answered")
            if isinstance(answer, Reject):
                assert answer.code == RejectCode.BUSY
                self.held_back += 1
                break
            if isinstance(answer, Ack):
                self.acked = answer.seq
        return self.acked == len(self._rows)

    def end(self) -> None:
        self._collector.say(Finish(len(self._rows), 0, "finished", 2e9))
        wait_until(lambda: self._collector.hear_until(Ack).finish, "its end is durable")


def test_two_clients_while_storage_is_down_one_floods_and_the_other_is_acknowledged(
    home: Home, backend: Backend, tmp_path: Path
) -> None:
    assert home.run(UPLOADER, "keys", "init").returncode == 0
    environ = {
        name: dict(line.split("=", 1) for line in home.run(UPLOADER, "keys", "add", name).stdout.splitlines())
        for name in ("bad", "good")
    }
    url = f"tcp://127.0.0.1:{free_port()}"
    down = backend.s3.faults.add("put", status=503)
    home.start_uploader("--bind", url, "--upload-interval", "0.2", "--spool-max", "1MiB", env=backend.environ)
    output = tmp_path / "rows"
    good = home.start(
        COLLECTOR, "--connect", url, "--interval", "0.1", "--wait", "60", "--output", str(output), "--", "cat",
        env=environ["good"], stdin=subprocess.PIPE,
    )  # fmt: skip
    keys = ClientCurveKeys(
        read_key_pair(environ["bad"]["SENTINEL_KEY"]), bytes.fromhex(environ["bad"]["SENTINEL_SERVER_KEY"])
    )
    with collectors_of(url) as collectors:
        bad = Flooding(collectors.connect(keys=keys, receives=100_000))

        def is_held_back() -> bool:
            bad.turn()
            return bad.held_back >= 3

        wait_until(is_held_back, "it has its share")
        wait_until(lambda: down.fired, "storage is down")
        before = rows_of(home, "good")
        assert rows_of(home, "good", "rows_delivered") == 0

        def goes_on() -> bool:
            bad.turn()
            return rows_of(home, "good") >= before + 10

        wait_until(goes_on, "the other is acknowledged all the time")
        log = (home.directory / "uploader.log").read_text()
        assert "client has reached its share of the spool" in log
        assert "spool is full" not in log
        (spool,) = wait_until(
            lambda: told if "spool-share" in json.dumps(told := status_of(home)) else None, "status has it"
        )
        assert spool["turned_away"]["clients"].keys() == {"bad"}
        assert spool["turned_away"]["reasons"]["spool-share"] >= 3
        assert sum(run["spool_bytes"] for run in spool["runs"] if run["client"] == "bad") > 100_000
        said = home.run(UPLOADER, "status", "--spool", str(home.directory / "spool")).stdout
        assert re.search(r"client bad has \d+ bytes of the spool; rejected: .*spool-share", said)
        down.lift()
        wait_until(bad.turn, "all that it had is taken")
        bad.end()
    _, said = good.communicate("", timeout=60)
    assert "keeping" not in said
    wait_until(lambda: all(run.finish for run in backend.api.runs.values()), "both are delivered")
    flooded, recorded = sorted((backend.rows(run) for run in backend.api.runs.values()), key=len, reverse=True)
    assert timestamps(flooded) == bad.times
    assert recorded == rows_of_file(output)


def status_of(home: Home) -> list[dict[str, Any]]:
    """Return all that `status` has to say."""
    done = home.run(UPLOADER, "status", "--json", "--spool", str(home.directory / "spool"))
    spools: list[dict[str, Any]] = json.loads(done.stdout)
    return spools


def rows_of(home: Home, client: str, what: str = "rows_waiting") -> int:
    """Rows of a client's runs as `status` has them."""
    runs = home.status("--spool", str(home.directory / "spool"))
    return sum(run[what] for run in runs if run["client"] == client)
