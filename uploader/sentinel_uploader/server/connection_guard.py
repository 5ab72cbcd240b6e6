"""Who may come in, and how many: answers ZeroMQ's questions about keys, and counts and cuts connections.

A thread of its own, so that neither depends on how long the spool takes. It is the only way in: an address with keys
lets nobody in while this does not answer (`ZAP_ENFORCE_DOMAIN`). A key that is not admitted any more loses its
connections, whatever they are doing.
"""

import ctypes
import errno
import os
import signal
import threading
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import zmq

from sentinel_protocol.common.clock import Clock
from sentinel_protocol.wire.curve_keys import KEY_BYTES, KeyPair
from sentinel_protocol.wire.zmq_monitor import SocketEvent, next_event
from sentinel_uploader.server.connections import ConnectionId, ConnectionTable, normalize_host
from sentinel_uploader.server.routing_ids import RoutingIdAllocator

ZAP_DOMAIN = b"sentinel-stream"
ZAP_ENDPOINT = "inproc://zeromq.zap.01"
SWEEP_INTERVAL_S = 0.25
"""How often connections are looked at: with the age of the list of keys, how long a revoked one has at most."""
_ZAP_PARTS = 6
_ZAP_HOST = 3
MONITOR_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_ACCEPT_FAILED


class CurveAllowList(Protocol):
    """Whom the server's key pair talks to; asked from several threads."""

    pair: KeyPair

    def is_allowed(self, key: bytes) -> bool:
        """Whether this public key may come in, and stay."""


class ConnectionEvents(Protocol):
    """Hears what happens at the door, in the door's thread."""

    def on_rejected(self, reason: str) -> None:
        """Somebody was refused or cut."""

    def on_limit_reached(self, connections: int, limit: int) -> None:
        """A connection more than there may be has come."""

    def on_error(self, error: Exception) -> None:
        """Something that was not foreseen."""


class ConnectionLimits(NamedTuple):
    """How many connections there may be at a time, and what costs one of them its place."""

    max_connections: int
    max_per_key: int
    max_unread_bytes: int = 8 << 20
    """So much may come over one without an end of its message: far more than one message has."""
    max_extra_frames: int = 20_000
    """So many frames beyond the first of their messages may come over one; a collector sends none."""


class ConnectionGuard:
    """Watches over the connections of sockets of one context.

    `monitors` are the sockets' own, made with `MONITOR_EVENTS`.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        monitors: Sequence["zmq.Socket[bytes]"],
        *,
        allow_list: CurveAllowList | None,
        limits: ConnectionLimits,
        events: ConnectionEvents,
        clock: Clock,
    ) -> None:
        self._monitors = monitors
        self._allow_list = allow_list
        self._limits = limits
        self._events = events
        self._clock = clock
        self._connections = ConnectionTable(max_per_key=limits.max_per_key, max_unread_bytes=limits.max_unread_bytes)
        self._zap: zmq.Socket[bytes] | None = None
        self._routing_ids: RoutingIdAllocator | None = None
        if allow_list is not None:
            self._routing_ids = RoutingIdAllocator(context)
            self._zap = context.socket(zmq.REP)
            self._zap.setsockopt(zmq.LINGER, 0)
            self._zap.bind(ZAP_ENDPOINT)
        self._wake_fd, self._wake_write_fd = os.pipe()
        self._thread = threading.Thread(target=self._run, name="connection-guard", daemon=True)

    def start(self, endpoints: Sequence[Sequence[str]]) -> None:
        """Begin, once the sockets listen; `endpoints` are those of each socket, in the order of the monitors."""
        self._connections.set_listen_endpoints(endpoints)
        self._thread.start()

    def stop(self) -> None:
        """End: from now on nobody is let in where keys are asked for."""
        if self._thread.is_alive():
            os.write(self._wake_write_fd, b"\0")
            self._thread.join()

    def close(self) -> None:
        """End, and close the monitors; their sockets must not be monitored any more."""
        self.stop()
        os.close(self._wake_write_fd)
        os.close(self._wake_fd)
        for monitor in self._monitors:
            monitor.close(linger=0)
        if self._zap is not None:
            self._zap.close(linger=0)
        if self._routing_ids is not None:
            self._routing_ids.close()

    @property
    def connections(self) -> int:
        """How many connections there are."""
        return len(self._connections)

    def is_registered(self, identity: bytes) -> bool:
        """Whether this connection was introduced."""
        return self._connections.is_registered(identity)

    def note_message(self, identity: bytes) -> None:
        """A message of this connection was taken."""
        self._connections.note_message(identity)

    def register(self, identity: bytes, descriptor: int, key: bytes) -> bool:
        """A connection has spoken for the first time; False when its key has too many of them (it is cut).

        The first byte of `identity` is the index of its socket.
        """
        is_welcome = self._connections.register(identity, ConnectionId(identity[0], descriptor), key)
        if not is_welcome:
            self._events.on_rejected("connections-of-client")
        return is_welcome

    def disconnect(self, identity: bytes, reason: str = "") -> None:
        """Shut a connection down, whatever it is doing; counted where a reason is given."""
        if self._connections.disconnect(identity) and reason:
            self._events.on_rejected(reason)

    def _run(self) -> None:
        # Signals are for whoever waits for them.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        poller = zmq.Poller()
        for source in (self._wake_fd, *self._monitors, *filter(None, [self._zap])):
            poller.register(source, zmq.POLLIN)
        swept_at = self._clock.monotonic()
        while self._wake_fd not in dict(
            poller.poll(max(0, round(1000 * (swept_at + SWEEP_INTERVAL_S - self._clock.monotonic()))))
        ):
            try:
                for index, monitor in enumerate(self._monitors):
                    while (event := next_event(monitor)) is not None:
                        self._on_monitor_event(index, event)
                self._handle_zap_requests()
                now = self._clock.monotonic()
                if now - swept_at >= SWEEP_INTERVAL_S:
                    swept_at = now
                    self._sweep_connections(now)
            except Exception as error:  # noqa: BLE001 -- whoever was to be let in by what failed stays outside
                self._events.on_error(error)

    def _on_monitor_event(self, index: int, event: SocketEvent) -> None:
        if event.kind == zmq.EVENT_ACCEPT_FAILED:
            if event.value in {errno.EMFILE, errno.ENFILE}:
                self._events.on_rejected("descriptors")
                self._events.on_limit_reached(self.connections, self._limits.max_connections)
                # ZeroMQ tries again without a pause for as long as there is no descriptor.
                self._connections.drop_newest_pending()
            return
        connection_id = ConnectionId(index, event.value)
        if event.kind == zmq.EVENT_DISCONNECTED:
            # Whoever only looks whether somebody listens says nothing. A Unix socket is its owner's alone: each of this
            # user's commands looks there, and none of them was turned away.
            if self._connections.on_closed(connection_id) and not event.endpoint.startswith("ipc:"):
                self._events.on_rejected("silent")
        elif not self._connections.on_accepted(
            connection_id, self._clock.monotonic(), limit=self._limits.max_connections
        ):
            self._events.on_rejected("connections")
            self._events.on_limit_reached(self.connections, self._limits.max_connections)

    def _handle_zap_requests(self) -> None:
        """Answer all questions about keys that wait (ZeroMQ RFC 27)."""
        while self._zap is not None and self._routing_ids is not None:
            try:
                request = self._zap.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            status, text, user, metadata, reason = b"500", b"cannot tell", b"", b"", "key"
            try:
                if not self._is_authorized(request):
                    status, text = b"400", b"not on the list"
                elif self._connections.has_reached_limit(request[_ZAP_PARTS]):
                    # Its connection ends without a word, as all do that find no room, and it comes back later.
                    status, text, reason = b"300", b"too many connections", "connections-of-client"
                else:
                    metadata = self._routing_ids.allocate()
                    status, text, user = b"200", b"OK", request[_ZAP_PARTS].hex().encode()
                    host = normalize_host(request[_ZAP_HOST].decode("ascii", "replace"))
                    self._connections.on_authenticated(request[_ZAP_PARTS], host, self._clock.monotonic())
            finally:
                # Whatever fails: no answer, or this one, lets nobody in.
                request_id = request[1] if len(request) > 1 else b""
                self._zap.send_multipart((b"1.0", request_id, status, text, user, metadata))
            if status != b"200":
                self._events.on_rejected(reason)

    def _is_authorized(self, request: Sequence[bytes]) -> bool:
        if self._allow_list is None or len(request) != _ZAP_PARTS + 1:
            return False
        is_ours = (request[0], request[2], request[5]) == (b"1.0", ZAP_DOMAIN, b"CURVE")
        return is_ours and len(request[_ZAP_PARTS]) == KEY_BYTES and self._allow_list.is_allowed(request[_ZAP_PARTS])

    def _sweep_connections(self, now: float) -> None:
        for _ in range(self._connections.drop_revoked(self._is_key_allowed)):
            self._events.on_rejected("revoked")
        self._connections.drop_expired_pending(now)
        for _ in range(self._connections.drop_stalled()):
            self._events.on_rejected("unread")

    def _is_key_allowed(self, key: bytes) -> bool:
        return self._allow_list is not None and self._allow_list.is_allowed(key)


def seed_routing_ids() -> None:
    """Let no peer guess how ZeroMQ will call the next connections of a link without keys (with keys: `routing_ids.py`).

    It numbers them from a "random" number on, which is the same in every process as long as nobody gives the C library
    a seed. A peer may choose a name for itself; with one that is to be the next one's, ZeroMQ aborts our process.
    """
    ctypes.CDLL(None).srand(int.from_bytes(os.urandom(4)))
