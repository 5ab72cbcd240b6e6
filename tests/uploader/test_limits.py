"""A client that exceeds a limit is told so, and no other client notices: real sockets, hand-written clients."""

import random
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes.curve_uploader import CurveUploader
from fakes.process_harness import wait_until
from fakes.raw_collector import Collectors, RawCollector, collectors_of
from fakes.uploader_harness import hello, samples

from sentinel_protocol.wire.messages import Ack, Hello, Ping, Reject, RejectCode, Samples, Welcome, encode
from sentinel_protocol.wire.sample import Sample
from sentinel_uploader.limits import ClientLimits
from sentinel_uploader.server.fd_limits import connection_limits


@contextmanager
def two_clients(
    directory: Path, **asked: Any
) -> Iterator[tuple[CurveUploader, RawCollector, RawCollector, Collectors]]:
    """A client that behaves badly, and one that must not notice."""
    guarded = CurveUploader(directory, asked=ClientLimits(**asked))
    try:
        with collectors_of(guarded.url) as collectors:
            bad, good = (collectors.connect(keys=guarded.key_of(name), receives=100_000) for name in ("bad", "good"))
            for collector in (bad, good):
                collector.say(hello())
                collector.hear(Welcome)
            yield guarded, bad, good, collectors
            go_on(guarded, good)
    finally:
        guarded.close()


def go_on(guarded: CurveUploader, good: RawCollector) -> None:
    """The other client's rows are still taken, each of them."""
    for _ in range(3):
        acked = guarded.runs()["good", "run"].durable_seq
        good.say(samples(acked + 1, acked + 5))
        assert good.hear(Ack) == Ack(acked + 5)


def test_a_message_that_is_too_big_is_answered_and_counted(tmp_path: Path) -> None:
    with two_clients(tmp_path, max_message_bytes=20_000) as (guarded, bad, good, _):
        bad.say(samples(1, 2000))
        assert bad.hear(Reject).code == RejectCode.TOO_BIG
        assert guarded.rejected("message-size") == 1
        go_on(guarded, good)
        bad.say(samples(1, 10))
        assert bad.hear(Ack) == Ack(10)


def test_a_message_of_too_many_rows_is_answered_and_counted(tmp_path: Path) -> None:
    with two_clients(tmp_path, max_message_rows=100) as (guarded, bad, good, _):
        bad.say(samples(1, 101))
        assert bad.hear(Reject).code == RejectCode.TOO_BIG
        assert guarded.rejected("message-rows") == 1
        go_on(guarded, good)
        bad.say(samples(1, 100))
        assert bad.hear(Ack) == Ack(100)


def test_so_many_seconds_worth_of_rows_come_at_once(tmp_path: Path) -> None:
    with two_clients(tmp_path, max_client_rows_per_s=100, client_burst_s=2.0) as (guarded, bad, good, _):
        bad.say(samples(1, 250))
        assert bad.hear(Ack) == Ack(250)
        bad.say(samples(251, 260))
        assert bad.hear(Reject).code == RejectCode.BUSY
        assert guarded.rejected("rate") == 1
        go_on(guarded, good)


def test_frames_beyond_one_a_message_cost_their_sender_the_connection(tmp_path: Path) -> None:
    with two_clients(tmp_path, max_extra_frames=200) as (guarded, bad, good, _):
        for _ in range(3):
            bad.send_frames(*[b""] * 100)
        wait_until(lambda: guarded.rejected("frames") == 1, "it is cut")
        go_on(guarded, good)


def test_rows_beyond_the_rate_wait_and_are_taken_later(tmp_path: Path) -> None:
    with two_clients(tmp_path, max_client_rows_per_s=100) as (guarded, bad, good, _):
        for first in range(1, 3001, 500):
            bad.say(samples(first, first + 499))
        bad.hear_until(Reject)
        wait_until(lambda: guarded.rejected("rate") >= 3, "what is beyond is counted")
        taken = guarded.runs()["bad", "run"].durable_seq
        assert 1000 <= taken < 2000
        go_on(guarded, good)
        # The stepped clock stands: nothing is taken until time has passed.
        guarded.clock.advance(0.1)
        bad.say(samples(taken + 1, taken + 10))
        wait_until(lambda: guarded.rejected("rate") >= 4, "it is too early")
        # Whoever is turned down is not silent: its run is not closed as stale.
        wait_until(lambda: guarded.runs()["bad", "run"].last_seen_at == guarded.clock.monotonic(), "it is heard")
        guarded.clock.advance(30.0)
        bad.say(samples(taken + 1, taken + 10))
        wait_until(lambda: guarded.runs()["bad", "run"].durable_seq == taken + 10, "there is room again")


def test_a_flood_costs_only_its_sender_the_connection(tmp_path: Path) -> None:
    with two_clients(tmp_path, max_client_rows_per_s=100, max_rejected_messages=500) as (guarded, bad, good, _):
        flood = [encode(Ping()), b"rubbish", encode(samples(7, 7))]
        for number in range(4000):
            bad.send_frames(flood[number % 3])
            if number % 500 == 0:
                go_on(guarded, good)
        wait_until(lambda: guarded.rejected("flood"), "it is cut")
        assert guarded.rejected("bad") > 0
        assert guarded.runs()["bad", "run"].durable_seq == 0


def test_a_client_has_only_so_many_open_runs(tmp_path: Path) -> None:
    with two_clients(tmp_path, max_client_runs=3) as (guarded, bad, _, collectors):
        for number in range(5):
            bad.say(hello(f"run-{number}"))
        assert bad.hear_until(Reject).code == RejectCode.BUSY
        wait_until(lambda: guarded.rejected("runs-of-client") == 3, "the others are refused")
        assert sum(owner == "bad" for owner, _ in guarded.runs()) == 3
        # One that is there is continued all the same.
        bad.say(hello("run-0", "second"))
        bad.hear_until(Welcome)
        other = collectors.connect(keys=guarded.key_of("other"))
        other.say(hello("run-9"))
        other.hear(Welcome)


@pytest.mark.parametrize(
    ("said", "reason", "code"),
    [
        (hello("x" * 101), "run-key", RejectCode.NOT_ALLOWED),
        (hello("line\nbreak"), "run-key", RejectCode.NOT_ALLOWED),
        (hello("\u202eevil"), "run-key", RejectCode.NOT_ALLOWED),
        (hello(""), "run-key", RejectCode.NOT_ALLOWED),
        (hello(metadata={"job_name": "x" * 3000}), "metadata-size", RejectCode.TOO_BIG),
        (hello(metadata={"x" * 65: "x"}), "metadata-names", RejectCode.TOO_BIG),
        (hello(metadata={"tags": {"a\tb": "x"}}), "metadata-names", RejectCode.TOO_BIG),
        (hello(host={"": 1}), "metadata-names", RejectCode.TOO_BIG),
        (hello(interval_s=-1.0), "interval", RejectCode.NOT_ALLOWED),
        (hello(epoch="x" * 65), "incarnation", RejectCode.NOT_ALLOWED),
        (hello(first_available_seq=-1), "sequence", RejectCode.NOT_ALLOWED),
        (Hello(99, "run", "first", 1.0), "version", RejectCode.UNKNOWN_VERSION),
    ],
)
def test_a_hello_is_checked_and_each_reason_counted(tmp_path: Path, said: Hello, reason: str, code: RejectCode) -> None:
    with two_clients(tmp_path, max_run_key_chars=100, max_metadata_bytes=2000) as (guarded, bad, _, _):
        bad.say(said)
        assert bad.hear(Reject).code == code
        assert guarded.rejected(reason) == 1
        assert len(guarded.runs()) == 2


def test_rubbish_of_every_kind_is_counted_and_dropped(tmp_path: Path) -> None:
    rng = random.Random(3)
    with two_clients(tmp_path) as (guarded, bad, good, _):
        for _ in range(300):
            bad.send_frames(*(rng.randbytes(rng.randrange(200)) for _ in range(rng.randrange(1, 5))))
        bad.send_frames(*[b""] * 10_000)
        bad.send_frames(encode(["s", 1, [[]] * 1000]))
        wait_until(lambda: guarded.rejected("malformed") > 100 and guarded.rejected("bad") > 50, "it is counted")
        go_on(guarded, good)
        bad.say(hello(), samples(1, 2))
        assert bad.hear_until(Ack).seq == 2


def test_one_that_stalls_keeps_nobody_waiting(tmp_path: Path) -> None:
    """Never reads an answer, and then stops in the middle of a message."""
    with two_clients(tmp_path) as (guarded, bad, good, collectors):
        deaf = collectors.connect(keys=guarded.key_of("deaf"), receives=1)
        deaf.say(hello("deaf"))
        for number in range(3000):
            deaf.say(samples(1 + number, 1 + number))
        wait_until(lambda: ("deaf", "deaf") in guarded.runs(), "it is welcomed")
        wait_until(lambda: guarded.runs()["deaf", "deaf"].durable_seq == 3000, "it is heard")
        go_on(guarded, good)
        bad.say(samples(1, 2))
        bad.hear(Ack)


@pytest.mark.parametrize("seconds", [5e-324, 1.0, 1e9, 4e12, 1.7e308, -1.0, float("nan"), float("inf")])
def test_a_wrong_clock_is_its_own_client_s_affair(tmp_path: Path, seconds: float) -> None:
    with two_clients(tmp_path) as (guarded, bad, _, _):
        bad.say(Samples(1, [Sample(timestamp=seconds)]), Ping())
        if 0 < seconds < float("inf"):
            assert bad.hear(Ack) == Ack(1)
        else:
            wait_until(lambda: guarded.rejected("bad") == 1, "that is no time")
        assert struct.pack("d", guarded.runs()["good", "run"].last_timestamp) == bytes(8)


@pytest.fixture
def descriptors(monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_limit(number: int) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (number, number))

    return set_limit


def test_connections_leave_descriptors_for_everything_else(descriptors: Any, caplog: pytest.LogCaptureFixture) -> None:
    descriptors(10_000)
    free = connection_limits(ClientLimits())
    assert 8000 < free.max_connections < 10_000 - 70
    assert free.max_per_key == free.max_connections * 3 // 4
    assert connection_limits(ClientLimits(max_connections=100, max_client_connections=7))[:2] == (100, 7)
    assert not caplog.text
    assert connection_limits(ClientLimits(max_connections=20_000)).max_connections == free.max_connections
    assert "allows fewer connections than --max-connections" in caplog.text
    descriptors(20)
    assert connection_limits(ClientLimits()).max_connections == 8
