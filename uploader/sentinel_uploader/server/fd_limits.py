"""File descriptors: raises their limit, and derives the number of connections from it.

At the limit, ZeroMQ retries `accept` in a busy loop without an error. So connections are limited below it.
"""

import logging
import os
import resource

from sentinel_uploader.limits import ClientLimits
from sentinel_uploader.server.connections import ConnectionLimits

log = logging.getLogger(__name__)

_RESERVED_FDS = 72
"""For 32 calls under way, the spool, ZeroMQ, health and metrics, and connections that are about to be refused."""
_MIN_CONNECTIONS = 8
_MAX_CONNECTIONS = 100_000


def raise_descriptor_limit() -> None:
    """Raise the soft limit to the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connection_limits(limits: ClientLimits) -> ConnectionLimits:
    """Return the limits that were asked for, lowered to what the descriptor limit allows."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = max(_MIN_CONNECTIONS, min(soft - _open_fds() - _RESERVED_FDS, _MAX_CONNECTIONS))
    wanted = limits.max_connections
    if wanted is not None and wanted > possible:
        log.warning(
            "the descriptor limit allows fewer connections than --max-connections; raise it (ulimit -n, LimitNOFILE=) "
            "descriptors=%d connections=%d",
            soft,
            possible,
        )
    connections = possible if wanted is None else min(wanted, possible)
    return ConnectionLimits(
        connections,
        limits.max_client_connections or max(1, connections * 3 // 4),
        max_unread_bytes=limits.max_unread_bytes,
        max_extra_frames=limits.max_extra_frames,
    )


def _open_fds() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return _MIN_CONNECTIONS
