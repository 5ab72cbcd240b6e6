"""The Sentinel API as delivery needs it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sentinel_protocol.common.clock import Clock
from sentinel_uploader.backends.http.client import HttpClient
from sentinel_uploader.backends.sentinel.api import (
    DataSource,
    RunStatus,
    finish_run,
    refresh_credentials,
    register_run,
)
from sentinel_uploader.backends.sentinel.client import SentinelClient
from sentinel_uploader.backends.sentinel.responses import SentinelAPIError, parse_credentials, processing_error
from sentinel_uploader.backends.sentinel.token import TokenError
from sentinel_uploader.runs.types import Credentials, FinishRequest, FinishResult, Registration, RunDescription

INLINE_LIMIT_BYTES = 5 << 20


class SentinelBackend:
    """A `SentinelAPI` over HTTP. `token` is called for every request: a rotated token is used at once.

    `base_url` may have a path prefix. Raises `UsageError` for an unusable address, proxy or authority file.
    """

    inline_limit_bytes = INLINE_LIMIT_BYTES

    def __init__(
        self,
        token: Callable[[], str],
        base_url: str,
        clock: Clock,
        environ: Mapping[str, str],
        *,
        client: HttpClient | None = None,
    ) -> None:
        self._read_token = token
        self._rejected_token: str | None = None
        """The token that the API rejected; empty when there was no usable one."""
        self._clock = clock
        self._client = SentinelClient(base_url, clock=clock, environ=environ, client=client)
        self.backoff_key = self._client.base_url

    def register(self, run: RunDescription) -> Registration:
        """Register the run; raises `DeliveryError`."""
        with self._token() as token:
            response = register_run(token, run.metadata, host_info=run.host, cloud_info=run.cloud, client=self._client)
        return Registration(
            run_id=response["run_id"],
            # "/0001.csv.gz" is appended: two slashes would name another object.
            uri_prefix=response["upload_uri_prefix"].rstrip("/"),
            credentials=self._credentials(response),
        )

    def refresh(self, run_id: str) -> Credentials:
        """Return new credentials; raises `DeliveryError`."""
        with self._token() as token:
            return self._credentials(refresh_credentials(token, run_id, client=self._client))

    def finish(self, request: FinishRequest) -> FinishResult:
        """Close the run; 409 says that it is closed already and is success with an empty response."""
        try:
            with self._token() as token:
                response = finish_run(
                    token,
                    request.run_id,
                    exit_code=request.exit_code,
                    run_status=RunStatus(request.status),
                    data_source=DataSource.inline if request.data_csv is not None else DataSource.s3,
                    data_uris=request.data_uris,
                    data_csv=request.data_csv,
                    finished_at=request.finished_at,
                    client=self._client,
                )
        except SentinelAPIError as error:
            if error.status_code == 409:
                return FinishResult({})
            raise
        return FinishResult(response, processing_error(response, request.rows))

    def credentials_changed(self) -> bool:
        """Return True once when the rejected token has been replaced."""
        refused = self._rejected_token
        if refused is None:
            return False
        try:
            token = self._read_token()
        except TokenError:
            return False
        if token == refused:
            return False
        self._rejected_token = None
        return True

    def close(self) -> None:
        """Close the connections; calls in flight fail."""
        self._client.close()

    @contextmanager
    def _token(self) -> Iterator[str]:
        """Provide the token for one request, and remember it when it is rejected."""
        token = ""
        try:
            token = self._read_token()
            yield token
        except SentinelAPIError as error:
            if isinstance(error, TokenError) or error.status_code in {401, 403}:
                self._rejected_token = token
            raise

    def _credentials(self, response: Mapping[str, Any]) -> Credentials:
        return parse_credentials(
            response["upload_credentials"],
            obtained_at=self._clock.now(),
            clock_offset_s=self._client.clock_offset_s,
        )
