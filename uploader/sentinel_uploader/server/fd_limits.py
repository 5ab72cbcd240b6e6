"""Descriptors: how many there are, and how many of them connections may take.

At the limit a ROUTER accepts nobody, silently, and tries again without a pause: connections are turned away before.
"""

import logging
import os
import resource

from sentinel_uploader.limits import ClientLimits
from sentinel_uploader.server.connection_guard import ConnectionLimits as DoorLimits

log = logging.getLogger(__name__)

_RESERVED_FDS = 72
"""For 32 calls under way, the spool, ZeroMQ's own, health and metrics, and newcomers that are turned away."""
_MIN_CONNECTIONS = 8
_MAX_CONNECTIONS = 100_000


def raise_descriptor_limit() -> None:
    """Raise the soft limit to the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connection_limits(limits: ClientLimits) -> DoorLimits:
    """Return what is wished of connections, as many of them as the descriptors allow."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = max(_MIN_CONNECTIONS, min(soft - _open_now() - _RESERVED_FDS, _MAX_CONNECTIONS))
    wished = limits.max_connections
    if wished is not None and wished > possible:
        log.warning(
            "the descriptor limit allows fewer connections than --max-connections; raise it (ulimit -n, LimitNOFILE=) "
            "descriptors=%d connections=%d",
            soft,
            possible,
        )
    connections = possible if wished is None else min(wished, possible)
    return DoorLimits(
        connections,
        limits.max_client_connections or max(1, connections * 3 // 4),
        max_unread_bytes=limits.max_unread_bytes,
        max_extra_frames=limits.max_extra_frames,
    )


def _open_now() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return _MIN_CONNECTIONS
