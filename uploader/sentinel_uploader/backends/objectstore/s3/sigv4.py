"""AWS Signature Version 4 at a given time.

Imports botocore, which takes 50 ms and 6 MiB: import this module when S3 is used.
"""

from collections.abc import Mapping
from datetime import UTC, datetime

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials

from sentinel_uploader.runs.types import Credentials


class _SignerAt(S3SigV4Auth):
    """Signs with the server's time. botocore's own signer reads this machine's clock, which may be wrong."""

    def __init__(self, credentials: ReadOnlyCredentials, region: str, now: float) -> None:
        super().__init__(credentials, "s3", region)
        self._now = now

    def add_auth(self, request: AWSRequest) -> None:
        request.context["timestamp"] = datetime.fromtimestamp(self._now, UTC).strftime("%Y%m%dT%H%M%SZ")
        # The private methods are the steps of botocore's `add_auth`.
        self._modify_request_before_signing(request)  # type: ignore[attr-defined]  # missing in the stubs
        text = self.string_to_sign(request, self.canonical_request(request))
        self._inject_signature_to_request(  # type: ignore[attr-defined]  # missing in the stubs
            request, self.signature(text, request)
        )


def signed_headers(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    body: bytes,
    credentials: Credentials,
    region: str,
    now: float,
) -> dict[str, str]:
    """Return the given headers (all signed; `Host` is required) with those of the signature.

    The payload's SHA-256 is signed, also over TLS, so that no checksum trailer is needed. `now` is UNIX seconds by the
    server's clock.
    """
    request = AWSRequest(method=method, url=url, headers=dict(headers), data=body)
    keys = ReadOnlyCredentials(credentials.access_key, credentials.secret_key, credentials.session_token)
    _SignerAt(keys, region, now).add_auth(request)
    return dict(request.headers.items())
