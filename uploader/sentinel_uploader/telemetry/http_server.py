"""A small HTTP server for a few pages, which nobody can use to hold the uploader up.

One thread of its own accepts at a bounded pace and holds a bounded number of connections; who is slow makes room for
who comes later. A request is one GET or HEAD with a short head, and an answer ends its connection. Pages are made by a
worker, each once for all who ask within a moment, and nobody waits longer than `ANSWER_S`.
"""

import asyncio
import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from typing import NamedTuple

from sentinel_protocol.common.clock import Clock
from sentinel_protocol.common.errors import UsageError
from sentinel_uploader.telemetry.listen_address import HttpAddress
from sentinel_uploader.util.daemon_pool import DaemonThreadPool

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 32
MAX_HEAD_BYTES = 8 << 10
ANSWER_S = 5.0
"""For a whole exchange: a request that is slow to come, a page that is slow to make, a reader that is slow to read."""
PAGE_S = 4.0
"""Then a page that is not there yet is answered for."""
ACCEPT_PAUSE_S = 0.005
FRESH_S = 0.2
"""A page is made again when it is older."""
TEXT = "text/plain; charset=utf-8"
_BACKLOG = 128
_WORKERS = 4
_RETRY_ACCEPT_S = 0.05
_RESERVED_FDS = 3
"""Descriptors that are held back for the moment when there are no others."""
_LOG_INTERVAL_S = 60.0
_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class Response(NamedTuple):
    """An answer."""

    status: int
    body: bytes
    content_type: str = TEXT


Routes = Mapping[str, Callable[[], Response]]
"""How to make the pages, by their paths; making one may block."""


class HttpServer:
    """Holds an address from the beginning, and serves pages there from `start` to `close`."""

    def __init__(self, address: HttpAddress, *, clock: Clock) -> None:
        """Take the address; raises `UsageError` that names it."""
        self._routes: Routes = {}
        self._clock = clock
        # A page that hangs, with the spool's lock say, does not hold up the others.
        self._pool = DaemonThreadPool(_WORKERS)
        self._made: dict[str, tuple[float, Response]] = {}
        self._being_made: dict[str, asyncio.Future[Response]] = {}
        # In the order in which they came.
        self._open: dict[asyncio.Task[None], socket.socket] = {}
        self._logged_at: float | None = None
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
        """End at once; requests under way get no answer."""
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
                # Those who hold all descriptors must not fill the log as well.
                self._note(error)
                # That is when somebody looks: what was kept for it is used, and others may be quicker.
                self._release_reserved_fds()
                await asyncio.sleep(_RETRY_ACCEPT_S)
                continue
            if len(self._open) >= MAX_CONNECTIONS:
                next(iter(self._open)).cancel()
            task = self._loop.create_task(self._attend(connection))
            self._open[task] = connection
            task.add_done_callback(self._done)
            # A flood of connections costs so much a second and no more.
            await asyncio.sleep(ACCEPT_PAUSE_S)

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._open[task]
        # The pages need some as well: /proc is read for them.
        with contextlib.suppress(OSError):
            while len(self._reserved_fds) < _RESERVED_FDS:
                self._reserved_fds.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    def _release_reserved_fds(self) -> None:
        while self._reserved_fds:
            os.close(self._reserved_fds.pop())

    async def _attend(self, connection: socket.socket) -> None:
        """Answer one request; whatever goes wrong with the connection ends it, and nothing else."""
        try:
            with contextlib.suppress(OSError, EOFError, TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    reader, writer = await asyncio.open_connection(sock=connection, limit=MAX_HEAD_BYTES)
                    try:
                        writer.write(await self._exchange(reader))
                        writer.close()
                        await writer.wait_closed()
                    finally:
                        # What a reader has not taken by now is not kept for it.
                        writer.transport.abort()
        finally:
            connection.close()

    async def _exchange(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _encoded(Response(431, b"the request is too long\n"))
        method, _, rest = head.partition(b"\r\n")[0].partition(b" ")
        target, _, version = rest.partition(b" ")
        if not version.startswith(b"HTTP/1.") or not target.startswith(b"/"):
            return _encoded(Response(400, b"not an HTTP/1 request\n"))
        if method not in {b"GET", b"HEAD"}:
            return _encoded(Response(405, b"GET and HEAD only\n"))
        page = await self._page(target.partition(b"?")[0].decode("latin-1"))
        return _encoded(page, only_head=method == b"HEAD")

    async def _page(self, path: str) -> Response:
        make = self._routes.get(path)
        if make is None:
            return Response(404, f"there is {' '.join(self._routes)}\n".encode())
        made_at, page = self._made.get(path, (-FRESH_S, Response(404, b"")))
        if self._clock.monotonic() - made_at < FRESH_S:
            return page
        future = self._being_made.get(path)
        if future is None:
            future = self._being_made[path] = self._loop.create_future()
            self._pool.submit(lambda: self._render_in_worker(path, make))
        try:
            # Somebody else may wait for the same page when this one hangs up.
            return await asyncio.wait_for(asyncio.shield(future), PAGE_S)
        except TimeoutError:
            return Response(503, b"no answer in time: the uploader is busy, or its disk does not answer\n")

    def _render_in_worker(self, path: str, make: Callable[[], Response]) -> None:
        try:
            page = make()
        except Exception:
            log.exception("a page cannot be made path=%s", path)
            page = Response(500, b"a defect, see the log\n")
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            self._loop.call_soon_threadsafe(self._keep, path, page)

    def _keep(self, path: str, page: Response) -> None:
        self._made[path] = (self._clock.monotonic(), page)
        self._being_made.pop(path).set_result(page)

    def _note(self, error: OSError) -> None:
        now = self._clock.monotonic()
        if self._logged_at is None or now - self._logged_at >= _LOG_INTERVAL_S:
            self._logged_at = now
            log.warning("cannot take an HTTP connection, trying again error=%s", error.strerror)


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


def _encoded(page: Response, *, only_head: bool = False) -> bytes:
    lines = [
        f"HTTP/1.1 {page.status} {_REASONS[page.status]}",
        f"Content-Type: {page.content_type}",
        f"Content-Length: {len(page.body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
    ]
    if page.status == 405:
        lines.append("Allow: GET, HEAD")
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    return head if only_head else head + page.body
