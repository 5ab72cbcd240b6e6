"""The table of open connections: which have sent a message, whose they are, and how one of them is closed.

A connection is *pending* from accept until its first message, then *registered*.
"""

import contextlib
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sentinel_protocol.common.unix_peer import foreign_peer_uid
from sentinel_uploader.server.fd_sockets import socket_from_fd, tcp_bytes_received

PENDING_TIMEOUT_S = 90.0
"""A connection without a message is closed after this time. A collector sends its `Hello` at once."""
_EVICT_PENDING_AFTER_S = 5.0
"""A pending connection of this age makes room for a new one. A handshake may take as long."""
SILENT_TIMEOUT_S = 180.0
"""A TCP connection that says nothing for this time is closed: a collector says something every 30 s."""
_SUSPECT_BYTES = 64 << 10
"""A connection with so many bytes beyond its last message is inspected at every sweep."""
_MAX_SUSPECTS = 256


class ConnectionLimits(NamedTuple):
    """How many connections there may be at a time, and how much one of them may send beside whole messages."""

    max_connections: int
    max_per_key: int
    max_unread_bytes: int = 8 << 20
    """Bytes without the end of a message: many times the largest message."""
    max_extra_frames: int = 20_000
    """Frames beyond the first of each message. A collector sends none."""


class ConnectionId(NamedTuple):
    """A connection as ZeroMQ's monitors name it.

    Both parts are needed. Each socket's events arrive in order, but events of two sockets do not: a descriptor may be
    reported as accepted by the second socket before the first one reports it as closed.
    """

    socket: int
    """Index of the listening socket."""
    descriptor: int


class _ConnectionInfo(NamedTuple):
    """Peer and time of accept (monotonic seconds)."""

    accepted_at: float
    inode: int
    """Distinguishes the connection from a later file with the same descriptor; 0 when it closed before we looked."""
    host: str


class _Registered(NamedTuple):
    info: _ConnectionInfo
    identity: bytes
    key: bytes


class ConnectionTable:
    """All open connections. Thread-safe."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._lock = threading.Lock()
        self.accepted = 0
        """How many there were since the start."""
        self._listen_ids: list[set[object]] = []
        self._pending: dict[ConnectionId, _ConnectionInfo] = {}
        """Oldest first."""
        self._closing: set[ConnectionId] = set()
        """Pending ones that were shut down and whose close is not reported yet."""
        self._registered: dict[ConnectionId, _Registered] = {}
        self._id_by_identity: dict[bytes, ConnectionId] = {}
        self._ids_by_key: dict[bytes, set[ConnectionId]] = {}
        self._auth_hosts: dict[tuple[bytes, str], float] = {}
        """When each key was last authenticated from each host, oldest first. A pending connection may belong to any."""
        self._now = 0.0
        """When the last sweep began or connection came: exact enough for silence, and cheaper than the clock."""
        self._last_message_at: dict[bytes, float] = {}
        """When a message of each registered connection was last read."""
        self._inspections = Inspections()

    def set_listen_endpoints(self, endpoints: Sequence[Sequence[str]]) -> None:
        """Set the endpoints of each listening socket. A descriptor with another local name is not closed."""
        self._listen_ids = [{_endpoint_id(endpoint) for endpoint in of_socket} for of_socket in endpoints]

    def __len__(self) -> int:
        with self._lock:
            return self._total()

    def is_registered(self, identity: bytes) -> bool:
        """Whether this connection has sent a message."""
        return identity in self._id_by_identity

    def note_message(self, identity: bytes) -> None:
        """Record that a whole message of this connection was read."""
        if identity in self._last_message_at:
            self._last_message_at[identity] = self._now

    def has_reached_limit(self, key: bytes) -> bool:
        """Whether this key has as many registered connections as one key may have."""
        return len(self._ids_by_key.get(key, ())) >= self.limits.max_per_key

    def on_accepted(self, connection_id: ConnectionId, now: float) -> bool:
        """Add a connection. Above `max_connections`, close a pending one and return False."""
        with self._lock:
            self._remove(connection_id)
            self.accepted += 1
            self._now = max(self._now, now)
            self._pending[connection_id] = _inspect_fd(connection_id.descriptor, now)
            self._inspections.add(connection_id)
            has_room = self._total() <= self.limits.max_connections
            if not has_room:
                oldest, info = next(iter(self._pending.items()))
                # In a crowd the oldest are about to finish their handshake. Evicting them would never admit any.
                is_evictable = now - info.accepted_at > _EVICT_PENDING_AFTER_S
                self._drop_pending(oldest if is_evictable else connection_id)
            return has_room

    def on_closed(self, connection_id: ConnectionId) -> bool:
        """Remove a connection; True when it was pending and the peer closed it."""
        with self._lock:
            was_pending = connection_id in self._pending
            self._remove(connection_id)
            return was_pending

    def on_authenticated(self, key: bytes, host: str, now: float) -> None:
        """A connection from this host has proved that it holds this key."""
        with self._lock:
            self._auth_hosts.pop((key, host), None)
            self._auth_hosts[key, host] = now

    def register(self, identity: bytes, connection_id: ConnectionId, key: bytes) -> bool:
        """Register a pending connection at its first message. If its key has too many, close it and return False."""
        with self._lock:
            if connection_id not in self._pending:
                # Its accept is not reported yet, or its close is already. Either event follows.
                return True
            if key and self.has_reached_limit(key):
                self._drop_pending(connection_id)
                return False
            self._registered[connection_id] = _Registered(self._pending.pop(connection_id), identity, key)
            self._id_by_identity[identity] = connection_id
            self._ids_by_key.setdefault(key, set()).add(connection_id)
            self._last_message_at[identity] = self._now
            return True

    def drop_foreign(self, connection_id: ConnectionId) -> bool:
        """Close a connection at a Unix socket whose peer is neither this user nor root; True if it was."""
        try:
            if foreign_peer_uid(connection_id.descriptor) is None:
                return False
        except OSError:
            # It is closed already: the origin of its bytes is unknown.
            return True
        with self._lock:
            if connection_id in self._pending:
                self._drop_pending(connection_id)
        return True

    def disconnect(self, identity: bytes) -> bool:
        """Close a registered connection; False when there is none with this identity."""
        with self._lock:
            connection_id = self._id_by_identity.get(identity)
            if connection_id is None:
                return False
            self._shut_down(connection_id, self._registered[connection_id].info)
            return True

    def drop_newest_pending(self) -> None:
        """Close the newest pending connection, to get its descriptor back."""
        with self._lock:
            if self._pending:
                self._drop_pending(next(reversed(self._pending)))

    def drop_revoked(self, is_allowed: Callable[[bytes], bool]) -> int:
        """Close connections whose key is not allowed any more, and return their number.

        The key of a pending connection is unknown. When a key is revoked, all pending connections from the hosts that
        used it are closed. A collector sends its `Hello` at once, and connects again. Looks at all keys: to be called
        when the list has changed.
        """
        dropped = 0
        with self._lock:
            for key, connection_ids in self._ids_by_key.items():
                if key and not is_allowed(key):
                    for connection_id in connection_ids:
                        self._shut_down(connection_id, self._registered[connection_id].info)
                    dropped += len(connection_ids)
            hosts = set()
            for key, host in list(self._auth_hosts):
                if not is_allowed(key):
                    hosts.add(host)
                    del self._auth_hosts[key, host]
            for connection_id, info in list(self._pending.items()):
                if info.host in hosts:
                    self._drop_pending(connection_id)
                    dropped += 1
        return dropped

    def drop_expired_pending(self, now: float) -> None:
        """Close connections that have been pending for `PENDING_TIMEOUT_S`."""
        with self._lock:
            for connection_id, info in list(self._pending.items()):
                if now - info.accepted_at < PENDING_TIMEOUT_S:
                    break
                self._drop_pending(connection_id)
            # Longer than any connection stays pending.
            while self._auth_hosts and now - next(iter(self._auth_hosts.values())) > 2 * PENDING_TIMEOUT_S:
                del self._auth_hosts[next(iter(self._auth_hosts))]

    def inspect_some(self, now: float, count: int) -> tuple[int, int]:
        """Inspect the suspects and the next `count` connections; close those that stall or have gone silent.

        A connection stalls when it has sent more than the limit without the end of a message. Returns how many
        stalled and how many were silent. `now` is monotonic seconds.
        """
        stalled = silent = 0
        with self._lock:
            for connection_id in self._inspections.take(count):
                info, heard_at = self._info_of(connection_id)
                if info is None:
                    continue
                if self._inspections.unread_bytes(connection_id, heard_at) > self.limits.max_unread_bytes:
                    stalled += 1
                elif heard_at is not None and info.host and now - heard_at > SILENT_TIMEOUT_S:
                    silent += 1
                else:
                    self._inspections.add(connection_id)
                    continue
                self._inspections.forget(connection_id)
                if connection_id in self._pending:
                    self._drop_pending(connection_id)
                else:
                    self._inspections.add(connection_id)
                    self._shut_down(connection_id, info)
            # Last: a message that is read from now on is later than these inspections.
            self._now = now
        return stalled, silent

    def _info_of(self, connection_id: ConnectionId) -> tuple[_ConnectionInfo | None, float | None]:
        """Return the record of an open connection, and when its last message was read (`None`: never)."""
        registered = self._registered.get(connection_id)
        if registered is None:
            return self._pending.get(connection_id), None
        return registered.info, self._last_message_at[registered.identity]

    def _total(self) -> int:
        return len(self._pending) + len(self._closing) + len(self._registered)

    def _remove(self, connection_id: ConnectionId) -> None:
        self._pending.pop(connection_id, None)
        self._closing.discard(connection_id)
        self._inspections.forget(connection_id)
        registered = self._registered.pop(connection_id, None)
        if registered is not None:
            self._id_by_identity.pop(registered.identity, None)
            self._last_message_at.pop(registered.identity, None)
            of_key = self._ids_by_key[registered.key]
            of_key.discard(connection_id)
            if not of_key:
                del self._ids_by_key[registered.key]

    def _drop_pending(self, connection_id: ConnectionId) -> None:
        info = self._pending.pop(connection_id)
        self._closing.add(connection_id)
        self._shut_down(connection_id, info)

    def _shut_down(self, connection_id: ConnectionId, info: _ConnectionInfo) -> None:
        """Shut the connection down. ZeroMQ notices, closes the descriptor and reports that.

        The descriptor may belong to another file by now, so its inode and its local endpoint are checked first.
        """
        with contextlib.suppress(OSError), socket_from_fd(connection_id.descriptor) as open_socket:
            is_same = os.fstat(connection_id.descriptor).st_ino == info.inode
            if is_same and _local_endpoint_of(open_socket) in self._listen_ids[connection_id.socket]:
                open_socket.shutdown(socket.SHUT_RDWR)


class Inspections:
    """Whose turn it is to be inspected, and how many bytes each TCP connection had received when it was.

    ZeroMQ keeps a multipart message in memory until its last frame has arrived. No socket option limits that, and no
    event reports such a message. But the kernel counts the bytes that a connection has received: when the count grows
    and no message can be read, the peer only fills our memory. Unix sockets have no such count.
    """

    def __init__(self) -> None:
        self._turns: deque[ConnectionId] = deque()
        self._queued: set[ConnectionId] = set()
        self._suspects: set[ConnectionId] = set()
        self._received: dict[ConnectionId, tuple[float | None, int]] = {}
        """When its last message had been read at the last inspection, and the count then."""

    def add(self, connection_id: ConnectionId) -> None:
        """Give the connection a turn, behind all others."""
        if connection_id not in self._queued:
            self._queued.add(connection_id)
            self._turns.append(connection_id)

    def take(self, count: int) -> list[ConnectionId]:
        """Return the suspects and the next `count` others. Those that stay are to be added again."""
        taken = list(self._suspects)
        for _ in range(min(count, len(self._turns))):
            connection_id = self._turns.popleft()
            self._queued.discard(connection_id)
            if connection_id not in self._suspects:
                taken.append(connection_id)
        return taken

    def unread_bytes(self, connection_id: ConnectionId, heard_at: float | None) -> int:
        """Return how many bytes have come since the first inspection after the last message was read."""
        received = None
        before = self._received.get(connection_id)
        if before is None or before[0] == heard_at:
            received = tcp_bytes_received(connection_id.descriptor)
        if received is None:
            # Its messages end, or it is closed, or it is no TCP connection.
            self.forget(connection_id)
            return 0
        if before is None:
            # Before the first message of a connection, all its bytes are unread.
            before = self._received[connection_id] = (heard_at, 0 if heard_at is None else received)
        unread = received - before[1]
        if unread > _SUSPECT_BYTES and len(self._suspects) < _MAX_SUSPECTS:
            self._suspects.add(connection_id)
        return unread

    def forget(self, connection_id: ConnectionId) -> None:
        """Start anew with the next inspection."""
        self._suspects.discard(connection_id)
        self._received.pop(connection_id, None)


def _endpoint_id(endpoint: str) -> object:
    """Return the TCP port or the path of a listening endpoint, as `_local_endpoint_of` returns it."""
    if endpoint.startswith("ipc://"):
        return endpoint.removeprefix("ipc://")
    return int(endpoint.rpartition(":")[2])


def _local_endpoint_of(connection: socket.socket) -> object:
    name = connection.getsockname()
    return name[1] if isinstance(name, tuple) else name


def _inspect_fd(descriptor: int, now: float) -> _ConnectionInfo:
    with contextlib.suppress(OSError), socket_from_fd(descriptor) as connection:
        peer = connection.getpeername()
        host = normalize_host(peer[0]) if isinstance(peer, tuple) else ""
        return _ConnectionInfo(now, os.fstat(descriptor).st_ino, host)
    # It is closed already. That event follows.
    return _ConnectionInfo(now, 0, "")


def normalize_host(host: str) -> str:
    """Return an IP address without the `::ffff:` of a mapped IPv4 address and without an interface (`%eth0`)."""
    return host.removeprefix("::ffff:").partition("%")[0]
