"""A peer that speaks ZMTP 3.1 (ZeroMQ RFC 37) by hand: a library would not send half a message."""

import socket
import struct

_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
_READY = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
_COMMAND = 0x04
_LONG_AND_MORE = 0x03


class HalfMessage:
    """Connects as a DEALER without keys, and says a message of which there is no end."""

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("tcp://").rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=20.0)
        self._socket.sendall(_GREETING + bytes((_COMMAND, len(_READY))) + _READY)

    def say(self, size: int) -> bool:
        """Send one more frame of so many bytes; False when the connection has ended."""
        try:
            self._socket.sendall(struct.pack(">BQ", _LONG_AND_MORE, size) + bytes(size))
        except OSError:
            return False
        return True

    def close(self) -> None:
        self._socket.close()
