"""Events of a socket's connections (`zmq_socket_monitor(3)`)."""

import struct
from typing import NamedTuple

import zmq

_EVENT = struct.Struct("=HI")
_EVENT_PARTS = 2

FAILED = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH


class SocketEvent(NamedTuple):
    """One event; `value` is a descriptor, an error or a status, depending on `kind`.

    `endpoint` is the address at which our socket listens, or to which it connects.
    """

    kind: int
    value: int
    endpoint: str = ""


def open_monitor(
    context: "zmq.Context[zmq.Socket[bytes]]", watched: "zmq.Socket[bytes]", events: int
) -> "zmq.Socket[bytes]":
    """Return a socket that receives these events of `watched`, from the first one on.

    Its queue is not limited: ZeroMQ's I/O thread, and with it all connections, would block on a full queue.
    """
    address = f"inproc://monitor-{id(watched)}"
    watched.monitor(address, events)
    monitor = context.socket(zmq.PAIR)
    monitor.setsockopt(zmq.LINGER, 0)
    monitor.setsockopt(zmq.RCVHWM, 0)
    monitor.connect(address)
    return monitor


def next_event(monitor: "zmq.Socket[bytes]") -> SocketEvent | None:
    """Return the next event, or `None`; does not wait."""
    try:
        parts = monitor.recv_multipart(zmq.DONTWAIT)
    except zmq.Again:
        return None
    if len(parts) != _EVENT_PARTS:
        return None
    kind, value = _EVENT.unpack(parts[0])
    return SocketEvent(kind, value, parts[1].decode("utf-8", "replace"))
