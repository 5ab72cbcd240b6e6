"""Messages of many frames, or without an end: who sends them, and whom that concerns."""

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest
from fakes.endless_message_peer import HalfMessage
from fakes.process_harness import wait_until
from fakes.raw_collector import collectors_of
from fakes.uploader_harness import hello

from sentinel_protocol.common.clock import SystemClock
from sentinel_protocol.common.endpoints import parse_address
from sentinel_protocol.wire.messages import MAX_COLLECTOR_FRAME_BYTES
from sentinel_uploader.server.connections import ConnectionId, ConnectionLimits, StalledReadTracker
from sentinel_uploader.server.rejection_log import RejectionLog
from sentinel_uploader.server.zmq_server import ZmqServer
from sentinel_uploader.telemetry.counters import Counters

FRAME_BYTES = 1 << 18
LIMITS = ConnectionLimits(100, 100, max_unread_bytes=4 << 20, max_extra_frames=5_000)


@pytest.fixture
def counters() -> Counters:
    return Counters()


@pytest.fixture
def router(counters: Counters) -> Iterator[ZmqServer]:
    report = RejectionLog(counters, SystemClock())
    with ZmqServer([parse_address("tcp://127.0.0.1:*", bind=True)], limits=LIMITS, rejections=report) as made:
        yield made


def test_an_endless_message_costs_its_sender_the_connection(router: ZmqServer, counters: Counters) -> None:
    with collectors_of(router.urls[0]) as collectors, closing(HalfMessage(router.urls[0])) as endless:
        honest = collectors.connect()

        def is_closed() -> bool:
            honest.say(hello())
            received, _ = router.receive(limit=10, timeout_s=20.0)
            assert len(received) == 1, "nobody else is disturbed"
            return not endless.say(MAX_COLLECTOR_FRAME_BYTES)

        wait_until(is_closed, "the connection ends")
        wait_until(lambda: counters.rejected.value("unread") == 1, "it is counted")
        wait_until(lambda: router.connections == 1, "the honest one is still there")


def test_a_sender_of_many_whole_messages_stays_connected(router: ZmqServer, counters: Counters) -> None:
    with collectors_of(router.urls[0]) as collectors:
        honest = collectors.connect()
        for _ in range(LIMITS.max_unread_bytes * 5 // 4 // FRAME_BYTES):
            honest.send_frames(bytes(FRAME_BYTES))
            received, _ = router.receive(limit=10, timeout_s=20.0)
            assert len(received) == 1
        assert counters.rejected.value("unread") == 0
        assert router.connections == 1


def test_a_connection_that_has_just_been_closed_is_nothing_to_look_at() -> None:
    unread = StalledReadTracker(0)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sender:
        taker, _ = server.accept()
        place = ConnectionId(0, taker.fileno())
        assert not unread.exceeds_limit(place, was_read=False)
        sender.sendall(b"some bytes")
        wait_until(lambda: unread.exceeds_limit(place, was_read=False), "they are counted")
        taker.close()
    assert not unread.exceeds_limit(place, was_read=False)


def test_many_frames_cost_their_sender_the_connection(router: ZmqServer, counters: Counters) -> None:
    with collectors_of(router.urls[0]) as collectors:
        honest, bad = collectors.connect(), collectors.connect()

        def is_closed() -> bool:
            honest.say(hello())
            bad.send_frames(*[b""] * (LIMITS.max_extra_frames // 4))
            received, _ = router.receive(limit=10, timeout_s=20.0)
            assert all(arrival.frame for arrival in received), "what has several frames is not taken"
            return counters.rejected.value("frames") == 1

        wait_until(is_closed, "its connection is closed")
        honest.say(hello())
        assert router.receive(limit=1, timeout_s=20.0)[0], "nobody else is disturbed"
