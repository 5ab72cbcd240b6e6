"""Answers ZeroMQ's authentication requests (ZAP, RFC 27): whether a CURVE key may connect.

Fails closed: `ZAP_ENFORCE_DOMAIN` makes ZeroMQ admit no connection that was not answered with 200.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import zmq

from sentinel_protocol.common.clock import Clock
from sentinel_protocol.wire.curve_keys import KEY_BYTES, KeyPair
from sentinel_uploader.server.connections import ConnectionTable, normalize_host
from sentinel_uploader.server.routing_ids import RoutingIdAllocator

ZAP_DOMAIN = b"sentinel-stream"
_ENDPOINT = "inproc://zeromq.zap.01"
_HOST_PART = 3
_KEY_PART = 6


class CurveAllowList(Protocol):
    """Which clients the server's key pair talks to. Called from several threads."""

    pair: KeyPair

    def revision(self) -> int:
        """Return a number that changes whenever `is_allowed` may answer differently."""

    def is_allowed(self, key: bytes) -> bool:
        """Whether a client with this public key may connect and stay connected."""


@dataclass(eq=False)
class ZapAuthenticator:
    """Answers the requests of one context, from one thread. An answer of 200 also sets the connection's routing id."""

    context: "zmq.Context[zmq.Socket[bytes]]"
    allow_list: CurveAllowList
    connections: ConnectionTable
    on_rejected: Callable[[str], None]
    clock: Clock

    def __post_init__(self) -> None:
        self._routing_ids = RoutingIdAllocator(self.context)
        self.socket = self.context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(_ENDPOINT)

    def handle_requests(self) -> None:
        """Answer all waiting requests. When a check raises, the request is answered with 500 first."""
        while True:
            try:
                request = self.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            status, text, user, metadata, reason = b"500", b"cannot tell", b"", b"", "key"
            try:
                if not self._is_authorized(request):
                    status, text = b"400", b"not on the list"
                elif self.connections.has_reached_limit(request[_KEY_PART]):
                    # 300 is a temporary failure: the connection ends without an error, and the collector comes back.
                    status, text, reason = b"300", b"too many connections", "connections-of-client"
                else:
                    metadata = self._routing_ids.allocate()
                    status, text, user = b"200", b"OK", request[_KEY_PART].hex().encode()
                    host = normalize_host(request[_HOST_PART].decode("ascii", "replace"))
                    self.connections.on_authenticated(request[_KEY_PART], host, self.clock.monotonic())
            finally:
                request_id = request[1] if len(request) > 1 else b""
                self.socket.send_multipart((b"1.0", request_id, status, text, user, metadata))
            if status != b"200":
                self.on_rejected(reason)

    def close(self) -> None:
        """Close the sockets: from now on no connection is admitted."""
        self.socket.close(linger=0)
        self._routing_ids.close()

    def _is_authorized(self, request: Sequence[bytes]) -> bool:
        if len(request) != _KEY_PART + 1:
            return False
        is_ours = (request[0], request[2], request[5]) == (b"1.0", ZAP_DOMAIN, b"CURVE")
        return is_ours and len(request[_KEY_PART]) == KEY_BYTES and self.allow_list.is_allowed(request[_KEY_PART])
