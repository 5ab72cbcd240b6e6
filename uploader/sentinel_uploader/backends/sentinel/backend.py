"""The Sentinel API over HTTP, as the uploader's run lifecycle needs it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sentinel_protocol.common.clock import Clock
from sentinel_uploader.backends.http.client import HttpClient
from sentinel_uploader.backends.sentinel.api import (
    DataSource,
    Endpoint,
    RunStatus,
    SentinelAPIError,
    finish_run,
    refresh_credentials,
    register_run,
)
from sentinel_uploader.backends.sentinel.credentials import parse_credentials
from sentinel_uploader.backends.sentinel.token import TokenError
from sentinel_uploader.runs.ports import Credentials, Ending, Registration, RunDescription

INLINE_LIMIT_BYTES = 5 << 20


class HttpSentinelAPI:
    """Implements `runs.ports.SentinelAPI`; `token` is called on every use, so that a rotated one is picked up.

    `base_url` may have a path prefix. Raises `UsageError` for an address, a proxy or a file of certificate
    authorities that cannot be used.
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
        self._refused: str | None = None
        """The token that the API did not take; empty when there was none that could be sent."""
        self._clock = clock
        self._endpoint = Endpoint(base_url, clock=clock, environ=environ, client=client)
        self.destination = self._endpoint.base_url

    def register(self, run: RunDescription) -> Registration:
        """Make the run known; raises `DeliveryError`."""
        with self._token() as token:
            response = register_run(
                token, run.metadata, host_info=run.host, cloud_info=run.cloud, endpoint=self._endpoint
            )
        return Registration(
            run_id=response["run_id"],
            # Keys are made by adding "/0001.csv.gz": two slashes would be another object.
            uri_prefix=response["upload_uri_prefix"].rstrip("/"),
            credentials=self._credentials(response),
        )

    def refresh(self, run_id: str) -> Credentials:
        """Return new credentials; raises `DeliveryError`."""
        with self._token() as token:
            return self._credentials(refresh_credentials(token, run_id, endpoint=self._endpoint))

    def finish(self, ending: Ending) -> dict[str, Any]:
        """Close the run; 409 says that it is closed already and is success without an answer (`{}`)."""
        try:
            with self._token() as token:
                return finish_run(
                    token,
                    ending.run_id,
                    exit_code=ending.exit_code,
                    run_status=RunStatus(ending.status),
                    data_source=DataSource.inline if ending.data_csv is not None else DataSource.s3,
                    data_uris=ending.data_uris,
                    data_csv=ending.data_csv,
                    finished_at=ending.finished_at,
                    endpoint=self._endpoint,
                )
        except SentinelAPIError as error:
            if error.status_code == 409:
                return {}
            raise

    def has_changed(self) -> bool:
        """Say once whether the token is another than the one that was refused."""
        refused = self._refused
        if refused is None:
            return False
        try:
            token = self._read_token()
        except TokenError:
            return False
        if token == refused:
            return False
        self._refused = None
        return True

    def close(self) -> None:
        """Close the connections; calls under way fail."""
        self._endpoint.close()

    @contextmanager
    def _token(self) -> Iterator[str]:
        """Give the token to one call, and note when it is not taken."""
        token = ""
        try:
            token = self._read_token()
            yield token
        except SentinelAPIError as error:
            if isinstance(error, TokenError) or error.status_code in {401, 403}:
                self._refused = token
            raise

    def _credentials(self, response: Mapping[str, Any]) -> Credentials:
        return parse_credentials(
            response["upload_credentials"],
            obtained_at=self._clock.now(),
            server_ahead_s=self._endpoint.server_ahead_s,
        )
