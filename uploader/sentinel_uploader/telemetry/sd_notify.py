"""Notifies systemd of readiness, stop and liveness: one datagram each to `$NOTIFY_SOCKET`, sd_notify(3)."""

import logging
import os
import socket
from collections.abc import Mapping

from sentinel_protocol.common.clock import Clock

log = logging.getLogger(__name__)

_WATCHDOG_SHARE = 0.25
"""Part of the watchdog's time between two notifications. A slow commit must not get the service killed."""


class SystemdNotifier:
    """Does nothing without `$NOTIFY_SOCKET`, and sends no watchdog message without `$WATCHDOG_USEC`.

    The first failure is logged. Failures never stop the uploader.
    """

    def __init__(self, environ: Mapping[str, str], *, clock: Clock) -> None:
        self._clock = clock
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._has_failed = False
        self._watchdog_interval_s = 0.0
        self._watchdog_due_at = 0.0
        watched = environ.get("WATCHDOG_USEC", "")
        if self._address and watched.isdecimal() and environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            self._watchdog_interval_s = int(watched) / 1e6 * _WATCHDOG_SHARE

    def ready(self, status: str) -> None:
        """The service is ready; `status` is one line for people."""
        self._send(f"READY=1\nSTATUS={status}")

    def stopping(self, status: str) -> None:
        """The service stops, which may take a while."""
        self._send(f"STOPPING=1\nSTATUS={status}")

    def watchdog(self) -> None:
        """The main loop is alive. Cheap when called often."""
        if self._watchdog_interval_s and (now := self._clock.monotonic()) >= self._watchdog_due_at:
            self._watchdog_due_at = now + self._watchdog_interval_s
            self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        # `@` stands for the zero byte of an abstract address (unix(7)).
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                # A manager that does not read must not block us.
                sender.settimeout(0)
                sender.sendto(message.encode(), address)
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                log.warning("cannot notify the service manager socket=%s error=%s", self._address, error)
