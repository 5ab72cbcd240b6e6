"""Every ZeroMQ socket and every option of both ends; nothing else in the packages touches a socket option.

Why each option has its value: `docs/architecture.md`, "Sockets". Sockets belong to the thread that made them;
`Router.wake` alone may be called from another one.
"""

import contextlib
import os
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Self

import zmq

from protocol.addresses import Address
from protocol.errors import AddressError
from protocol.messages import MAX_COLLECTOR_FRAME_BYTES, MAX_UPLOADER_FRAME_BYTES

_IDENTITY_AND_MESSAGE = 2

_COMMON: dict[zmq.SocketOption, int] = {
    zmq.HEARTBEAT_IVL: 10_000,
    zmq.HEARTBEAT_TIMEOUT: 30_000,
    zmq.HEARTBEAT_TTL: 60_000,
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 60,
    zmq.TCP_KEEPALIVE_INTVL: 15,
    zmq.TCP_KEEPALIVE_CNT: 4,
    zmq.TCP_MAXRT: 30_000,
    zmq.IPV6: 1,
    # Undelivered messages are not the socket's business: the backlog and the acks are.
    zmq.LINGER: 0,
    zmq.SNDHWM: 64,
}
_DEALER: dict[zmq.SocketOption, int] = _COMMON | {
    zmq.RCVHWM: 64,
    zmq.CONNECT_TIMEOUT: 10_000,
    zmq.HANDSHAKE_IVL: 10_000,
    # No hidden queue towards a peer that is not there: EAGAIN is the back-pressure signal.
    zmq.IMMEDIATE: 1,
    zmq.MAXMSGSIZE: MAX_UPLOADER_FRAME_BYTES,
}
_ROUTER: dict[zmq.SocketOption, int] = _COMMON | {
    zmq.RCVHWM: 256,
    zmq.HANDSHAKE_IVL: 5_000,
    zmq.BACKLOG: 1024,
    # A lost ack is harmless, a silently dropped one to a peer that is gone hides that it is gone.
    zmq.ROUTER_MANDATORY: 1,
    zmq.MAXMSGSIZE: MAX_COLLECTOR_FRAME_BYTES,
}
_RECONNECT_MS = (500, 30_000)
# A local uploader is back within a moment, and asking a Unix socket costs nothing.
_RECONNECT_LOCAL_MS = (50, 2_000)


class _Endpoint:
    """A socket with its context."""

    def __init__(self, kind: zmq.SocketType, options: dict[zmq.SocketOption, int]) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self._socket = self._context.socket(kind)
        for option, value in options.items():
            self._socket.setsockopt(option, value)

    def close(self) -> None:
        """Close at once; what the peer has not got is not sent any more."""
        self._socket.close(linger=0)
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Dealer(_Endpoint):
    """The collector's end: one connection that comes back by itself."""

    def __init__(self, address: Address) -> None:
        super().__init__(zmq.DEALER, _DEALER)
        first, most = _RECONNECT_LOCAL_MS if address.is_local else _RECONNECT_MS
        self._socket.setsockopt(zmq.RECONNECT_IVL, first)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, most)
        try:
            self._socket.connect(address.url)
        except zmq.ZMQError as error:
            self.close()
            raise AddressError(f"cannot connect to {address.url!r}: {error.strerror}") from error

    def send(self, frame: bytes) -> bool:
        """Hand the frame over; False when there is no connection or no room: try again later."""
        try:
            self._socket.send(frame, zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def receive(self) -> bytes | None:
        """Return the next message that has come, or `None`; what is not one single frame is passed over."""
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return None
            if len(frames) == 1:
                return frames[0]

    def poll(self, timeout_s: float) -> bool:
        """Wait for a message for at most `timeout_s` seconds; True when one is there."""
        return bool(self._socket.poll(max(0, round(timeout_s * 1000)), zmq.POLLIN))


class Router(_Endpoint):
    """The uploader's end: many peers, told apart by the routing id that the socket gives each connection."""

    def __init__(self, addresses: Iterable[Address]) -> None:
        super().__init__(zmq.ROUTER, _ROUTER)
        self.urls: list[str] = []
        self._endpoints: list[str] = []
        for address in addresses:
            self._bind(address)
        self._wake_fd, self._wake_write_fd = os.pipe()
        os.set_blocking(self._wake_fd, False)
        os.set_blocking(self._wake_write_fd, False)
        self._wake_lock = threading.Lock()
        self._closed = False
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._wake_fd, zmq.POLLIN)

    def receive(self, *, most: int, timeout_s: float) -> tuple[list[tuple[bytes, bytes]], int]:
        """Wait up to `timeout_s`, then return at most `most` pairs (routing id, frame) without waiting further.

        The second value counts messages that were passed over because they had more than one frame.
        """
        received: list[tuple[bytes, bytes]] = []
        malformed = 0
        ready = dict(self._poller.poll(max(0, round(timeout_s * 1000))))
        if self._wake_fd in ready:
            os.read(self._wake_fd, 4096)
        while len(received) < most:
            try:
                frames = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                break
            if len(frames) == _IDENTITY_AND_MESSAGE:
                received.append((frames[0], frames[1]))
            else:
                malformed += 1
                # They count against `most` as well: rubbish must not keep the loop from committing.
                most -= 1
        return received, malformed

    def send(self, identity: bytes, frame: bytes) -> bool:
        """Send to one peer; False when it is gone or does not read."""
        try:
            self._socket.send_multipart((identity, frame), zmq.DONTWAIT)
        except zmq.ZMQError as error:
            if error.errno in {zmq.EAGAIN, zmq.EHOSTUNREACH}:
                return False
            raise
        return True

    def wake(self) -> None:
        """Make a waiting `receive` return; may be called from any thread, also after `close`."""
        with self._wake_lock:
            if not self._closed:
                # A full pipe wakes as well as one more byte in it.
                with contextlib.suppress(BlockingIOError):
                    os.write(self._wake_write_fd, b"\0")

    def stop_listening(self) -> None:
        """Take no new connections and remove Unix sockets; connections that are there go on."""
        for endpoint in self._endpoints:
            # libzmq leaves the file of a Unix socket behind; nobody else has made it anew while we hold the lock.
            if endpoint.startswith("ipc://"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(endpoint.removeprefix("ipc://"))
            self._socket.unbind(endpoint)
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
        super().close()

    def _bind(self, address: Address) -> None:
        # A Unix socket gets its mode from the umask at this moment: nobody else may connect, ever.
        mask = os.umask(0o177)
        try:
            self._socket.bind(address.url)
        except zmq.ZMQError as error:
            super().close()
            raise AddressError(f"cannot listen at {address.url!r}: {error.strerror}") from error
        finally:
            os.umask(mask)
        endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._endpoints.append(endpoint)
        # The endpoint names the port that was chosen, the user's address the host as it was written.
        port = endpoint.rpartition(":")[2]
        self.urls.append(f"{address.url.rpartition(':')[0]}:{port}" if endpoint.startswith("tcp:") else address.url)
