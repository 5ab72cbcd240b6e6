"""A small HTTP proxy: CONNECT tunnels and absolute addresses."""

import base64
import contextlib
import select
import socket
import socketserver
import threading
from collections.abc import Mapping

from fakes.background_thread import BackgroundThread


class HttpProxy(BackgroundThread):
    """A proxy at `address` (`HOST:PORT`); `with` starts and stops it.

    `routes` sends a destination (`HOST:PORT`) to another port of loopback, so that any name can be reached; nothing
    else than loopback is ever connected to. `login` (`user:password`) is demanded when given. `seen` holds the request
    lines.
    """

    def __init__(self, *, routes: Mapping[str, int] | None = None, login: str | None = None) -> None:
        self.routes = dict(routes or {})
        self.login = login
        self.seen: list[str] = []
        self.closing = threading.Event()
        self._server = _Server(self)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"

    def work(self) -> None:
        """Serve."""
        self._server.serve_forever(0.01)

    def end(self) -> None:
        """End every tunnel and listen no more."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def connect(self, destination: str) -> socket.socket:
        """Connect to where the destination is routed."""
        host, _, port = destination.rpartition(":")
        if destination not in self.routes and host != "127.0.0.1":
            raise OSError(f"no route to {destination}")
        return socket.create_connection(("127.0.0.1", self.routes.get(destination, int(port))), 5)


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True

    def __init__(self, owner: HttpProxy) -> None:
        self.owner = owner
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(socketserver.StreamRequestHandler):
    server: _Server
    rbufsize = 0

    def handle(self) -> None:
        self.connection.settimeout(10)
        with contextlib.suppress(OSError):
            self._handle()

    def _handle(self) -> None:
        owner = self.server.owner
        head = self._read_head()
        if not head:
            return
        request_line, *fields = head.decode("latin-1").split("\r\n")
        owner.seen.append(request_line)
        if owner.login is not None:
            wanted = "basic " + base64.b64encode(owner.login.encode()).decode()
            given = [field.partition(":")[2].strip() for field in fields if field.lower().startswith("proxy-auth")]
            if [value.split(" ")[-1] for value in given] != [wanted.split(" ")[-1]]:
                self.connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                return
        method, target, _ = request_line.split(" ")
        if method == "CONNECT":
            with owner.connect(target) as upstream:
                self.connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                self._relay(upstream)
            return
        netloc, _, path = target.removeprefix("http://").partition("/")
        kept = [field for field in fields if not field.lower().startswith(("proxy-", "connection:"))]
        forwarded = "\r\n".join([f"{method} /{path} HTTP/1.1", "Connection: close", *kept, "", ""])
        with owner.connect(netloc if ":" in netloc else f"{netloc}:80") as upstream:
            upstream.sendall(forwarded.encode("latin-1"))
            self._relay(upstream)

    def _read_head(self) -> bytes:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = self.connection.recv(1)
            if not byte:
                return b""
            head += byte
        return head[:-4]

    def _relay(self, upstream: socket.socket) -> None:
        ends = {self.connection: upstream, upstream: self.connection}
        while not self.server.owner.closing.is_set():
            readable, _, _ = select.select(list(ends), [], [], 0.01)
            for end in readable:
                chunk = end.recv(1 << 16)
                if not chunk:
                    return
                ends[end].sendall(chunk)
