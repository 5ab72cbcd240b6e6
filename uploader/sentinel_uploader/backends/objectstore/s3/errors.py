"""Reading S3's answers: the code in the XML, and what it means for us."""

import html
import re
from typing import NamedTuple

from sentinel_uploader.backends.http.client import Answer
from sentinel_uploader.runs.delivery_error import DeliveryError, Remedy
from sentinel_uploader.util.untrusted_text import printable, without_secrets

_MAX_XML_BYTES = 64 << 10
_CREDENTIAL_CODES = frozenset({"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId"})
_AGAIN_CODES = frozenset(
    {"SlowDown", "RequestTimeout", "RequestTimeTooSkewed", "InternalError", "ServiceUnavailable", "OperationAborted"}
)


class S3Error(DeliveryError):
    """Storage answered with something else than success; `code` is S3's own name of the fault, or empty."""

    code: str = ""


class Fault(NamedTuple):
    """What an error answer says. Empty strings where it says nothing."""

    status: int
    code: str
    message: str
    region: str


def read_fault(answer: Answer) -> Fault:
    """Read an error answer's XML.

    By regular expressions on the first 64 KiB: the parts wanted are flat, and a parser would have entities to expand.
    """
    text = answer.body[:_MAX_XML_BYTES].decode("utf-8", "replace")
    region = answer.headers.get("x-amz-bucket-region") or _element(text, "Region")
    return Fault(answer.status, _element(text, "Code"), _element(text, "Message"), region)


def remedy_of(fault: Fault) -> Remedy:
    """Classify: never final, since data must not be dropped because of an answer."""
    if fault.code in _AGAIN_CODES or fault.status in {307, 408, 409, 425, 429} or fault.status >= 500:
        return Remedy.RETRY
    if fault.code in _CREDENTIAL_CODES or fault.status in {401, 403}:
        return Remedy.REFRESH
    return Remedy.RETRY if fault.status < 300 else Remedy.RETRY_SLOWLY


def error_of(call: str, answer: Answer, fault: Fault, *, secrets: tuple[str, ...], now: float) -> S3Error:
    """Return the error of an answer; its text holds none of the secrets."""
    text = f"{fault.code}: {fault.message}" if fault.message else fault.code
    if not text and answer.body:
        text = answer.body[:200].decode("utf-8", "replace")
    text = printable(without_secrets(text, *secrets), 300)
    error = S3Error(
        f"{call}: HTTP {answer.status} {text}".rstrip(),
        remedy=remedy_of(fault),
        status_code=answer.status,
        retry_after_s=answer.retry_after_s(now),
    )
    error.code = fault.code
    return error


def _element(text: str, name: str) -> str:
    match = re.search(rf"<{name}>([^<]{{0,1000}})</{name}>", text)
    return html.unescape(match[1]).strip() if match else ""
