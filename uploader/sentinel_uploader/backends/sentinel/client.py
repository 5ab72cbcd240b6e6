"""An HTTP client for one Sentinel API: its address, its connections, and what is known about it."""

import functools
import os
from collections.abc import Mapping
from urllib.parse import quote

from sentinel_protocol.common.api_url import API_URL_VARIABLE, redact_url
from sentinel_protocol.common.clock import Clock, SystemClock
from sentinel_protocol.common.errors import UsageError
from sentinel_uploader.backends.http.client import HttpClient, HttpResponse, parse_origin
from sentinel_uploader.backends.sentinel.field_compat import UnsupportedFields
from sentinel_uploader.backends.sentinel.responses import SentinelAPIError
from sentinel_uploader.backends.sentinel.token import check_token
from sentinel_uploader.runs.delivery_error import DeliveryError, RetryAction

DEFAULT_BASE_URL = "https://api.sentinel.sparecores.net"
_NOTICED_CLOCK_DIFFERENCE_S = 5.0


class SentinelClient:
    """Sends single requests to a base URL, which may have a path prefix; safe for several threads.

    Raises `UsageError` for an unusable address, proxy or authority file.
    """

    def __init__(
        self, base_url: str, *, clock: Clock, environ: Mapping[str, str], client: HttpClient | None = None
    ) -> None:
        try:
            self._origin, self._prefix = parse_origin(base_url)
        except UsageError as error:
            raise UsageError(f"{API_URL_VARIABLE} {redact_url(base_url)!r}: {error}") from None
        self.base_url = self._origin.url + self._prefix
        self.clock = clock
        self.unsupported_fields = UnsupportedFields(self.base_url, clock)
        self.clock_offset_s = 0.0
        """How far the server's clock was ahead of ours at the last response; 0 for a few seconds."""
        self._http = client or HttpClient(environ=environ, clock=clock)

    def post(self, call: str, path: str, token: str, body: bytes, *, encoding: str | None = None) -> HttpResponse:
        """Make one attempt; raises `SentinelAPIError` (`TokenError` for a token that cannot be sent)."""
        check_token(token, call)
        headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json",
            "Accept": "application/json",
        }
        if encoding:
            headers["Content-Encoding"] = encoding
        try:
            answer = self._http.request(call, "POST", self._origin, self._prefix + path, headers=headers, body=body)
        except DeliveryError as error:
            # Users of the library catch one error, also without a response.
            failure = SentinelAPIError(None, reason=str(error), retry_action=error.retry_action)
            failure.status_code = error.status_code
            raise failure from None
        server_now = answer.date()
        if server_now is not None:
            ahead_s = server_now - self.clock.now()
            # The Date header has whole seconds, and the response took a while: ignore small differences.
            self.clock_offset_s = ahead_s if abs(ahead_s) > _NOTICED_CLOCK_DIFFERENCE_S else 0.0
        return answer

    def close(self) -> None:
        """Close the connections; calls in flight fail."""
        self._http.close()


def run_path(call: str, run_id: str, action: str) -> str:
    """Return `/runs/{run_id}/{action}`, escaped; raises `SentinelAPIError` for a run id that cannot be in a path."""
    if run_id in {"", ".", ".."}:
        reason = f"the run id {run_id!r} cannot stand in an address"
        raise SentinelAPIError(None, call=call, reason=reason, retry_action=RetryAction.FAIL)
    return f"/runs/{quote(run_id, safe='')}/{action}"


def default_client() -> SentinelClient:
    """Return the client that the process's environment describes; the same one while the environment is the same."""
    relevant = {
        name: value
        for name, value in os.environ.items()
        if name in {API_URL_VARIABLE, "SSL_CERT_FILE", "REQUEST_METHOD"} or name.lower().endswith("_proxy")
    }
    return _client_for(tuple(sorted(relevant.items())))


@functools.lru_cache(maxsize=4)
def _client_for(variables: tuple[tuple[str, str], ...]) -> SentinelClient:
    environ = dict(variables)
    return SentinelClient(environ.get(API_URL_VARIABLE) or DEFAULT_BASE_URL, clock=SystemClock(), environ=environ)
