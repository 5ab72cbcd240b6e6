"""Which clients connect, which stay connected, and what strangers learn: hand-written clients, sockets with keys."""

import contextlib
import os
import random
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import zmq
import zmq.utils.z85
from fakes.curve_uploader import CurveUploader
from fakes.process_harness import Home, python, wait_until
from fakes.raw_collector import PATIENCE_S, Collectors, RawCollector, collectors_of
from fakes.scripted_backend import SteppedClock
from fakes.uploader_harness import finish, hello, samples

from sentinel_collector.delivery.zmq_client import ZmqClient
from sentinel_protocol.common.clock import Clock, SystemClock
from sentinel_protocol.common.endpoints import parse_address
from sentinel_protocol.wire.curve_keys import KEY_BYTES, ClientCurveKeys, KeyPair
from sentinel_protocol.wire.messages import Ack, Finish, Ping, Reject, RejectCode, Welcome
from sentinel_uploader.server.connections import PENDING_TIMEOUT_S, ConnectionLimits
from sentinel_uploader.server.key_store import KeyStore
from sentinel_uploader.server.rejection_log import RejectionLog
from sentinel_uploader.server.zmq_server import ZmqServer
from sentinel_uploader.telemetry.counters import Counters

UNHEARD_S = 0.7
"""A client that is refused has been refused several times by then."""
_KNOCKS = 60
"""With an answer that is given at once a third of them has another name on a single CPU."""
GREETING_BYTES = 64
"""Of ZMTP 3.1 (ZeroMQ RFC 37): a version and the name of a mechanism, the same for everybody."""


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[CurveUploader]:
    made = CurveUploader(tmp_path)
    yield made
    made.close()


@pytest.fixture
def collectors(guarded: CurveUploader) -> Iterator[Collectors]:
    with collectors_of(guarded.url) as made:
        yield made


def stranger_to(guarded: CurveUploader, directory: Path) -> ClientCurveKeys:
    """Valid keys that are on no list, and the right server key."""
    other = KeyStore(str(directory / "stranger"))
    other.init()
    return ClientCurveKeys(other.server_pair(), guarded.store.server_pair().public)


def is_talking(collector: RawCollector) -> None:
    collector.say(hello(), samples(1, 2))
    collector.hear(Welcome)
    assert collector.hear(Ack) == Ack(2)


def nothing_was_read(guarded: CurveUploader) -> None:
    assert guarded.counters.messages.value() == 0
    assert not guarded.runs()


def test_a_client_on_the_list_comes_in_and_its_runs_bear_its_name(
    guarded: CurveUploader, collectors: Collectors
) -> None:
    is_talking(collectors.connect(keys=guarded.key_of("alice")))
    assert list(guarded.runs()) == [("alice", "run")]
    assert guarded.server.connections == 1


def test_without_a_key_nothing_is_read_and_nothing_answered(
    guarded: CurveUploader, collectors: Collectors, tmp_path: Path
) -> None:
    alice = guarded.key_of("alice")
    stranger = stranger_to(guarded, tmp_path)
    knows_not_the_server = ClientCurveKeys(alice.own, stranger.own.public)
    has_only_the_public_half = ClientCurveKeys(KeyPair(alice.own.public, stranger.own.secret), alice.server)
    prodding = [
        collectors.connect(keys=keys) for keys in (None, stranger, knows_not_the_server, has_only_the_public_half)
    ]
    for collector in prodding:
        collector.say(hello(), samples(1, 5), finish(5), Ping())
    wait_until(lambda: guarded.rejected("key"), "the stranger's key was looked at and refused")
    for collector in prodding:
        collector.hear_nothing_more(UNHEARD_S)
    nothing_was_read(guarded)


_PRODDING = {
    "silence": b"",
    "http": b"GET /metrics HTTP/1.1\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00",
    "ssh": b"SSH-2.0-x\r\n",
    "random": random.Random(5).randbytes(4096),
    "zmtp-signature": b"\xff" + bytes(8) + b"\x7f",
    "zmtp-null": b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48),
}


def test_a_port_scanner_learns_what_everybody_may_know(guarded: CurveUploader) -> None:
    port = int(guarded.url.rpartition(":")[2])
    with contextlib.ExitStack() as stack:
        scanners = {}
        for name, prod in _PRODDING.items():
            scanners[name] = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            scanners[name].sendall(prod)
        for name, scanner in scanners.items():
            answer = b""
            # A connection without progress is closed. A client that sent invalid data gets only ZMTP's greeting.
            with contextlib.suppress(ConnectionResetError):
                while piece := scanner.recv(4096):
                    answer += piece
            assert len(answer) <= GREETING_BYTES, name
            assert b"run" not in answer
    nothing_was_read(guarded)
    wait_until(lambda: guarded.rejected("silent") == len(_PRODDING), "each of them is counted")
    assert guarded.rejected("key") == 0


def test_a_probe_of_a_unix_socket_is_not_counted_as_rejected(home: Home) -> None:
    counters = Counters()
    addresses = [parse_address(url, bind=True) for url in (home.address, "tcp://127.0.0.1:*")]
    with (
        ZmqServer(addresses, rejections=RejectionLog(counters, SystemClock())) as router,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(3):
            probe = stack.enter_context(socket.socket(socket.AF_UNIX))
            probe.connect(home.address.removeprefix("ipc://"))
        wait_until(partial(has_connections, router, 3), "they are seen while they are there")
        stack.close()
        wait_until(partial(has_connections, router, 0), "they have left")
        socket.create_connection(("127.0.0.1", int(router.urls[1].rpartition(":")[2]))).close()
        wait_until(lambda: counters.rejected.value("silent"), "one at a port that strangers reach is counted")
        assert counters.rejected.value("silent") == 1


def test_without_its_authenticator_a_socket_admits_no_client(guarded: CurveUploader, collectors: Collectors) -> None:
    alice, bob = guarded.key_of("alice"), guarded.key_of("bob")
    inside = collectors.connect(keys=alice)
    is_talking(inside)
    guarded.server._guard.stop()
    late = collectors.connect(keys=bob)
    late.say(hello())
    late.hear_nothing_more(UNHEARD_S)
    inside.say(samples(3, 4))
    assert inside.hear(Ack) == Ack(4)
    assert list(guarded.runs()) == [("alice", "run")]


class Credulous:
    """An allow list that allows every key."""

    def __init__(self) -> None:
        self.pair = KeyPair(*(bytes.fromhex(half) for half in _PAIR))

    def revision(self) -> int:
        return 0

    def is_allowed(self, key: bytes) -> bool:
        return len(key) == KEY_BYTES


@contextlib.contextmanager
def on_one_cpu() -> Iterator[None]:
    """Threads created meanwhile share a CPU: a thread that is woken often runs before the one that woke it."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def test_no_peer_chooses_the_routing_id_of_a_connection_with_keys() -> None:
    """A peer that takes the id which ZeroMQ gives next makes it abort. Here ZeroMQ gives none, and takes none."""
    guard = Credulous()
    keys = ClientCurveKeys(guard.pair, guard.pair.public)
    called = set()
    with (
        on_one_cpu(),
        ZmqServer([parse_address("tcp://127.0.0.1:*", bind=True)], allow_list=guard) as router,
        collectors_of(router.urls[0]) as collectors,
    ):
        for number in range(_KNOCKS):
            # As ZeroMQ's own names are: a zero, and a number.
            name = b"\0\0\0\0\1" if number % 2 else b""
            collectors.connect(keys=keys, name=name).say(hello())
            arrivals, _ = router.receive(limit=1, timeout_s=PATIENCE_S)
            assert len(arrivals) == 1, "one with the name of another is not heard"
            called.add(arrivals[0].identity)
    assert {len(name) for name in called} == {1 + 8}
    assert len(called) == _KNOCKS


class Broken:
    """An allow list that always fails."""

    def __init__(self) -> None:
        self.asked = 0
        self.pair = KeyPair(*(bytes.fromhex(half) for half in _PAIR))

    def revision(self) -> int:
        return 0

    def is_allowed(self, key: bytes) -> bool:
        assert len(key) == KEY_BYTES
        self.asked += 1
        raise OSError("the list is on a disk that is gone")


def _new_pair() -> tuple[str, str]:
    public, secret = zmq.curve_keypair()
    return zmq.utils.z85.decode(public).hex(), zmq.utils.z85.decode(secret).hex()


_PAIR = _new_pair()


def test_an_authenticator_that_fails_admits_no_client(caplog: pytest.LogCaptureFixture) -> None:
    guard = Broken()
    report = RejectionLog(Counters(), SystemClock())
    with (
        ZmqServer([parse_address("tcp://127.0.0.1:*", bind=True)], allow_list=guard, rejections=report) as router,
        collectors_of(router.urls[0]) as collectors,
    ):
        collector = collectors.connect(keys=ClientCurveKeys(guard.pair, guard.pair.public))
        collector.say(hello())
        wait_until(lambda: guard.asked and router.connections == 0, "it was asked")
        assert router.receive(limit=10, timeout_s=UNHEARD_S) == ([], 0)
    assert "connection guard failed unexpectedly" in caplog.text


def test_a_revoked_key_is_disconnected_at_once_and_no_other(guarded: CurveUploader, collectors: Collectors) -> None:
    alice = collectors.connect(keys=guarded.key_of("alice"))
    bob = collectors.connect(keys=guarded.key_of("bob"))
    for collector in (alice, bob):
        is_talking(collector)
    guarded.store.revoke("alice")
    # Without a word from her: an open connection is not waited for.
    wait_until(lambda: guarded.rejected("revoked") and guarded.server.connections == 1, "she is disconnected")
    alice.say(samples(3, 9), finish(9))
    wait_until(lambda: guarded.rejected("key"), "she knocked again")
    alice.hear_nothing_more(UNHEARD_S)
    bob.say(samples(3, 4))
    assert bob.hear(Ack) == Ack(4)
    assert guarded.runs()["alice", "run"].durable_seq == 2
    assert not guarded.runs()["alice", "run"].record.has_ended


def test_a_pending_connection_of_a_revoked_key_is_closed(guarded: CurveUploader, collectors: Collectors) -> None:
    port = guarded.url.rpartition(":")[2]
    with collectors_of(f"tcp://127.0.0.2:0;127.0.0.1:{port}") as elsewhere:
        for place, name in ((collectors, "alice"), (elsewhere, "bob")):
            place.connect(keys=guarded.key_of(name)).wait_until_it_is_in()
        wait_until(lambda: guarded.server.connections == 2, "both are there")
        guarded.store.revoke("alice")
        wait_until(lambda: guarded.server.connections == 1, "she is disconnected")
        assert guarded.rejected("revoked") == 1
        assert guarded.rejected("silent") == 0
        nothing_was_read(guarded)


def test_each_message_is_looked_at_though_its_connection_is_open(
    guarded: CurveUploader, collectors: Collectors
) -> None:
    alice = collectors.connect(keys=guarded.key_of("alice"))
    is_talking(alice)
    # The guard has stopped. What is left is the check of each message's key.
    guarded.server._guard.stop()
    guarded.store.revoke("alice")
    wait_until(
        lambda: not guarded.allow_list.is_allowed(b"") and not guarded.allow_list.names(), "the list has changed"
    )
    alice.say(samples(3, 9), finish(9))
    wait_until(lambda: guarded.rejected("key"), "her messages are refused")
    alice.hear_nothing_more()
    assert guarded.runs()["alice", "run"].durable_seq == 2


def test_a_client_neither_reaches_nor_finds_another_s_run(guarded: CurveUploader, collectors: Collectors) -> None:
    alice = collectors.connect(keys=guarded.key_of("alice"))
    is_talking(alice)
    mallory = collectors.connect(keys=guarded.key_of("mallory"))
    # Not even with all that alice's own collector would say.
    mallory.say(samples(3, 4), Finish(2, 1, "failed", 1.0))
    for _ in range(2):
        assert mallory.hear(Reject).code == RejectCode.HELLO_FIRST
    for incarnation in ("first", "newer"):
        mallory.say(hello(epoch=incarnation))
        assert mallory.hear(Welcome) == Welcome(1)
    mallory.say(samples(1, 9), finish(9))
    assert mallory.hear_until(Ack).seq == 9
    alice.say(samples(3, 3))
    assert alice.hear(Ack) == Ack(3)
    runs = guarded.runs()
    assert (runs["alice", "run"].durable_seq, runs["mallory", "run"].durable_seq) == (3, 9)
    assert not runs["alice", "run"].record.has_ended
    assert runs["alice", "run"].record.epoch == "first"


def test_a_new_key_under_an_old_name_goes_on_with_its_runs(guarded: CurveUploader, collectors: Collectors) -> None:
    old = collectors.connect(keys=guarded.key_of("alice"))
    is_talking(old)
    new = collectors.connect(keys=guarded.key_of("alice", replace=True))
    wait_until(lambda: guarded.rejected("revoked"), "the old key is out")
    new.say(hello(epoch="second"))
    assert new.hear(Welcome).next_seq == 3


def test_a_connection_of_its_own_is_no_way_round_the_list(tmp_path: Path, guarded: CurveUploader) -> None:
    """The list is asked again when somebody comes back, also a collector that ZeroMQ would not have come back for."""
    keys = guarded.key_of("alice")
    guarded.store.revoke("alice")
    wait_until(lambda: not guarded.allow_list.is_allowed(keys.own.public), "she is off the list")
    clock = SystemClock()
    with ZmqClient(parse_address(guarded.url, bind=False), keys=keys) as dealer:
        words = wait_until(lambda: dealer.poll_handshake_error(clock.monotonic()), "it is refused")
        assert "not on the allow list, or was revoked" in words
        os.rename(tmp_path / "keys/revoked/alice.key", tmp_path / "keys/clients/alice.key")

        def is_in() -> bool:
            dealer.poll_handshake_error(clock.monotonic())
            return dealer.send(b"x")

        wait_until(is_in, "it is let in")


def refusal_of(dealer: ZmqClient, clock: Clock | None = None) -> str:
    clock = clock or SystemClock()
    return str(wait_until(lambda: dealer.poll_handshake_error(clock.monotonic()), "it is refused"))


def has_connections(router: ZmqServer, expected: int) -> bool:
    return router.connections == expected


def test_a_collector_says_in_words_why_it_is_not_let_in(guarded: CurveUploader) -> None:
    alice = guarded.key_of("alice")
    address = parse_address(guarded.url, bind=False)
    for keys, words in (
        (None, "requires keys"),
        (ClientCurveKeys(alice.own, alice.own.public), "--server-key is not its key"),
    ):
        with ZmqClient(address, keys=keys) as dealer:
            wait_until(lambda dealer=dealer, words=words: words in refusal_of(dealer), "it says so")  # type: ignore[misc]  # mypy cannot infer a lambda with defaults
    with (
        ZmqServer([parse_address("tcp://127.0.0.1:*", bind=True)]) as plain_server,
        ZmqClient(parse_address(plain_server.urls[0], bind=False), keys=alice) as dealer,
    ):
        found = refusal_of(dealer)
        assert "does not use keys" in found or "closes the connection" in found


def test_a_reason_that_is_known_does_not_become_a_vaguer_one() -> None:
    clock = SteppedClock()
    wants_keys = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = parse_address(f"tcp://127.0.0.1:{server.getsockname()[1]}", bind=False)
        with ZmqClient(address) as dealer:
            found = []
            for greeting in (wants_keys, b"", b""):
                clock.advance(60.0)
                dealer.poll_handshake_error(clock.monotonic())
                connection, _ = server.accept()
                with connection:
                    connection.sendall(greeting)
                    if not greeting:
                        connection.shutdown(socket.SHUT_RDWR)
                    found.append(refusal_of(dealer, clock))
    assert found == ["requires keys (--server-key, --key)"] * 3


def test_an_uploader_that_ends_amid_handshakes_is_not_said_to_refuse() -> None:
    clock = SteppedClock()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = parse_address(f"tcp://127.0.0.1:{server.getsockname()[1]}", bind=False)
        with ZmqClient(address) as dealer:
            for _ in range(3):
                clock.advance(60.0)
                assert dealer.poll_handshake_error(clock.monotonic()) is None
                connection, _ = server.accept()
                connection.close()
                wait_until(
                    lambda: dealer._reconnect_at is not None or dealer.poll_handshake_error(clock.monotonic()),
                    "it is noticed",
                )
            clock.advance(60.0)
            assert dealer.poll_handshake_error(clock.monotonic()) is None
            connection, _ = server.accept()
            connection.close()
            assert refusal_of(dealer, clock).startswith(
                "closes the connection during the handshake: it requires keys (--server-key"
            )


def test_a_surplus_connection_is_refused_and_admitted_when_there_is_room(tmp_path: Path) -> None:
    guarded = CurveUploader(tmp_path, limits=ConnectionLimits(max_connections=2, max_per_key=2))
    try:
        with collectors_of(guarded.url) as collectors:
            keys = {name: guarded.key_of(name) for name in ("alice", "bob", "carol")}
            inside = [collectors.connect(keys=keys[name]) for name in ("alice", "bob")]
            for collector in inside:
                is_talking(collector)
            outside = collectors.connect(keys=keys["carol"])
            outside.say(hello(), samples(1, 2))
            wait_until(lambda: guarded.rejected("connections"), "there is no room")
            for number, collector in enumerate(inside):
                collector.say(samples(3, 4 + number))
                assert collector.hear(Ack).seq == 4 + number
            inside[0].close()
            outside.hear_until(Welcome)
            assert outside.hear(Ack) == Ack(2)
    finally:
        guarded.close()


def test_one_client_does_not_take_all_the_room(tmp_path: Path) -> None:
    guarded = CurveUploader(tmp_path, limits=ConnectionLimits(max_connections=10, max_per_key=2))
    try:
        with collectors_of(guarded.url) as collectors:
            keys = guarded.key_of("alice")
            for number in range(3):
                collectors.connect(keys=keys).say(hello(f"run-{number}"))
            wait_until(lambda: guarded.rejected("connections-of-client"), "her third one is cut")
            wait_until(lambda: len(guarded.runs()) >= 2, "two are in")
            is_talking(collectors.connect(keys=guarded.key_of("bob")))
    finally:
        guarded.close()


def test_the_silent_make_room() -> None:
    counters = Counters()
    limits = ConnectionLimits(max_connections=4, max_per_key=4)
    clock = SteppedClock()
    with ZmqServer(
        [parse_address("tcp://127.0.0.1:*", bind=True)],
        limits=limits,
        rejections=RejectionLog(counters, clock),
        clock=clock,
    ) as router:
        port = int(router.urls[0].rpartition(":")[2])
        with contextlib.ExitStack() as stack:
            for number in range(4):
                stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                wait_until(partial(has_connections, router, number + 1), "it is in")
            clock.advance(6.0)
            with ZmqClient(parse_address(router.urls[0], bind=False)) as dealer:
                wait_until(lambda: dealer.send(b"x"), "room was made")
                wait_until(lambda: router.receive(limit=1, timeout_s=0.05)[0], "it was heard")
                assert counters.rejected.value("connections") == 1
                clock.advance(PENDING_TIMEOUT_S)
                wait_until(lambda: router.connections == 1, "pending ones are closed, the other is not")


_ROUTING_ID_OF_A_CONNECTION = """
from sentinel_protocol.common.endpoints import parse_address
from sentinel_collector.delivery.zmq_client import ZmqClient
from sentinel_uploader.server.zmq_server import ZmqServer
with ZmqServer([parse_address("tcp://127.0.0.1:*", bind=True)]) as router:
    with ZmqClient(parse_address(router.urls[0], bind=False)) as dealer:
        while not dealer.send(b"x"):
            dealer.poll(0.01)
        (arrival,), _ = router.receive(limit=1, timeout_s=20)
print(arrival.identity.hex())
"""


def test_the_next_routing_id_cannot_be_guessed(home: Home) -> None:
    """A peer that takes the id which ZeroMQ gives next makes it abort."""
    numbers = {home.run(*python(_ROUTING_ID_OF_A_CONNECTION)).stdout for _ in range(2)}
    assert len(numbers) == 2
    assert "" not in numbers
