"""Access control: on loopback any browser of this machine, beyond it only a browser with the token.

Without a token the `Host` header must name this machine. A page of another site whose name resolves to 127.0.0.1 (DNS
rebinding) is refused.
"""

import hmac
import ipaddress
import secrets
from urllib.parse import urlencode

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_COOKIE = "sentinel_view"
_PARAMETER = "token"
_WEEK_S = 7 * 86_400
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether an address cannot be reached from another machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def new_token() -> str:
    """Return a token that cannot be guessed."""
    return secrets.token_urlsafe(24)


class Access:
    """An ASGI layer that lets a request in or turns it away. `token` is `None` where none is asked for."""

    def __init__(self, app: ASGIApp, *, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check host and token. A token in the address is moved into a cookie."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await (self._refusal(Request(scope)) or self._app)(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        if self._token is None:
            # Another site's name for this machine (DNS rebinding) would make its pages ours.
            name = request.url.hostname or ""
            if name not in _LOOPBACK_NAMES and not is_loopback(name):
                return PlainTextResponse("This server is for this machine's own browser.\n", 421)
            return None
        given = request.query_params.get(_PARAMETER)
        if given is not None and self._matches(given):
            rest = [(key, value) for key, value in request.query_params.multi_items() if key != _PARAMETER]
            moved = RedirectResponse(request.url.path + (f"?{urlencode(rest)}" if rest else ""), 303)
            moved.set_cookie(_COOKIE, self._token, max_age=_WEEK_S, httponly=True, samesite="strict")
            return moved
        if self._matches(request.cookies.get(_COOKIE, "")):
            return None
        return PlainTextResponse("Open the address with ?token=… that the server has printed.\n", 401)

    def _matches(self, given: str) -> bool:
        assert self._token is not None
        return hmac.compare_digest(given.encode("utf-8", "replace"), self._token.encode())
