"""The connection as the conversation sees it, and when one that looks open is given up."""

from typing import Protocol

HALF_OPEN_S = 60.0
"""A connection on which everything was unanswered for so long is opened anew.

A peer that has vanished is the kernel's to find (`TCP_USER_TIMEOUT`, keepalive). But a relay in between may go on
acknowledging what it cannot pass on, and an uploader may stand still for a while: so the time doubles with
each vain attempt.
"""
_MAX_HALF_OPEN_S = 960.0


class Transport(Protocol):
    """The socket of the client."""

    def send(self, frame: bytes) -> bool:
        """Queue a frame; False when there is no connection or no room."""

    def receive(self) -> bytes | None:
        """Return the next message, or `None` when there is none."""

    def reconnect(self) -> None:
        """Replace the connection: nothing comes through it any more."""

    def poll_handshake_error(self, now: float) -> str | None:
        """Return why a handshake has failed since the last call, and reconnect when due; `now`: monotonic seconds."""


class HalfOpenTimer:
    """Tells when a connection whose peer answers nothing is to be replaced. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._wait_s = HALF_OPEN_S
        self._reconnected_at = 0.0

    def is_due(self, now: float, unanswered_since: float) -> bool:
        """Whether to connect again now; True is counted as an attempt."""
        if unanswered_since >= self._reconnected_at:
            self._wait_s = HALF_OPEN_S
        if now - max(unanswered_since, self._reconnected_at) < self._wait_s:
            return False
        self._wait_s = min(_MAX_HALF_OPEN_S, 2 * self._wait_s)
        self._reconnected_at = now
        return True
