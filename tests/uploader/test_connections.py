"""The table of connections: descriptors that are used again, also by another listening socket's connections."""

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from sentinel_uploader.server.connections import SILENT_TIMEOUT_S, ConnectionId, ConnectionLimits, ConnectionTable

NEAR, OTHER = 0, 1


class Listeners:
    """Two listening sockets, and connections that were accepted from them at a descriptor of our choice."""

    def __init__(self) -> None:
        self.open = contextlib.ExitStack()
        self._listeners = [self.open.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        self.connections = ConnectionTable(ConnectionLimits(10, 10, max_unread_bytes=1 << 20))
        self.connections.set_listen_endpoints(
            [[f"tcp://127.0.0.1:{made.getsockname()[1]}"] for made in self._listeners]
        )

    def accept(self, index: int) -> tuple[socket.socket, socket.socket]:
        """Return both ends, the accepted one last."""
        far = self.open.enter_context(socket.create_connection(self._listeners[index].getsockname(), timeout=20))
        near, _ = self._listeners[index].accept()
        return far, self.open.enter_context(near)

    def accept_at(self, index: int, descriptor: int) -> socket.socket:
        """Let a connection take the place of another one's descriptor, and return its far end."""
        far, near = self.accept(index)
        os.dup2(near.fileno(), descriptor)
        near.close()
        return far


@pytest.fixture
def listeners() -> Iterator[Listeners]:
    made = Listeners()
    with made.open:
        yield made


def is_open(far: socket.socket) -> bool:
    far.settimeout(0)
    try:
        return far.recv(1) != b""
    except BlockingIOError:
        return True


def test_a_descriptor_that_another_socket_s_connection_has_now_is_that_one_s(listeners: Listeners) -> None:
    known = listeners.connections
    _, near = listeners.accept(NEAR)
    descriptor = near.fileno()
    assert known.on_accepted(ConnectionId(NEAR, descriptor), 0.0)
    assert known.register(b"old", ConnectionId(NEAR, descriptor), b"a key")
    far = listeners.accept_at(OTHER, descriptor)
    # Of two sockets' events the later may be heard of first.
    assert known.on_accepted(ConnectionId(OTHER, descriptor), 1.0)
    assert known.register(b"new", ConnectionId(OTHER, descriptor), b"other key")
    assert known.disconnect(b"old")
    assert is_open(far)
    assert known.drop_revoked(lambda key: key == b"other key") == 1
    assert is_open(far)
    assert not known.on_closed(ConnectionId(NEAR, descriptor))
    assert not known.is_registered(b"old")
    assert known.is_registered(b"new")
    assert len(known) == 1
    assert known.disconnect(b"new")
    assert not is_open(far)


def test_a_descriptor_of_a_later_connection_is_not_shut_down_for_the_earlier_one(listeners: Listeners) -> None:
    known = listeners.connections
    _, near = listeners.accept(NEAR)
    descriptor = near.fileno()
    known.on_accepted(ConnectionId(NEAR, descriptor), 0.0)
    known.register(b"old", ConnectionId(NEAR, descriptor), b"")
    far = listeners.accept_at(NEAR, descriptor)
    assert known.disconnect(b"old")
    assert is_open(far)
    # Now it is told of.
    known.on_accepted(ConnectionId(NEAR, descriptor), 1.0)
    known.register(b"new", ConnectionId(NEAR, descriptor), b"")
    assert known.disconnect(b"new")
    assert not is_open(far)


def test_a_file_that_is_no_connection_any_more_is_left_alone(listeners: Listeners) -> None:
    far, near = listeners.accept(NEAR)
    listeners.connections.on_accepted(ConnectionId(NEAR, near.fileno()), 0.0)
    one, other = socket.socketpair()
    with one, other:
        os.dup2(one.fileno(), near.fileno())
        listeners.connections.drop_newest_pending()
        assert is_open(other)
    assert not is_open(far)


def test_a_connection_that_has_gone_silent_is_closed(listeners: Listeners) -> None:
    known = listeners.connections
    ends = {}
    for identity in (b"silent", b"talking"):
        far, near = listeners.accept(NEAR)
        known.on_accepted(ConnectionId(NEAR, near.fileno()), 0.0)
        known.register(identity, ConnectionId(NEAR, near.fileno()), b"")
        ends[identity] = far
    assert known.inspect_some(SILENT_TIMEOUT_S, 64) == (0, 0)
    known.note_message(b"talking")
    assert known.inspect_some(SILENT_TIMEOUT_S + 1.0, 64) == (0, 1)
    assert not is_open(ends[b"silent"])
    assert is_open(ends[b"talking"])
