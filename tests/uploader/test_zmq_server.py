"""Both ends' sockets, real ones on loopback."""

import contextlib
import socket
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from sentinel_collector.delivery.zmq_client import ZmqClient
from sentinel_protocol.common.clock import SystemClock
from sentinel_protocol.common.endpoints import parse_address
from sentinel_protocol.common.errors import AddressError
from sentinel_protocol.wire.messages import MAX_COLLECTOR_FRAME_BYTES, MAX_UPLOADER_FRAME_BYTES
from sentinel_uploader.server import receive_queues
from sentinel_uploader.server.receive_queues import ReceiveQueues, messages_of_one
from sentinel_uploader.server.zmq_server import ReceivedMessage, ZmqServer

PATIENCE_S = 20.0


@pytest.fixture
def url() -> Iterator[str]:
    # A Unix socket's path is short; pytest's own directories are not.
    with tempfile.TemporaryDirectory(prefix="ss-") as directory:
        yield f"ipc://{directory}/u"


@pytest.fixture
def router(url: str) -> Iterator[ZmqServer]:
    with ZmqServer([parse_address("tcp://127.0.0.1:*", bind=True), parse_address(url, bind=True)]) as router:
        yield router


def dealer_to(url: str) -> ZmqClient:
    return ZmqClient(parse_address(url, bind=False))


def sent(dealer: ZmqClient, frame: bytes) -> None:
    deadline = SystemClock().monotonic() + PATIENCE_S
    while not dealer.send(frame):
        assert SystemClock().monotonic() < deadline
        dealer.poll(0.01)


def received(router: ZmqServer) -> tuple[list[ReceivedMessage], int]:
    deadline = SystemClock().monotonic() + PATIENCE_S
    while True:
        pairs, malformed = router.receive(limit=100, timeout_s=0.05)
        if pairs or malformed:
            return pairs, malformed
        assert SystemClock().monotonic() < deadline


def test_frames_go_both_ways_over_tcp_and_unix_sockets(router: ZmqServer) -> None:
    assert router.urls[0].startswith("tcp://127.0.0.1:")
    assert not router.urls[0].endswith((":*", ":0"))
    for url in router.urls:
        with dealer_to(url) as dealer:
            sent(dealer, b"hello")
            ((identity, frame, key),), malformed = received(router)
            assert (frame, key, malformed) == (b"hello", b"", 0)
            assert router.send(identity, b"welcome")
            assert dealer.poll(PATIENCE_S)
            assert dealer.receive() == b"welcome"
            assert dealer.receive() is None


def test_nothing_is_queued_towards_nobody(url: str) -> None:
    with dealer_to(url) as dealer:
        assert not dealer.send(b"x")
        assert dealer.receive() is None
        assert not dealer.poll(0.0)


def test_answering_a_peer_that_is_gone_is_no_error(router: ZmqServer) -> None:
    assert not router.send(b"\0nobody", b"x")


def test_a_unix_socket_is_this_user_s_alone(router: ZmqServer, url: str) -> None:
    path = Path(url.removeprefix("ipc://"))
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    router.stop_listening()
    assert not path.exists()


def test_messages_of_several_frames_are_counted_and_passed_over(router: ZmqServer) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.connect(router.urls[0])
        stranger.send_multipart([b"a", b"b", b"c"])
        stranger.send_multipart([b"single"])
        arrivals: list[ReceivedMessage] = []
        malformed = 0
        while not arrivals:
            more, count = received(router)
            arrivals += more
            malformed += count
        assert [arrival.frame for arrival in arrivals] == [b"single"]
        assert malformed == 1
        # The other way round as well.
        with dealer_to(router.urls[0]) as dealer:
            sent(dealer, b"x")
            ((identity, _, _),), _ = received(router)
            router._sockets[0].send_multipart([identity[1:], b"a", b"b"])
            router.send(identity, b"good")
            assert dealer.poll(PATIENCE_S)
            assert dealer.receive() == b"good"


def test_an_oversize_frame_costs_its_sender_the_connection_and_nobody_else(router: ZmqServer) -> None:
    with dealer_to(router.urls[0]) as other, dealer_to(router.urls[0]) as greedy:
        sent(greedy, b"x" * (MAX_COLLECTOR_FRAME_BYTES + 1))
        sent(other, b"x" * MAX_COLLECTOR_FRAME_BYTES)
        arrivals, _ = received(router)
        assert [len(arrival.frame) for arrival in arrivals] == [MAX_COLLECTOR_FRAME_BYTES]
        router.send(arrivals[0].identity, b"y" * MAX_UPLOADER_FRAME_BYTES)
        assert other.poll(PATIENCE_S)


def test_waking_makes_a_waiting_receive_return_and_does_no_harm_later(router: ZmqServer) -> None:
    for _ in range(100_000):
        router.wake()
    waker = threading.Timer(0.05, router.wake)
    assert router.receive(limit=1, timeout_s=PATIENCE_S) == ([], 0)
    for _ in range(20):
        router.receive(limit=1, timeout_s=0.0)
    waker.start()
    # Longer than the test may take.
    router.receive(limit=1, timeout_s=1000.0)
    waker.join()
    router.close()
    router.wake()
    router.close()


def test_an_address_that_cannot_be_used_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = parse_address(f"tcp://127.0.0.1:{taken.getsockname()[1]}", bind=True)
        with pytest.raises(AddressError, match="cannot listen at"):
            ZmqServer([address])
    with pytest.raises(AddressError, match="cannot listen at"):
        ZmqServer([parse_address("ipc:///nowhere/at/all", bind=True)])


def test_the_more_connections_there_are_the_fewer_messages_of_each_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [messages_of_one(connections) for connections in (0, 1, 1024, 2048, 10_000, 100_000)] == [
        32,
        32,
        32,
        16,
        3,
        2,
    ]
    monkeypatch.setattr(receive_queues, "MAX_WAITING", 24)
    with (
        ZmqServer([parse_address("tcp://127.0.0.1:*", bind=True)]) as router,
        contextlib.ExitStack() as stack,
    ):
        marks = []
        for number in range(8):
            dealer = stack.enter_context(dealer_to(router.urls[0]))
            # Many more than may wait, while the mark changes.
            for _ in range(20):
                sent(dealer, b"%d" % number)
            frames: list[bytes] = []
            while len(frames) < 20:
                frames += [each.frame for each in received(router)[0]]
            assert frames == [b"%d" % number] * 20
            router.receive(limit=1, timeout_s=0.0)
            marks.append(router._sockets[0].getsockopt(zmq.RCVHWM))
        assert marks == [24, 12, 8, 6, 4, 4, 3, 3], "and every message comes"


def test_the_mark_is_set_again_for_new_connections_and_never_raised() -> None:
    with ZmqServer([parse_address("tcp://127.0.0.1:*", bind=True)]) as router:
        (made,) = router._sockets
        queues = ReceiveQueues([made])

        def mark_after(connections: int, accepted: int) -> int:
            made.setsockopt(zmq.RCVHWM, 999)
            queues.adapt(connections, accepted)
            return int(made.getsockopt(zmq.RCVHWM))

        assert mark_after(1024, 1024) == 999, "the value at the bind is right"
        assert mark_after(4096, 4096) == 8
        assert mark_after(4096, 4100) == 999, "few are new"
        assert mark_after(4096, 4300) == 8
        assert mark_after(10, 5000) == 8
