"""The HTTP client of the API and of storage: one bounded attempt at a time, over pooled connections.

Bounded means timeouts, a deadline for the whole exchange, and a limit on the response's size. There are no retries and
no redirects: the caller decides by `DeliveryError.retry_action`.
"""

import email.utils
import math
import ssl
import threading
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass
from typing import NamedTuple

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.util import parse_url

from sentinel_protocol import __version__
from sentinel_protocol.common.clock import Clock
from sentinel_protocol.common.errors import UsageError
from sentinel_uploader.backends.http.deadlines import HttpPool, HttpsPool, RequestDeadline, bound_to
from sentinel_uploader.backends.http.proxies import Proxies, Proxy, certificate_authorities, tls_context
from sentinel_uploader.runs.delivery_error import DeliveryError, RetryAction

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 30.0
TOTAL_TIMEOUT_S = 120.0
MAX_RESPONSE_BYTES = 1 << 20
MAX_RETRY_AFTER_S = 3600.0
SLOWEST_UPLINK_BYTES_PER_S = 16 << 10
"""Sets the time for a body on top of `TOTAL_TIMEOUT_S`: a big object on a slow uplink must arrive."""

_USER_AGENT = f"sentinel-stream/{__version__}"
_READ_CHUNK_BYTES = 64 << 10
_IDLE_CONNECTIONS_PER_HOST = 16


class Origin(NamedTuple):
    """Scheme, host (IPv6 in brackets) and port of a server."""

    scheme: str
    host: str
    port: int

    @property
    def netloc(self) -> str:
        """The value of a `Host` header: the port is left out when it is the scheme's default."""
        return self.host if self.port == {"http": 80, "https": 443}[self.scheme] else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """`scheme://host[:port]`."""
        return f"{self.scheme}://{self.netloc}"


class HttpResponse(NamedTuple):
    """A complete HTTP response. An error response above the size limit is cut off."""

    status: int
    headers: Mapping[str, str]
    """Names are matched without regard to case."""
    body: bytes

    @property
    def is_success(self) -> bool:
        """Any 2xx."""
        return 200 <= self.status < 300

    def date(self) -> float | None:
        """Return UNIX seconds of the `Date` header, `None` without a valid one."""
        return _parse_http_date(self.headers.get("Date") or "")

    def retry_after_s(self, now: float) -> float | None:
        """Return the seconds of `Retry-After`. A date is compared with the response's own `Date`, if any."""
        server_now = self.date()
        return parse_retry_after(self.headers.get("Retry-After"), now if server_now is None else server_now)


def parse_origin(url: str) -> tuple[Origin, str]:
    """Split `http[s]://HOST[:PORT][/PREFIX]` into origin and prefix (`""`, or `/…` without a trailing slash).

    Raises `UsageError` for anything else, also for a user name, a query or a fragment.
    """
    try:
        parts = parse_url(url)
    except LocationParseError:
        raise UsageError("not an address (expected https://HOST[:PORT][/PREFIX])") from None
    if parts.scheme not in {"http", "https"} or not parts.host:
        raise UsageError("not an http:// or https:// address (expected https://HOST[:PORT][/PREFIX])")
    if parts.auth or parts.query or parts.fragment:
        raise UsageError(f"the address of {parts.host} must not hold a user name, a query or a fragment")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return Origin(parts.scheme, parts.host, port), (parts.path or "").rstrip("/")


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Return the seconds of a `Retry-After` header (RFC 9110, 10.2.3), at most an hour; `None` for an invalid one."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        at = _parse_http_date(value)
        if at is None:
            return None
        seconds = at - now
        return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)
    return min(seconds, MAX_RETRY_AFTER_S) if seconds >= 0 and math.isfinite(seconds) else None


@dataclass(kw_only=True, eq=False)
class HttpClient:
    """Pooled connections to any number of servers; may be used from several threads at once.

    `authority_variables` are environment variables that may name a file of certificate authorities; the first one that
    is set wins. Raises `UsageError` for an unusable proxy or authority file.
    """

    environ: InitVar[Mapping[str, str]]
    clock: Clock
    authority_variables: InitVar[Sequence[str]] = ("SSL_CERT_FILE",)
    connect_timeout_s: float = CONNECT_TIMEOUT_S
    read_timeout_s: float = READ_TIMEOUT_S
    total_timeout_s: float = TOTAL_TIMEOUT_S
    max_response_bytes: int = MAX_RESPONSE_BYTES

    def __post_init__(self, environ: Mapping[str, str], authority_variables: Sequence[str]) -> None:
        self._proxies = Proxies(environ)
        self._authorities = certificate_authorities(environ, authority_variables)
        self._lock = threading.Lock()
        self._managers: dict[tuple[str | None, bool], urllib3.PoolManager] = {}
        self._calls: set[RequestDeadline] = set()
        self._is_closed = False

    def request(
        self, name: str, method: str, origin: Origin, path: str, *, headers: Mapping[str, str], body: bytes = b""
    ) -> HttpResponse:
        """Make one attempt and return the complete response of any status.

        `path` (with a leading slash, already escaped) is sent byte for byte. Raises `DeliveryError` with
        `RetryAction.RETRY` when there is no complete response, or when a successful one is above the size limit. Its
        text begins with `name`.
        """
        proxy = self._proxies.choose(origin.scheme, origin.host, origin.port)
        is_forwarded = proxy is not None and origin.scheme == "http"
        target = origin.url + path if is_forwarded else path
        total_s = self.total_timeout_s + len(body) / SLOWEST_UPLINK_BYTES_PER_S
        call = RequestDeadline(self.clock, target=target, total_s=total_s, read_timeout_s=self.read_timeout_s)
        with self._lock:
            if self._is_closed:
                raise DeliveryError(f"{name}: the HTTP client was closed", retry_action=RetryAction.RETRY)
            self._calls.add(call)
        headers = {"User-Agent": _USER_AGENT, **headers, "Host": origin.netloc, "Content-Length": str(len(body))}
        try:
            with bound_to(call):
                return self._exchange(name, method, self._pool(origin, proxy), call, headers, body)
        except (HTTPError, OSError, ValueError) as error:
            via = f" through the proxy {proxy.url}" if proxy else ""
            text = f"{name}: {origin.netloc}{via}: {describe_error(error)}"
            raise DeliveryError(text, retry_action=RetryAction.RETRY) from None
        finally:
            with self._lock:
                self._calls.discard(call)

    def close(self) -> None:
        """Close all connections; requests in flight fail at once."""
        with self._lock:
            self._is_closed = True
            calls, managers = list(self._calls), list(self._managers.values())
        for call in calls:
            call.abort()
        for manager in managers:
            manager.clear()

    def _exchange(
        self,
        name: str,
        method: str,
        pool: urllib3.HTTPConnectionPool,
        call: RequestDeadline,
        headers: Mapping[str, str],
        body: bytes,
    ) -> HttpResponse:
        response = pool.urlopen(
            method,
            call.target,
            body=call.body_chunks(body) if body else None,
            headers=headers,
            retries=False,
            redirect=False,
            assert_same_host=False,
            timeout=urllib3.Timeout(connect=self.connect_timeout_s, read=self.read_timeout_s),
            preload_content=False,
            decode_content=False,
        )
        try:
            received = self._read(response)
        except BaseException:
            # Not released to the pool: the rest of this response must not become the beginning of the next one.
            response.close()
            raise
        if len(received) > self.max_response_bytes:
            response.close()
            if response.status < 400:
                raise DeliveryError(
                    f"{name}: HTTP {response.status} with an answer of more than {self.max_response_bytes} bytes",
                    retry_action=RetryAction.RETRY,
                    status_code=response.status,
                )
        response.release_conn()
        return HttpResponse(response.status, response.headers, received[: self.max_response_bytes])

    def _read(self, response: urllib3.BaseHTTPResponse) -> bytes:
        """Return the response's body, or its beginning: one byte more than the limit."""
        limit = self.max_response_bytes + 1
        received = bytearray()
        while len(received) < limit:
            chunk = response.read(min(_READ_CHUNK_BYTES, limit - len(received)), decode_content=False)
            if not chunk:
                break
            received += chunk
        return bytes(received)

    def _pool(self, origin: Origin, proxy: Proxy | None) -> urllib3.HTTPConnectionPool:
        needs_tls = origin.scheme == "https" or (proxy is not None and proxy.url.startswith("https:"))
        key = (proxy.url if proxy else None, needs_tls)
        with self._lock:
            manager = self._managers.get(key)
            if manager is None:
                manager = self._managers[key] = self._manager(
                    proxy, tls_context(self._authorities) if needs_tls else None
                )
        return manager.connection_from_host(origin.host, origin.port, scheme=origin.scheme)

    def _manager(self, proxy: Proxy | None, context: ssl.SSLContext | None) -> urllib3.PoolManager:
        manager = (
            urllib3.PoolManager(32, maxsize=_IDLE_CONNECTIONS_PER_HOST, ssl_context=context)
            if proxy is None
            else urllib3.ProxyManager(
                proxy.url,
                32,
                proxy_headers=proxy.headers,
                proxy_ssl_context=context,
                maxsize=_IDLE_CONNECTIONS_PER_HOST,
                ssl_context=context,
            )
        )
        manager.pool_classes_by_scheme = {"http": HttpPool, "https": HttpsPool}
        return manager


def describe_error(error: BaseException) -> str:
    """Say in a few words why there was no response.

    Never the text of a `ValueError`: `http.client` quotes the header that it rejects, which may be the token.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return f"certificate not trusted: {seen.verify_message}"
        if isinstance(seen, ssl.SSLError):
            return f"TLS failed: {seen.reason or 'connection closed'}"
        if isinstance(seen, TimeoutError):
            return str(seen) or "timed out"
        if isinstance(seen, OSError):
            return seen.strerror or str(seen) or type(seen).__name__
        if isinstance(seen, ValueError) and not isinstance(seen, HTTPError):
            return "the request cannot be sent: a header or the address holds characters that HTTP does not allow"
        seen = _cause(seen)
    return f"no complete HTTP answer ({type(error).__name__})"


def _cause(error: BaseException) -> BaseException | None:
    if error.__cause__ is not None:
        return error.__cause__
    return next((argument for argument in error.args if isinstance(argument, BaseException)), None)


def _parse_http_date(value: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):
        return None
