"""The connections of some sockets: which of them have spoken, whose they are, and how one of them is ended."""

import contextlib
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sentinel_uploader.server.fd_socket import socket_from_fd
from sentinel_uploader.server.unread import StalledReadTracker

PENDING_TIMEOUT_S = 90.0
"""A connection that has not said a word for so long is cut; a collector greets at once."""
_EVICT_PENDING_AFTER_S = 5.0
"""One that has been silent for so long makes room for a newcomer; a handshake may take as long."""


class ConnectionId(NamedTuple):
    """A connection as ZeroMQ's monitors name it.

    Both parts are needed: each socket's events come in order, but of two sockets that use a descriptor one after the
    other the later may be heard of first.
    """

    socket: int
    """Index of the listening socket."""
    descriptor: int


class _ConnectionInfo(NamedTuple):
    """Where a connection comes from, and since when (monotonic seconds)."""

    accepted_at: float
    inode: int
    """Tells the connection from a later file with the same descriptor; 0 when it was gone before we could look."""
    host: str


class _Registered(NamedTuple):
    """One that has spoken."""

    info: _ConnectionInfo
    identity: bytes
    key: bytes


class ConnectionTable:
    """Safe for several threads."""

    def __init__(self, *, max_per_key: int, max_unread_bytes: int) -> None:
        self._max_per_key = max_per_key
        self._lock = threading.Lock()
        self._listen_ids: list[set[object]] = []
        self._pending: dict[ConnectionId, _ConnectionInfo] = {}
        """Those that have not spoken, in the order of their coming."""
        self._closing: set[ConnectionId] = set()
        """Silent ones that are cut and have not gone yet."""
        self._registered: dict[ConnectionId, _Registered] = {}
        self._id_by_identity: dict[bytes, ConnectionId] = {}
        self._count_by_key: Counter[bytes] = Counter()
        self._auth_hosts: dict[tuple[bytes, str], float] = {}
        """Which keys were let in from where, and when last: a connection that is silent may be theirs."""
        self._stalled_reads = StalledReadTracker(max_unread_bytes)
        self._read_since_sweep: set[bytes] = set()

    def set_listen_endpoints(self, endpoints: Sequence[Sequence[str]]) -> None:
        """Say at which endpoints each socket listens: what has another name is none of their connections."""
        self._listen_ids = [{_endpoint_id(endpoint) for endpoint in of_socket} for of_socket in endpoints]

    def __len__(self) -> int:
        """How many there are."""
        with self._lock:
            return self._total()

    def is_registered(self, identity: bytes) -> bool:
        """Whether this one was introduced."""
        return identity in self._id_by_identity

    def note_message(self, identity: bytes) -> None:
        """A message of this one was taken."""
        self._read_since_sweep.add(identity)

    def has_reached_limit(self, key: bytes) -> bool:
        """Whether this key has as many as it may."""
        return self._count_by_key[key] >= self._max_per_key

    def on_accepted(self, connection_id: ConnectionId, now: float, *, limit: int) -> bool:
        """One has been accepted; False when that is more than `limit`: it, or one that is silent, is cut."""
        with self._lock:
            self._remove(connection_id)
            self._pending[connection_id] = _inspect_fd(connection_id.descriptor, now)
            has_room = self._total() <= limit
            if not has_room:
                oldest, connection = next(iter(self._pending.items()))
                # Not sooner: in a crowd the oldest are those whose handshake is nearly done, and nobody would ever
                # get in.
                self._drop_pending(oldest if now - connection.accepted_at > _EVICT_PENDING_AFTER_S else connection_id)
            return has_room

    def on_closed(self, connection_id: ConnectionId) -> bool:
        """One has ended; True when it had never said a word, and not because we had cut it."""
        with self._lock:
            was_silent = connection_id in self._pending
            self._remove(connection_id)
            return was_silent

    def on_authenticated(self, key: bytes, host: str, now: float) -> None:
        """A connection from this host has proved that it holds this key."""
        with self._lock:
            self._auth_hosts[key, host] = now

    def register(self, identity: bytes, connection_id: ConnectionId, key: bytes) -> bool:
        """One has spoken for the first time; False when its key has too many of them (it is cut)."""
        with self._lock:
            if connection_id not in self._pending:
                # Its beginning has not been told yet, or its end has: both come at some time.
                return True
            if key and self.has_reached_limit(key):
                self._drop_pending(connection_id)
                return False
            self._registered[connection_id] = _Registered(self._pending.pop(connection_id), identity, key)
            self._id_by_identity[identity] = connection_id
            self._count_by_key[key] += 1
            return True

    def disconnect(self, identity: bytes) -> bool:
        """End one, whatever it is doing; False when it is not known."""
        with self._lock:
            connection_id = self._id_by_identity.get(identity)
            if connection_id is None:
                return False
            self._shut_down(connection_id, self._registered[connection_id].info)
            return True

    def drop_newest_pending(self) -> None:
        """Give a descriptor back."""
        with self._lock:
            if self._pending:
                self._drop_pending(next(reversed(self._pending)))

    def drop_revoked(self, is_allowed: Callable[[bytes], bool]) -> int:
        """Cut those whose key is not admitted any more, and return how many that are.

        Of a connection that has not spoken nobody can tell which key it has proved: all are cut that come from where
        a key was let in that is not admitted any more. A collector greets at once, and comes back.
        """
        dropped = 0
        with self._lock:
            for connection_id, registered in self._registered.items():
                if registered.key and not is_allowed(registered.key):
                    self._shut_down(connection_id, registered.info)
                    dropped += 1
            hosts = set()
            for key, host in list(self._auth_hosts):
                if not is_allowed(key):
                    hosts.add(host)
                    del self._auth_hosts[key, host]
            for connection_id, connection in list(self._pending.items()):
                if connection.host in hosts:
                    self._drop_pending(connection_id)
                    dropped += 1
        return dropped

    def drop_expired_pending(self, now: float) -> None:
        """Cut those that never said a word."""
        with self._lock:
            for connection_id, connection in list(self._pending.items()):
                if now - connection.accepted_at < PENDING_TIMEOUT_S:
                    break
                self._drop_pending(connection_id)
            for entry, at in list(self._auth_hosts.items()):
                # Longer than any silent connection lasts.
                if now - at > 2 * PENDING_TIMEOUT_S:
                    del self._auth_hosts[entry]

    def drop_stalled(self) -> int:
        """Cut those of whose messages no end comes, and return how many that are."""
        dropped = 0
        with self._lock:
            taken, self._read_since_sweep = self._read_since_sweep, set()
            for connection_id in [*self._pending, *self._registered]:
                registered = self._registered.get(connection_id)
                if not self._stalled_reads.exceeds_limit(
                    connection_id, registered is not None and registered.identity in taken
                ):
                    continue
                self._stalled_reads.forget(connection_id)
                if registered is None:
                    self._drop_pending(connection_id)
                else:
                    self._shut_down(connection_id, registered.info)
                dropped += 1
        return dropped

    def _total(self) -> int:
        return len(self._pending) + len(self._closing) + len(self._registered)

    def _remove(self, connection_id: ConnectionId) -> None:
        self._pending.pop(connection_id, None)
        self._closing.discard(connection_id)
        self._stalled_reads.forget(connection_id)
        registered = self._registered.pop(connection_id, None)
        if registered is not None:
            self._id_by_identity.pop(registered.identity, None)
            self._count_by_key[registered.key] -= 1
            if not self._count_by_key[registered.key]:
                del self._count_by_key[registered.key]

    def _drop_pending(self, connection_id: ConnectionId) -> None:
        connection = self._pending.pop(connection_id)
        self._closing.add(connection_id)
        self._shut_down(connection_id, connection)

    def _shut_down(self, connection_id: ConnectionId, info: _ConnectionInfo) -> None:
        """Shut the connection down; its socket notices, closes it, and tells us.

        The descriptor may be another file's by now: we make sure before anything is done.
        """
        with contextlib.suppress(OSError), socket_from_fd(connection_id.descriptor) as open_socket:
            is_same = os.fstat(connection_id.descriptor).st_ino == info.inode
            if is_same and _local_endpoint_of(open_socket) in self._listen_ids[connection_id.socket]:
                open_socket.shutdown(socket.SHUT_RDWR)


def _endpoint_id(endpoint: str) -> object:
    """What tells a listening socket's connections from others: a TCP port, or a path."""
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
    # It is gone already: its end will be told.
    return _ConnectionInfo(now, 0, "")


def normalize_host(host: str) -> str:
    """Return an address without what only one of those who name it adds: the family of an IPv4 one, an interface."""
    return host.removeprefix("::ffff:").partition("%")[0]
