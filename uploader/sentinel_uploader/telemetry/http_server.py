"""A small HTTP server for health and metrics. No client can use it to slow the uploader down.

A thread accepts connections, at a bounded rate and up to `MAX_CONNECTIONS`; then a new one replaces the oldest one. A
request is one GET or HEAD with a short head, and the response ends the connection. A worker makes each response, once
for all who ask within `FRESH_S`. No exchange takes longer than `ANSWER_S`.

The servers of the standard library and of `prometheus_client` have none of these bounds: a thread for each connection,
no deadline for a request, and megabytes of headers.
"""

import asyncio
import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import NamedTuple

from sentinel_protocol.common.clock import Clock
from sentinel_protocol.common.errors import UsageError
from sentinel_uploader.telemetry.listen_address import HttpAddress
from sentinel_uploader.util.daemon_pool import DaemonThreadPool
from sentinel_uploader.util.log_throttle import LogThrottle

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 32
MAX_HEAD_BYTES = 8 << 10
ANSWER_S = 5.0
"""For a whole exchange, however slowly the client sends or reads."""
PAGE_S = 4.0
"""A client whose response is not made by then gets a 503."""
ACCEPT_PAUSE_S = 0.005
FRESH_S = 0.2
"""A response is made again when it is older."""
_BACKLOG = 128
_WORKERS = 4
_RETRY_ACCEPT_S = 0.05
_RESERVED_FDS = 3
"""Descriptors held for the moment when there are no others: that is when somebody wants to read the metrics."""


class Response(NamedTuple):
    """Status, body and its type."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


Routes = Mapping[str, Callable[[], Response]]
"""How to make the response for each path; may block."""


class HttpServer:
    """Binds an address at once, and serves `routes` there from `start` to `close`."""

    def __init__(self, address: HttpAddress, *, clock: Clock) -> None:
        """Raises `UsageError` when the address cannot be bound."""
        self._routes: Routes = {}
        self._clock = clock
        # Several: a response that hangs, with the spool's lock say, must not delay the others.
        self._pool = DaemonThreadPool(_WORKERS)
        self._made: dict[str, tuple[float, Response]] = {}
        self._being_made: dict[str, asyncio.Future[Response]] = {}
        self._open: dict[asyncio.Task[None], socket.socket] = {}
        """Oldest first."""
        self._throttle = LogThrottle(clock)
        self._reserved_fds = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) for _ in range(_RESERVED_FDS)]
        self._loop = asyncio.new_event_loop()
        try:
            self._listener = _listen(address)
        except OSError as error:
            self._loop.close()
            self._release_reserved_fds()
            raise UsageError(f"cannot serve HTTP at {address.host}:{address.port}: {error.strerror or error}") from None
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)
        self.url = HttpAddress(address.host, self._listener.getsockname()[1]).url

    def start(self, routes: Routes) -> None:
        """Begin to accept connections."""
        self._routes = routes
        self._thread.start()

    def close(self) -> None:
        """Stop at once; open requests get no response."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        else:
            self._loop.close()
        self._listener.close()
        self._release_reserved_fds()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        accepting = self._loop.create_task(self._accept())
        try:
            self._loop.run_forever()
        finally:
            tasks = [accepting, *self._open]
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.close()

    async def _accept(self) -> None:
        while True:
            try:
                connection, _ = await self._loop.sock_accept(self._listener)
            except OSError as error:
                if self._throttle.is_due():
                    log.warning("cannot accept an HTTP connection, trying again error=%s", error.strerror)
                self._release_reserved_fds()
                await asyncio.sleep(_RETRY_ACCEPT_S)
                continue
            if len(self._open) >= MAX_CONNECTIONS:
                next(iter(self._open)).cancel()
            task = self._loop.create_task(self._serve(connection))
            self._open[task] = connection
            task.add_done_callback(self._done)
            # A flood of connections costs a bounded share of a CPU.
            await asyncio.sleep(ACCEPT_PAUSE_S)

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._open[task]
        with contextlib.suppress(OSError):
            while len(self._reserved_fds) < _RESERVED_FDS:
                self._reserved_fds.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    def _release_reserved_fds(self) -> None:
        """Free descriptors for the next connection and for its response: metrics are read from /proc."""
        while self._reserved_fds:
            os.close(self._reserved_fds.pop())

    async def _serve(self, connection: socket.socket) -> None:
        """Answer one request. An error of the connection ends this connection only."""
        try:
            with contextlib.suppress(OSError, EOFError, TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    reader, writer = await asyncio.open_connection(sock=connection, limit=MAX_HEAD_BYTES)
                    try:
                        writer.write(await self._respond(reader))
                        writer.close()
                        await writer.wait_closed()
                    finally:
                        # Drops what the client has not read by now.
                        writer.transport.abort()
        finally:
            connection.close()

    async def _respond(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _encode(Response(431, b"the request is too long\n"))
        method, _, rest = head.partition(b"\r\n")[0].partition(b" ")
        target, _, version = rest.partition(b" ")
        if not version.startswith(b"HTTP/1.") or not target.startswith(b"/"):
            return _encode(Response(400, b"not an HTTP/1 request\n"))
        if method not in {b"GET", b"HEAD"}:
            return _encode(Response(405, b"GET and HEAD only\n"))
        response = await self._response(target.partition(b"?")[0].decode("latin-1"))
        return _encode(response, only_head=method == b"HEAD")

    async def _response(self, path: str) -> Response:
        make = self._routes.get(path)
        if make is None:
            return Response(404, f"there is {' '.join(self._routes)}\n".encode())
        made_at, response = self._made.get(path, (-FRESH_S, Response(404, b"")))
        if self._clock.monotonic() - made_at < FRESH_S:
            return response
        future = self._being_made.get(path)
        if future is None:
            future = self._being_made[path] = self._loop.create_future()
            self._pool.submit(lambda: self._render_in_worker(path, make))
        try:
            # Others may wait for the same response when this client disconnects.
            return await asyncio.wait_for(asyncio.shield(future), PAGE_S)
        except TimeoutError:
            return Response(503, b"no answer in time: the uploader is busy, or its disk does not answer\n")

    def _render_in_worker(self, path: str, make: Callable[[], Response]) -> None:
        try:
            response = make()
        except Exception:
            log.exception("cannot make an HTTP response path=%s", path)
            response = Response(500, b"a defect, see the log\n")
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            self._loop.call_soon_threadsafe(self._keep, path, response)

    def _keep(self, path: str, response: Response) -> None:
        self._made[path] = (self._clock.monotonic(), response)
        self._being_made.pop(path).set_result(response)


def _listen(address: HttpAddress) -> socket.socket:
    family, kind, protocol, _, where = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(_BACKLOG)
        listener.settimeout(0)
    except BaseException:
        listener.close()
        raise
    return listener


def _encode(response: Response, *, only_head: bool = False) -> bytes:
    lines = [
        f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}",
        f"Content-Type: {response.content_type}",
        f"Content-Length: {len(response.body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
    ]
    if response.status == HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append("Allow: GET, HEAD")
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    return head if only_head else head + response.body
