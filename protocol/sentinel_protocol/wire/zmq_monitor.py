"""What a socket tells about its connections (`zmq_socket_monitor(3)`)."""

import struct
from typing import NamedTuple

import zmq

_EVENT = struct.Struct("=HI")
_EVENT_PARTS = 2

FAILED = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH


class SocketEvent(NamedTuple):
    """One event; `value` is a descriptor, an error or a status, depending on `kind`.

    `endpoint` is where our socket listens or connects to.
    """

    kind: int
    value: int
    endpoint: str = ""


def open_monitor(
    context: "zmq.Context[zmq.Socket[bytes]]", watched: "zmq.Socket[bytes]", events: int
) -> "zmq.Socket[bytes]":
    """Return a socket that is told of these events of another one, from the beginning.

    It holds any number of them: ZeroMQ's own thread, and with it all connections, would wait for room otherwise.
    """
    address = f"inproc://monitor-{id(watched)}"
    watched.monitor(address, events)
    monitor = context.socket(zmq.PAIR)
    monitor.setsockopt(zmq.LINGER, 0)
    monitor.setsockopt(zmq.RCVHWM, 0)
    monitor.connect(address)
    return monitor


def next_event(monitor: "zmq.Socket[bytes]") -> SocketEvent | None:
    """Return the next event without waiting, `None` when there is none."""
    try:
        parts = monitor.recv_multipart(zmq.DONTWAIT)
    except zmq.Again:
        return None
    if len(parts) != _EVENT_PARTS:
        return None
    kind, value = _EVENT.unpack(parts[0])
    return SocketEvent(kind, value, parts[1].decode("utf-8", "replace"))
