"""An S3 server that verifies signatures and keeps what it was sent; it does not use the SDK to check the SDK's work."""

import hashlib
import hmac
import re
import ssl
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple
from urllib.parse import quote, unquote

from fakes.faults import Fault, Recorded
from fakes.keyring import Issued, Keyring
from fakes.strict_http_server import Reply, StrictHttpServer

STATUS_OF_CODE = {
    "AccessDenied": 403,
    "AuthorizationHeaderMalformed": 400,
    "ExpiredToken": 400,
    "InternalError": 500,
    "InvalidAccessKeyId": 403,
    "InvalidToken": 400,
    "NoSuchBucket": 404,
    "RequestTimeTooSkewed": 403,
    "RequestTimeout": 400,
    "ServiceUnavailable": 503,
    "SignatureDoesNotMatch": 403,
    "SlowDown": 503,
    "TokenRefreshRequired": 400,
}
MAX_SKEW_S = 900

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/s3/aws4_request, SignedHeaders=([a-z0-9;-]+), "
    r"Signature=([0-9a-f]{64})"
)
_VIRTUAL_HOST = re.compile(r"(?P<bucket>.+)\.s3(?:\.[a-z0-9-]+)?\.amazonaws\.com")


class _RefusedError(Exception):
    def __init__(self, code: str, message: str, **elements: str) -> None:
        super().__init__(code)
        self.code = code
        self.reply = error_reply(code, message, **elements)


class _Authorization(NamedTuple):
    access_key: str
    day: str
    region: str
    signed: str
    signature: str


class S3Server(StrictHttpServer):
    """Storage for `s3://BUCKET/KEY`, addressed by path, or by host under `amazonaws.com` (through a proxy).

    `keyring` knows the credentials. `buckets` limits which exist (`None`: all). With `wrong_region="redirect"` a wrong
    region is answered by 301 with `x-amz-bucket-region`, otherwise by 400 with the region in the XML. The calls for
    `faults` are `put` and `head`; a fault's `code` is an S3 code. With `takes_any_type` the Content-Type is not looked
    at and need not be signed, as Amazon has it.

    `versions(uri)` returns every body that was PUT there, in order; `objects()` the last of each.
    """

    def __init__(
        self,
        keyring: Keyring,
        *,
        region: str = "us-east-1",
        buckets: set[str] | None = None,
        wrong_region: str = "malformed",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        now: Callable[[], float] = time.time,
        takes_any_type: bool = False,
    ) -> None:
        super().__init__(port=port, tls=tls, now=now)
        self.keyring = keyring
        self._takes_any_type = takes_any_type
        self.region = region
        self.buckets = buckets
        self.wrong_region = wrong_region
        self._versions: dict[str, list[bytes]] = {}
        self._lock = threading.Lock()

    def versions(self, uri: str) -> list[bytes]:
        """Return every body that was PUT to the address."""
        with self._lock:
            return list(self._versions.get(uri, []))

    def objects(self) -> dict[str, bytes]:
        """Return what a reader finds: the last body of each address, sorted by address."""
        with self._lock:
            return {uri: bodies[-1] for uri, bodies in sorted(self._versions.items())}

    def fetch(self, uri: str) -> bytes | None:
        """Return the object or `None`."""
        return self.objects().get(uri)

    def read(self, request: Recorded) -> None:
        request.call = request.method.lower()

    def fault_reply(self, fault: Fault) -> Reply:
        if fault.code is None or fault.body is not None:
            return super().fault_reply(fault)
        reply = error_reply(fault.code, "injected")
        return Reply(fault.status or reply.status, reply.body, {**reply.headers, **fault.headers})

    def perform(self, request: Recorded) -> Reply:
        try:
            bucket, key = _locate(request)
            if self.buckets is not None and bucket not in self.buckets:
                raise _RefusedError("NoSuchBucket", "The specified bucket does not exist")
            if request.method == "HEAD" and not key:
                return Reply(403, b"", {"x-amz-bucket-region": self.region})
            if request.method != "PUT" or not key:
                return Reply(405)
            self._verify(request, f"s3://{bucket}/{key}")
        except _RefusedError as refused:
            request.code = refused.code
            return refused.reply
        with self._lock:
            self._versions.setdefault(f"s3://{bucket}/{key}", []).append(request.body)
        request.took_effect = True
        return Reply(200, b"", {"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})

    def _verify(self, request: Recorded, uri: str) -> None:
        authorization = _read_authorization(request)
        issued = self.keyring.find(authorization.access_key)
        if issued is None:
            raise _RefusedError(
                "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.",
                AWSAccessKeyId=authorization.access_key,
            )  # fmt: skip
        self._check_region(authorization.region)
        self._check_time(request)
        if request.headers.get("x-amz-security-token") != issued.session_token:
            raise _RefusedError("InvalidToken", "The provided token is malformed or otherwise invalid.")
        _check_signature(request, authorization, issued, signs_type=not self._takes_any_type)
        if issued.revoked is not None:
            raise _RefusedError(issued.revoked, "revoked")
        if self.now() >= issued.expires_at:
            raise _RefusedError("ExpiredToken", "The provided token has expired.")
        if not uri.startswith(f"{issued.prefix}/"):
            raise _RefusedError("AccessDenied", "Access Denied")
        _check_content(request)
        if request.headers.get("content-type") != "application/gzip" and not self._takes_any_type:
            raise _RefusedError("InvalidRequest", "Content-Type is not application/gzip")

    def _check_region(self, region: str) -> None:
        if region == self.region:
            return
        if self.wrong_region == "redirect":
            refused = _RefusedError("PermanentRedirect", "The bucket must be addressed using the specified endpoint.")
            refused.reply = Reply(301, refused.reply.body, {"x-amz-bucket-region": self.region})
            raise refused
        message = f"the region '{region}' is wrong; expecting '{self.region}'"
        raise _RefusedError("AuthorizationHeaderMalformed", message, Region=self.region)

    def _check_time(self, request: Recorded) -> None:
        try:
            stamp = datetime.strptime(request.headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        except (KeyError, ValueError):
            raise _RefusedError("AccessDenied", "no valid x-amz-date") from None
        if abs(stamp.timestamp() - self.now()) > MAX_SKEW_S:
            raise _RefusedError(
                "RequestTimeTooSkewed", "The difference between the request time and ours is too large."
            )


def error_reply(code: str, message: str, **elements: str) -> Reply:
    """Return S3's XML error with the status that belongs to the code (400 for one that is not in the table)."""
    more = "".join(f"<{name}>{value}</{name}>" for name, value in elements.items())
    xml = (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message>{more}'
        "<RequestId>4442587FB7D0A2F9</RequestId></Error>"
    )
    return Reply(STATUS_OF_CODE.get(code, 400), xml.encode(), {"Content-Type": "application/xml"})


def _locate(request: Recorded) -> tuple[str, str]:
    path = request.path
    if path.startswith("http://"):
        path = "/" + path.split("/", 3)[3]
    if quote(unquote(path), safe="/~") != path:
        raise _RefusedError("InvalidURI", "the path is not escaped the way that the signature demands")
    match = _VIRTUAL_HOST.fullmatch(request.headers.get("host", ""))
    if match:
        return match["bucket"], unquote(path[1:])
    bucket, _, key = path[1:].partition("/")
    return unquote(bucket), unquote(key)


def _read_authorization(request: Recorded) -> _Authorization:
    match = _AUTHORIZATION.fullmatch(request.headers.get("authorization", ""))
    if match is None:
        raise _RefusedError("AccessDenied", "no readable Authorization header")
    return _Authorization(*match.groups())


def _check_signature(request: Recorded, authorization: _Authorization, issued: Issued, *, signs_type: bool) -> None:
    """Compute the signature by the letter of AWS' description (Signature Version 4, "Create a signed request")."""
    headers = request.headers
    signed = authorization.signed.split(";")
    wanted = {"host", *(name for name in headers if name.startswith("x-amz-"))} | (
        {"content-type"} if signs_type else set()
    )
    if not wanted <= set(signed):
        raise _RefusedError("AccessDenied", f"headers not signed: {sorted(wanted - set(signed))}")
    canonical = "\n".join(
        [
            request.method,
            request.path,
            "",
            *(f"{name}:{' '.join(headers.get(name, '').split())}" for name in signed),
            "",
            authorization.signed,
            headers.get("x-amz-content-sha256", ""),
        ]
    )
    scope = f"{authorization.day}/{authorization.region}/s3/aws4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = f"AWS4-HMAC-SHA256\n{headers['x-amz-date']}\n{scope}\n{digest}"
    key = f"AWS4{issued.secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    if not headers["x-amz-date"].startswith(authorization.day):
        raise _RefusedError("SignatureDoesNotMatch", "scope and date differ")
    if not hmac.compare_digest(hmac.new(key, text.encode(), "sha256").hexdigest(), authorization.signature):
        raise _RefusedError("SignatureDoesNotMatch", "The request signature we calculated does not match.")


def _check_content(request: Recorded) -> None:
    headers = request.headers
    if headers.get("x-amz-content-sha256") != hashlib.sha256(request.body).hexdigest():
        raise _RefusedError("XAmzContentSHA256Mismatch", "the payload's hash is not signed, or is another's")
    if "content-encoding" in headers or "transfer-encoding" in headers:
        raise _RefusedError("InvalidRequest", "readers would unpack twice")
