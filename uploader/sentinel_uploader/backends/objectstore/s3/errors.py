"""Reads S3's error responses and classifies them."""

import html
import re
from typing import NamedTuple

from sentinel_uploader.backends.http.client import HttpResponse
from sentinel_uploader.runs.delivery_error import DeliveryError, RetryAction
from sentinel_uploader.util.untrusted_text import printable, redact

_MAX_XML_BYTES = 64 << 10
_CREDENTIAL_CODES = frozenset({"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId"})
_RETRYABLE_CODES = frozenset(
    {"SlowDown", "RequestTimeout", "RequestTimeTooSkewed", "InternalError", "ServiceUnavailable", "OperationAborted"}
)


class S3ErrorBody(NamedTuple):
    """The content of an error response; empty strings for missing elements."""

    status: int
    code: str
    message: str
    region: str


def parse_error(answer: HttpResponse) -> S3ErrorBody:
    """Read the XML of an error response.

    Regular expressions on the first 64 KiB suffice for flat elements. An XML parser would expand entities.
    """
    text = answer.body[:_MAX_XML_BYTES].decode("utf-8", "replace")
    region = answer.headers.get("x-amz-bucket-region") or _element(text, "Region")
    return S3ErrorBody(answer.status, _element(text, "Code"), _element(text, "Message"), region)


def classify_error(fault: S3ErrorBody) -> RetryAction:
    """Classify an error. None is final: data must not be lost because of a response."""
    if fault.code in _RETRYABLE_CODES or fault.status in {307, 408, 409, 425, 429} or fault.status >= 500:
        return RetryAction.RETRY
    if fault.code in _CREDENTIAL_CODES or fault.status in {401, 403}:
        return RetryAction.REFRESH_CREDENTIALS
    return RetryAction.RETRY if fault.status < 300 else RetryAction.RETRY_SLOW


def to_exception(
    call: str, answer: HttpResponse, fault: S3ErrorBody, *, secrets: tuple[str, ...], now: float
) -> DeliveryError:
    """Return the error of a response; its text contains none of the secrets."""
    text = f"{fault.code}: {fault.message}" if fault.message else fault.code
    if not text and answer.body:
        text = answer.body[:200].decode("utf-8", "replace")
    text = printable(redact(text, *secrets), 300)
    return DeliveryError(
        f"{call}: HTTP {answer.status} {text}".rstrip(),
        retry_action=classify_error(fault),
        status_code=answer.status,
        retry_after_s=answer.retry_after_s(now),
    )


def _element(text: str, name: str) -> str:
    match = re.search(rf"<{name}>([^<]{{0,1000}})</{name}>", text)
    return html.unescape(match[1]).strip() if match else ""
