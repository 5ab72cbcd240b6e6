"""`--http` of a running uploader: what probes and Prometheus get, and what a hostile client gets out of it."""

import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fakes.backend import Backend
from fakes.http_probe_client import HttpProbeClient
from fakes.process_harness import UPLOADER, Home, wait_until
from fakes.raw_collector import RawCollector
from fakes.uploader_harness import finish, hello, samples

from sentinel_protocol.wire.messages import Ack, Finished, Reject, Welcome
from sentinel_uploader.telemetry.http_server import ANSWER_S, MAX_CONNECTIONS, MAX_HEAD_BYTES
from sentinel_uploader.telemetry.listen_address import HttpAddress, http_address


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend() as made:
        yield made


def serve(home: Home, *words: str, backend: Backend | None = None) -> HttpProbeClient:
    home.start_uploader("--http", "0", *words, env={} if backend is None else backend.environ)
    return HttpProbeClient(home.directory / "uploader.log")


def send(collector: RawCollector, first: int, last: int) -> None:
    collector.say(samples(first, last))
    while collector.hear_until(Ack).seq < last:
        pass


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("9470", ("127.0.0.1", 9470)),
        (9470, ("127.0.0.1", 9470)),
        (":9470", ("127.0.0.1", 9470)),
        ("localhost:0", ("localhost", 0)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
        ("[::1]:80", ("::1", 80)),
        ("host-1.example:80", ("host-1.example", 80)),
    ],
)
def test_address_is_on_loopback_unless_a_host_is_named(written: object, meant: tuple[str, int]) -> None:
    assert http_address(written) == HttpAddress(*meant)


@pytest.mark.parametrize("written", ["", "65536", "host", "*:80", "http://host:80", "::1:80", "a b:80", True, -1, 9.5])
def test_address_that_is_none_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="must be PORT"):
        http_address(written)


def test_whole_run_is_seen_in_the_metrics(home: Home, backend: Backend, collector: RawCollector) -> None:
    refused = backend.s3.faults.add("put", status=503, times=1)
    probe = serve(home, "--upload-interval", "0.2", backend=backend)
    collector.say(hello())
    collector.hear(Welcome)
    send(collector, 1, 20)
    wait_until(lambda: probe.samples()["rows_delivered_total"] == 20, "rows are delivered")
    assert probe.samples()["connections"] == 1
    collector.send_frames(b"rubbish")
    collector.say(samples(21, 22), samples(21, 22), finish(22))
    collector.hear_until(Finished)
    assert refused.fired == 1
    found = wait_until(lambda: (s := probe.samples())["rows_delivered_total"] == 22 and s, "all rows are delivered")
    assert found["rows_received_total"] == 24
    assert found["rows_duplicate_total"] == 2
    assert found["rows_acknowledged_total"] == 22
    assert found["rows_waiting"] == found["oldest_waiting_seconds"] == found["objects_waiting"] == 0
    assert found["messages_received_total"] == 6
    assert found['rejected_total{reason="bad"}'] == 1
    assert found['retries_total{code="503",kind="put"}'] == 1
    assert found["objects_delivered_total"] == found["put_seconds_count"] == len(backend.s3.objects())
    assert found["object_bytes_delivered_total"] == sum(map(len, backend.s3.objects().values()))
    assert found["runs_registered_total"] == found['runs_ended_total{state="finished"}'] == 1
    assert found["commit_seconds_count"] >= 2
    assert found['runs{state="registered"}'] == 0
    assert abs(found['client_last_seen_timestamp_seconds{client="unnamed"}'] - time.time()) < 600
    # The rows of the test are from 2023: that is how wrong this client's clock is.
    assert found['client_clock_offset_seconds{client="unnamed"}'] < -1e7
    assert found["spool_bytes"] < found["spool_rows_limit_bytes"] < found["spool_limit_bytes"] == 2 << 30
    assert found["process_open_fds"] > 0


def test_health_follows_the_data(home: Home, backend: Backend, collector: RawCollector) -> None:
    away = backend.s3.faults.add("put", status=503)
    probe = serve(home, "--upload-interval", "0.2", "--unhealthy-after", "1", backend=backend)
    assert [probe.status(path) for path in ("/livez", "/readyz", "/healthz")] == [200, 200, 200]
    collector.say(hello())
    collector.hear(Welcome)
    send(collector, 1, 20)
    wait_until(lambda: probe.status("/healthz") == 503, "nothing moves")
    assert away.fired
    assert "has waited for" in probe.ask("/healthz").text
    assert [probe.status(path) for path in ("/livez", "/readyz")] == [200, 200]
    assert probe.samples()["oldest_waiting_seconds"] > 1
    away.lift()
    collector.say(finish(20))
    collector.hear_until(Finished)
    wait_until(lambda: probe.status("/healthz") == 200, "all is delivered")


def test_full_spool_is_not_ready_and_ready_again_with_room(
    home: Home, backend: Backend, collector: RawCollector
) -> None:
    away = backend.s3.faults.add("put", status=503)
    probe = serve(home, "--spool-max", "128KiB", "--upload-interval", "0.2", backend=backend)
    collector.say(hello())
    collector.hear(Welcome)
    for last in range(50, 10_000, 50):
        collector.say(samples(last - 49, last))
        answer = collector.hear_until(Ack | Reject)  # type: ignore[arg-type]  # isinstance takes unions
        if isinstance(answer, Reject):
            break
    page = probe.ask("/readyz")
    assert (page.status, page.text) == (503, "the spool has reached its limit of 131072 bytes\n")
    assert probe.samples()['spool_failures_total{reason="full"}'] >= 1
    assert probe.status("/livez") == 200
    discard = (UPLOADER, "discard", "run", "--spool", str(home.directory / "spool"))
    wait_until(lambda: home.run(*discard).returncode == 0, "the run is discarded")
    assert away.fired
    wait_until(lambda: probe.status("/readyz") == 200, "there is room")


def test_uploader_that_stops_is_alive_and_not_ready(home: Home, backend: Backend, collector: RawCollector) -> None:
    hang = backend.s3.faults.add("put", hang=True)
    probe = serve(home, "--upload-interval", "0.2", backend=backend)
    collector.say(hello())
    collector.hear(Welcome)
    send(collector, 1, 5)
    wait_until(lambda: hang.fired, "storage hangs")
    (process,) = home._processes
    process.send_signal(signal.SIGTERM)
    page = wait_until(lambda: (p := probe.ask("/readyz")).status == 503 and p, "it stops")
    assert page.text == "the uploader is stopping\n"
    assert probe.status("/livez") == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_only_short_requests_for_known_pages_are_answered(home: Home) -> None:
    probe = serve(home)
    head = probe.say(b"HEAD /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert head.endswith(b"Content-Length: 3\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
                         b"Connection: close\r\n\r\n")  # fmt: skip
    assert probe.ask("/livez?verbose=1").status == 200
    assert probe.ask("/").status == probe.ask("/livez/").status == 404
    post = probe.say(b"POST /livez HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
    assert post.startswith(b"HTTP/1.1 405 Method Not Allowed\r\n")
    assert b"Allow: GET, HEAD\r\n" in post
    for rubbish in (
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /livez\r\n\r\n",
        b"GET livez HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\r\n\r\n",
    ):
        assert probe.say(rubbish).startswith(b"HTTP/1.1 400 "), rubbish
    big = b"GET /livez HTTP/1.1\r\nX: " + b"x" * (4 * MAX_HEAD_BYTES)
    assert probe.say(big)[:12] in {b"HTTP/1.1 431", b""}
    assert probe.status("/livez") == 200


def test_hostile_clients_hold_nothing_up(home: Home, backend: Backend, collector: RawCollector) -> None:
    probe = serve(home, "--upload-interval", "0.2", backend=backend)
    (process,) = home._processes
    before = descriptors(process.pid)
    collector.say(hello())
    collector.hear(Welcome)
    with ExitStack() as opened:
        held: list[socket.socket] = []
        for number in range(6 * MAX_CONNECTIONS):
            connection = opened.enter_context(probe.connect())
            # Some say nothing, some a little, some ask and do not read.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            connection.sendall((b"", b"GET /livez HTT", b"GET /metrics HTTP/1.1\r\n\r\n")[number % 3] or b"G")
            held.append(connection)
            if number % 20 == 0:
                send(collector, number // 20 + 1, number // 20 + 1)
        assert probe.status("/livez") == 200
        wait_until(lambda: probe.samples()["rows_acknowledged_total"] == 10, "every row is acknowledged")
        assert descriptors(process.pid) <= before + MAX_CONNECTIONS + 10
        # Those that came first have made room for those that came last.
        assert wait_until(lambda: hung_up(held[0]), "the oldest connection is closed")
    assert len(threads(process.pid)) < 50
    assert probe.status("/readyz") == 200


def test_without_descriptors_there_is_still_an_answer(home: Home) -> None:
    probe = serve(home)
    (process,) = home._processes
    used = [int(name) for name in os.listdir(f"/proc/{process.pid}/fd")]
    hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (max(used) + 1, hard))
    with ExitStack() as opened:
        # Whatever numbers are free below that are used up.
        for _ in range(4):
            opened.enter_context(probe.connect())
        log = home.directory / "uploader.log"
        wait_until(lambda: "cannot accept an HTTP connection" in log.read_text(), "no descriptor is left")
    for path in ("/livez", "/readyz", "/metrics", "/livez"):
        assert probe.status(path) == 200
    assert probe.samples()["process_max_fds"] == max(used) + 1


def test_slow_request_is_not_waited_for(home: Home) -> None:
    probe = serve(home)
    assert ANSWER_S < 10
    with probe.connect() as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\n")
        assert connection.recv(100) == b""


def test_address_in_use_is_named_and_leaves_nothing_behind(home: Home) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = home.run(UPLOADER, "--bind", home.address, "--spool", str(home.directory / "spool"), "--http", address)
    assert done.returncode == 2
    assert done.stderr == f"sentinel-uploader: cannot serve HTTP at {address}: Address already in use\n"
    assert not (home.runtime / "u.sock").exists()
    assert not (home.directory / "spool").exists()


def test_without_the_library_the_option_says_what_to_install_and_nothing_else_needs_it(home: Home) -> None:
    code = (
        "import sys; from sentinel_uploader.cli.main import main;"
        "sys.modules['prometheus_client'] = None; sys.exit(main(sys.argv[1:]))"
    )
    words = ["--bind", home.address, "--spool", str(home.directory / "spool")]
    done = home.run(sys.executable, "-c", code, *words, "--http", "0")
    assert done.returncode == 2
    assert "prometheus_client is missing): pip install 'sentinel-stream[uploader]'" in done.stderr
    assert home.run(sys.executable, "-c", code, *words, "--exit-when-idle", "0.1").returncode == 0


def test_host_beyond_this_machine_is_served_when_it_is_named_and_said_so(home: Home) -> None:
    home.start_uploader("--http", "0.0.0.0:0")
    log = home.directory / "uploader.log"
    assert HttpProbeClient(log).status("/livez") == 200
    assert "health and metrics can be read beyond this machine" in log.read_text()


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/task").iterdir())


def hung_up(connection: socket.socket) -> bool:
    connection.settimeout(0)
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True
