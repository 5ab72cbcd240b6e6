"""Messages of many frames, or without an end: who sends them, and whom that concerns."""

import socket
from collections import Counter as Counted
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
from sentinel_uploader.server import connection_guard, connections
from sentinel_uploader.server.connection_guard import InspectionBudget
from sentinel_uploader.server.connections import ConnectionId, ConnectionLimits, Inspections
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
    inspections = Inspections()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sender:
        taker, _ = server.accept()
        place = ConnectionId(0, taker.fileno())
        assert inspections.unread_bytes(place, 1.0) == 0
        sender.sendall(b"some bytes")
        wait_until(lambda: inspections.unread_bytes(place, 1.0) == 10, "they are counted")
        assert inspections.unread_bytes(place, 2.0) == 0, "a message was read"
        taker.close()
    assert inspections.unread_bytes(place, 2.0) == 0


def test_of_a_connection_that_was_never_heard_every_byte_counts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sender:
        sender.sendall(b"some bytes")
        taker, _ = server.accept()
        with taker:
            assert taker.recv(10) == b"some bytes"
            assert Inspections().unread_bytes(ConnectionId(0, taker.fileno()), None) == 10


def test_a_sweep_inspects_few_and_those_that_send_without_an_end_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    received = dict.fromkeys(range(100_000, 101_000), 0)
    asked: Counted[int] = Counted()

    def tcp_bytes_received(descriptor: int) -> int:
        asked[descriptor] += 1
        return received[descriptor]

    monkeypatch.setattr(connections, "tcp_bytes_received", tcp_bytes_received)
    table = connections.ConnectionTable(ConnectionLimits(2000, 2000, max_unread_bytes=4 << 20))
    for descriptor in received:
        table.on_accepted(ConnectionId(0, descriptor), 0.0)
        table.register(str(descriptor).encode(), ConnectionId(0, descriptor), b"")
    bad = 100_500
    sweeps = found = 0
    while not found:
        sweeps += 1
        received[bad] += 1 << 20
        asked.clear()
        found, _ = table.inspect_some(sweeps / 4, 50)
        assert asked.total() <= 51
    # One round finds the count growing, the next one what it has grown by; then every sweep looks.
    assert sweeps < 2 * 1000 // 50 + 5
    for sweep in range(1000 // 50):
        asked.clear()
        table.inspect_some(10.0 + sweep, 50)
        assert asked.total() == 50


def test_while_memory_grows_a_sweep_inspects_many(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = [100 << 20]
    monkeypatch.setattr(connection_guard, "_resident_bytes", lambda: memory[0])
    budget = InspectionBudget(8 << 20)
    usual = [budget.count(10_000) for _ in range(10)][1:]
    assert max(usual) < 100
    memory[0] += 9 << 20
    hasty = [budget.count(10_000) for _ in range(12)]
    assert sum(hasty[:10]) >= 2 * 10_000, "all were inspected twice within seconds"
    assert hasty[-1] == usual[-1], "what has stayed is not of one connection"


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
