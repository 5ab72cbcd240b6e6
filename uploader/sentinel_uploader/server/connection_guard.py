"""Limits connections and closes those that may not stay, in a thread of its own.

The thread also answers ZeroMQ's authentication requests, so that neither waits for the spool. A revoked key loses its
connections, whatever they are doing.
"""

import errno
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import zmq

from sentinel_protocol.common.clock import Clock
from sentinel_protocol.wire.zmq_monitor import SocketEvent, next_event
from sentinel_uploader.server.connections import ConnectionId, ConnectionTable
from sentinel_uploader.server.rejection_log import RejectionLog
from sentinel_uploader.server.zap_authenticator import CurveAllowList, ZapAuthenticator

_INSPECTED = 64
_INSPECTED_IN_HASTE = 2048
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
SWEEP_INTERVAL_S = 0.25
"""The time between two sweeps. A revoked key loses its connections after this time and the allow list's age."""
MONITOR_EVENTS = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_ACCEPT_FAILED


@dataclass(eq=False)
class ConnectionGuard:
    """Guards the sockets of one context. `monitors` belong to these sockets and report `MONITOR_EVENTS`."""

    context: "zmq.Context[zmq.Socket[bytes]]"
    monitors: Sequence["zmq.Socket[bytes]"]
    connections: ConnectionTable
    allow_list: CurveAllowList | None
    rejections: RejectionLog
    clock: Clock

    def __post_init__(self) -> None:
        self._zap: ZapAuthenticator | None = None
        if self.allow_list is not None:
            self._zap = ZapAuthenticator(
                self.context, self.allow_list, self.connections, self.rejections.on_rejected, self.clock
            )
        self._list_revision: int | None = None
        self._budget = InspectionBudget(self.connections.limits.max_unread_bytes)
        self._wake_fd, self._wake_write_fd = os.pipe()
        self._thread = threading.Thread(target=self._run, name="connection-guard", daemon=True)

    def start(self, endpoints: Sequence[Sequence[str]]) -> None:
        """Start the thread, once the sockets listen; `endpoints` are those of each socket, in the monitors' order."""
        self.connections.set_listen_endpoints(endpoints)
        self._thread.start()

    def stop(self) -> None:
        """End the thread: from now on no connection with a key is admitted."""
        if self._thread.is_alive():
            os.write(self._wake_write_fd, b"\0")
            self._thread.join()

    def close(self) -> None:
        """Stop, and close the monitors; monitoring of their sockets must be disabled before."""
        self.stop()
        os.close(self._wake_write_fd)
        os.close(self._wake_fd)
        for monitor in self.monitors:
            monitor.close(linger=0)
        if self._zap is not None:
            self._zap.close()

    def _run(self) -> None:
        # Signals are handled by the main thread.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        poller = zmq.Poller()
        for source in (self._wake_fd, *self.monitors, *([self._zap.socket] if self._zap is not None else [])):
            poller.register(source, zmq.POLLIN)
        swept_at = self.clock.monotonic()
        while self._wake_fd not in dict(
            poller.poll(max(0, round(1000 * (swept_at + SWEEP_INTERVAL_S - self.clock.monotonic()))))
        ):
            try:
                for index, monitor in enumerate(self.monitors):
                    while (event := next_event(monitor)) is not None:
                        self._on_monitor_event(index, event)
                if self._zap is not None:
                    self._zap.handle_requests()
                now = self.clock.monotonic()
                if now - swept_at >= SWEEP_INTERVAL_S:
                    swept_at = now
                    self._sweep_connections(now)
            except Exception as error:  # noqa: BLE001 -- a connection that was not admitted by then stays outside
                self.rejections.on_error(error)

    def _on_monitor_event(self, index: int, event: SocketEvent) -> None:
        connection_id = ConnectionId(index, event.value)
        if event.kind == zmq.EVENT_ACCEPT_FAILED:
            if event.value in {errno.EMFILE, errno.ENFILE}:
                self.rejections.on_rejected("descriptors")
                self.rejections.on_limit_reached(len(self.connections), self.connections.limits.max_connections)
                # ZeroMQ retries in a busy loop until there is a descriptor.
                self.connections.drop_newest_pending()
        elif event.kind == zmq.EVENT_DISCONNECTED:
            # Probes at a Unix socket are not counted: only this user reaches it, and each command probes it.
            if self.connections.on_closed(connection_id) and not event.endpoint.startswith("ipc:"):
                self.rejections.on_rejected("silent")
        elif not self.connections.on_accepted(connection_id, self.clock.monotonic()):
            self.rejections.on_rejected("connections")
            self.rejections.on_limit_reached(len(self.connections), self.connections.limits.max_connections)

    def _sweep_connections(self, now: float) -> None:
        self._drop_revoked()
        self.connections.drop_expired_pending(now)
        stalled, _ = self.connections.inspect_some(now, self._budget.count(len(self.connections)))
        for _ in range(stalled):
            self.rejections.on_rejected("unread")

    def _drop_revoked(self) -> None:
        if self.allow_list is None:
            return
        revision = self.allow_list.revision()
        if revision != self._list_revision:
            for _ in range(self.connections.drop_revoked(self.allow_list.is_allowed)):
                self.rejections.on_rejected("revoked")
            # Last: when a look at the list fails, all keys are looked at again.
            self._list_revision = revision


class InspectionBudget:
    """How many connections a sweep inspects: a few, and many only while memory grows.

    Whoever sends a message without an end makes this process grow. So the time until it is found depends on the harm
    that it does, and a sweep costs the same however many connections there are.
    """

    def __init__(self, harm_bytes: int) -> None:
        self._harm_bytes = harm_bytes
        self._round_left = 0
        self._bytes_before = 0

    def count(self, connections: int) -> int:
        """Return how many of so many connections to inspect now."""
        memory = _resident_bytes()
        is_growing = memory - self._bytes_before > self._harm_bytes
        count = _INSPECTED_IN_HASTE if is_growing else _INSPECTED
        self._round_left -= count
        if self._round_left <= 0:
            # All were inspected since. What is in memory by now is not of one connection.
            self._round_left, self._bytes_before = 2 * connections, memory
        return count


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except OSError:
        # No descriptor is left.
        return 0
