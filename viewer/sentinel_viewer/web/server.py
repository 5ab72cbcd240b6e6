"""Serves the pages until stopped."""

import socket
from collections.abc import Callable, Mapping

import uvicorn

from sentinel_protocol.common.errors import UsageError
from sentinel_viewer.live.watch import LiveEntry
from sentinel_viewer.web.access import is_loopback
from sentinel_viewer.web.app import Pages, create_app

_BACKLOG = 128
_GOODBYE_S = 1


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; raises `UsageError` where there can be none."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(_BACKLOG)
    except OSError as error:
        raise UsageError(f"cannot listen at {host}:{port}: {error.strerror}; --port names another port") from error
    return made


def address_of(opened: socket.socket, host: str, token: str | None) -> str:
    """Return the address that a browser is to open."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{opened.getsockname()[1]}/" + (f"?token={token}" if token else "")


def needs_token(host: str) -> bool:
    """Whether others can reach the address."""
    return not is_loopback(host)


def serve(
    opened: socket.socket,
    where: str | None,
    environ: Mapping[str, str],
    look: Callable[[], list[LiveEntry]],
    *,
    token: str | None,
    spool: str | None = None,
) -> None:
    """Serve at the socket until a signal ends it."""
    app = create_app(Pages(where, environ, look, spool), token=token)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GOODBYE_S,
        lifespan="off",
    )
    uvicorn.Server(config).run(sockets=[opened])
