"""The uploader's ROUTER sockets: one without keys, and one with keys if there is an allow list.

Sockets belong to the thread that made them. Only `ZmqServer.wake` may be called from another one.
"""

import contextlib
import os
import socket
import threading
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import zmq

from sentinel_protocol.common.clock import Clock, SystemClock
from sentinel_protocol.common.endpoints import Address
from sentinel_protocol.common.errors import AddressError, UsageError
from sentinel_protocol.wire.messages import MAX_COLLECTOR_FRAME_BYTES
from sentinel_protocol.wire.zmq_monitor import open_monitor
from sentinel_protocol.wire.zmq_options import ROUTER, ZmqContextOwner
from sentinel_uploader.server.connection_guard import MONITOR_EVENTS, ConnectionGuard
from sentinel_uploader.server.connections import ConnectionId, ConnectionLimits, ConnectionTable
from sentinel_uploader.server.receive_queues import ReceiveQueues
from sentinel_uploader.server.rejection_log import RejectionLog
from sentinel_uploader.server.routing_ids import seed_routing_ids
from sentinel_uploader.server.zap_authenticator import ZAP_DOMAIN, CurveAllowList
from sentinel_uploader.telemetry.counters import Counters

_MAX_TRACKED_SENDERS = 10_000


class ReceivedMessage(NamedTuple):
    """One frame from one connection.

    `identity` is the index of the socket (one byte) and the routing id. `key` is the public key that the sender has
    proved to hold, empty on a socket without keys.
    """

    identity: bytes
    frame: bytes
    key: bytes


class ZmqServer(ZmqContextOwner):
    """Receives from many peers, distinguished by the identity of each connection.

    With an `allow_list`, TCP addresses require keys and admit only those that it allows. A Unix socket has no keys:
    its mode admits this user alone.
    """

    def __init__(
        self,
        addresses: Iterable[Address],
        *,
        allow_list: CurveAllowList | None = None,
        limits: ConnectionLimits | None = None,
        max_frame_bytes: int = MAX_COLLECTOR_FRAME_BYTES,
        rejections: RejectionLog | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Listen at all addresses; raises `AddressError`."""
        seed_routing_ids()
        super().__init__()
        clock = clock or SystemClock()
        limits = limits or ConnectionLimits(1 << 20, 1 << 20)
        self._max_extra_frames = limits.max_extra_frames
        self._connections = ConnectionTable(limits)
        self._rejections = rejections or RejectionLog(Counters(), clock)
        self.urls: list[str] = []
        self._endpoints: list[tuple[zmq.Socket[bytes], str]] = []
        options = ROUTER | {zmq.MAXMSGSIZE: max_frame_bytes}
        plain_socket = self._make(zmq.ROUTER, options)
        self._sockets = [plain_socket]
        if allow_list is not None:
            self._sockets.append(_enable_curve(self._make(zmq.ROUTER, options), allow_list))
        self._queues = ReceiveQueues(self._sockets)
        self._poller = zmq.Poller()
        self._wake_fd, self._wake_write_fd = os.pipe()
        os.set_blocking(self._wake_fd, False)
        os.set_blocking(self._wake_write_fd, False)
        self._wake_lock = threading.Lock()
        self._closed = False
        self._extra_frames: Counter[bytes] = Counter()
        self._poller.register(self._wake_fd, zmq.POLLIN)
        for made in self._sockets:
            self._poller.register(made, zmq.POLLIN)
        self._guard = ConnectionGuard(
            self._context,
            [open_monitor(self._context, made, MONITOR_EVENTS) for made in self._sockets],
            connections=self._connections,
            allow_list=allow_list,
            rejections=self._rejections,
            clock=clock,
        )
        for address in addresses:
            self._bind(address, plain_socket if address.url.startswith("ipc:") else self._sockets[-1])
        self._guard.start([[url for its, url in self._endpoints if its is made] for made in self._sockets])

    @property
    def connections(self) -> int:
        """Number of connections."""
        return len(self._connections)

    def receive(self, *, limit: int, timeout_s: float) -> tuple[list[ReceivedMessage], int]:
        """Wait up to `timeout_s` for a message, then return those that are there, at most `limit`.

        The second value is the number of messages that were dropped because they had more than one frame.
        """
        self._queues.adapt(len(self._connections), self._connections.accepted)
        received: list[ReceivedMessage] = []
        taken = malformed = 0
        ready = dict(self._poller.poll(max(0, round(timeout_s * 1000))))
        if self._wake_fd in ready:
            os.read(self._wake_fd, 4096)
        waiting = list(enumerate(self._sockets))
        while waiting and taken < limit:
            # One of each in turn, so that a flood on one socket does not starve the other.
            for entry in list(waiting):
                try:
                    identity, frame, frames = _recv_message(*entry)
                except zmq.Again:
                    waiting.remove(entry)
                    continue
                # Dropped ones count against `limit` too: invalid messages must not keep the caller from its commit.
                taken += 1
                self._connections.note_message(identity)
                if frames > 1:
                    malformed += 1
                    self._count_extra_frames(identity, frame, frames - 1)
                elif (key := self._authenticated_key(identity, frame)) is not None:
                    received.append(ReceivedMessage(identity, frame.bytes, key))
        return received, malformed

    def send(self, identity: bytes, frame: bytes) -> bool:
        """Send to one peer; False when it is gone, or does not read and its queue is full."""
        try:
            self._sockets[identity[0]].send_multipart((identity[1:], frame), zmq.DONTWAIT)
        except zmq.ZMQError as error:
            if error.errno in {zmq.EAGAIN, zmq.EHOSTUNREACH}:
                return False
            raise
        return True

    def disconnect(self, identity: bytes) -> None:
        """Close a connection. What has arrived already is still received."""
        self._connections.disconnect(identity)

    def wake(self) -> None:
        """Make a waiting `receive` return. Thread-safe, also after `close`."""
        with self._wake_lock:
            if not self._closed:
                # A full pipe wakes as well as one more byte.
                with contextlib.suppress(BlockingIOError):
                    os.write(self._wake_write_fd, b"\0")

    def stop_listening(self) -> None:
        """Stop listening, close all connections, and remove Unix sockets."""
        for made, endpoint in self._endpoints:
            # libzmq leaves the file of a Unix socket. It is ours as long as we hold the spool's lock.
            if endpoint.startswith("ipc://"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(endpoint.removeprefix("ipc://"))
            made.unbind(endpoint)
        self._endpoints = []

    def close(self) -> None:
        """Close at once and remove Unix sockets; a second call does nothing."""
        with self._wake_lock:
            if self._closed:
                return
            self._closed = True
            os.close(self._wake_fd)
            os.close(self._wake_write_fd)
        self.stop_listening()
        for made in self._sockets:
            made.disable_monitor()
        self._guard.close()
        super().close()

    def _count_extra_frames(self, identity: bytes, frame: zmq.Frame, frames: int) -> None:
        """Disconnect a peer that goes on sending multipart messages: each frame costs as much as a message."""
        self._extra_frames[identity] += frames
        is_over = self._extra_frames[identity] > self._max_extra_frames
        if is_over and self._authenticated_key(identity, frame) is not None:
            del self._extra_frames[identity]
            if self._connections.disconnect(identity):
                self._rejections.on_rejected("frames")
        if len(self._extra_frames) > _MAX_TRACKED_SENDERS:
            self._extra_frames.clear()

    def _authenticated_key(self, identity: bytes, frame: zmq.Frame) -> bytes | None:
        """Return the key that a message's sender has proved to hold; `None` when the message must be dropped."""
        key = b""
        if identity[0]:
            try:
                # The user id of our ZAP answer for this connection.
                key = bytes.fromhex(str(frame.get("User-Id")))
            except (zmq.ZMQError, ValueError):
                return None
        if not self._connections.is_registered(identity):
            connection_id = ConnectionId(identity[0], int(frame.get("__fd")))
            # Unix sockets listen without keys.
            if not key and self._connections.drop_foreign(connection_id):
                self._rejections.on_rejected("user")
                return None
            if not self._connections.register(identity, connection_id, key):
                self._rejections.on_rejected("connections-of-client")
                return None
        return key

    def _bind(self, address: Address, made: "zmq.Socket[bytes]") -> None:
        # A Unix socket gets its mode from the umask. No other user may connect at any moment.
        mask = os.umask(0o177)
        try:
            made.bind(address.url)
        except zmq.ZMQError as error:
            self.close()
            raise AddressError(f"cannot listen at {address.url!r}: {error.strerror}") from error
        finally:
            os.umask(mask)
        endpoint = made.getsockopt_string(zmq.LAST_ENDPOINT)
        self._endpoints.append((made, endpoint))
        # ZeroMQ's endpoint has the port that was chosen; the user's address has the host as written.
        port = endpoint.rpartition(":")[2]
        self.urls.append(f"{address.url.rpartition(':')[0]}:{port}" if endpoint.startswith("tcp:") else address.url)


def _recv_message(index: int, source: "zmq.Socket[bytes]") -> tuple[bytes, zmq.Frame, int]:
    """Return a connection's identity, a message's last frame, and how many frames it had; raises `zmq.Again`."""
    identity = bytes((index,)) + source.recv(zmq.DONTWAIT)
    frame = source.recv(zmq.DONTWAIT, copy=False)
    frames = 1
    while frame.more:
        frame = source.recv(zmq.DONTWAIT, copy=False)
        frames += 1
    return identity, frame, frames


def _enable_curve(made: "zmq.Socket[bytes]", allow_list: CurveAllowList) -> "zmq.Socket[bytes]":
    """Require keys at a socket, and a ZAP answer for each connection."""
    made.setsockopt(zmq.CURVE_SERVER, 1)
    made.setsockopt(zmq.CURVE_SECRETKEY, allow_list.pair.secret)
    made.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
    # Without this, every client is admitted when no ZAP handler answers.
    made.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    return made


def refuse_socket_in_use(address: Address) -> None:
    """Raise `UsageError` if a process listens at this Unix socket: binding would take the path away from it."""
    if not address.url.startswith("ipc://"):
        return
    path = address.url.removeprefix("ipc://")
    directory = os.path.dirname(path)
    if not os.path.isdir(directory):
        raise UsageError(f"cannot listen at {address.url}: {directory} is not a directory")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # `BlockingIOError`: a process listens, and its queue of connections is full.
        probe.settimeout(0)
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return
        except BlockingIOError:
            pass
        except OSError as error:
            raise UsageError(f"cannot listen at {address.url}: {error.strerror}") from None
    raise UsageError(f"cannot listen at {address.url}: another uploader does already")
