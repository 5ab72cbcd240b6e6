"""Reads the Sentinel API's responses: classifies errors, checks objects, reads credentials."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from sentinel_uploader.runs.delivery_error import DeliveryError, RetryAction
from sentinel_uploader.runs.types import Credentials
from sentinel_uploader.util.untrusted_text import printable, redact

if TYPE_CHECKING:
    # Not at run time: it imports urllib3, which the local target does not need.
    from sentinel_uploader.backends.http.client import HttpResponse

REQUIRED_KEYS = ("access_key", "secret_key", "session_token")
MAX_BODY_CHARS = 4096
_SHOWN_CHARS = 200


class SentinelAPIError(DeliveryError):
    """A call to the Sentinel API failed.

    `status_code` is `None` when there was no complete response, or nothing could be sent. `body` is the beginning of
    the response, without the token. `reason` replaces the body in the error's text: a response that should contain
    credentials is not quoted.
    """

    def __init__(
        self,
        status_code: int | None,
        body: str = "",
        *,
        call: str = "",
        reason: str = "",
        retry_action: RetryAction | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.body = body[:MAX_BODY_CHARS]
        status = "" if status_code is None else f"HTTP {status_code}"
        detail = reason or printable(self.body, _SHOWN_CHARS)
        super().__init__(
            ": ".join(filter(None, (call, status, detail))),
            retry_action=retry_action or (RetryAction.RETRY if status_code is None else classify_status(status_code)),
            status_code=status_code,
            retry_after_s=retry_after_s,
        )

    @property
    def remedy(self) -> RetryAction:
        """An alias of `retry_action`: its name in version 0.1.0."""
        return self.retry_action


def classify_status(status: int) -> RetryAction:
    """Classify an error status by the contract."""
    if status in {408, 425, 429} or status >= 500 or status < 300:
        return RetryAction.RETRY
    if status in {401, 403} or status < 400:
        # Redirects are not followed: the token is for the configured address, which a person must correct.
        return RetryAction.RETRY_SLOW
    return RetryAction.FAIL


def parse_object(call: str, answer: "HttpResponse", *, token: str, now: float) -> dict[str, Any]:
    """Return the response's JSON object, `{}` for an empty body; raises `SentinelAPIError` for anything else."""
    if not answer.is_success:
        raise to_exception(call, answer, token=token, now=now)
    if not answer.body.strip():
        return {}
    try:
        value = msgspec.json.decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        reason = f"the answer of {len(answer.body)} bytes is not JSON"
        raise SentinelAPIError(answer.status, call=call, reason=reason, retry_action=RetryAction.RETRY) from None
    if not isinstance(value, dict):
        reason = f"the answer is not a JSON object but {type(value).__name__}"
        raise SentinelAPIError(answer.status, call=call, reason=reason, retry_action=RetryAction.RETRY)
    return value


def to_exception(call: str, answer: "HttpResponse", *, token: str, now: float) -> SentinelAPIError:
    """Return the error of an error response."""
    text = answer.body[: 4 * MAX_BODY_CHARS].decode("utf-8", "replace")
    reason = ""
    if 300 <= answer.status < 400:
        location = printable(answer.headers.get("Location") or "nowhere", _SHOWN_CHARS)
        reason = f"redirects to {location}, which is not followed: correct the API's address"
    return SentinelAPIError(
        answer.status, redact(text, token), call=call, reason=reason, retry_after_s=answer.retry_after_s(now)
    )


def require_text(call: str, status: int, fields: Mapping[str, Any], *keys: str, within: str = "") -> None:
    """Raise `SentinelAPIError` that names the first key without a string, after the path `within` of its object."""
    for key in keys:
        value = fields.get(key)
        if not isinstance(value, str) or not value:
            raise _missing_field(call, status, f"{within}{key}", value)


def require_credentials(call: str, status: int, fields: Mapping[str, Any]) -> None:
    """Raise `SentinelAPIError` when `upload_credentials` or one of its required keys is missing."""
    credentials = fields.get("upload_credentials")
    if not isinstance(credentials, dict):
        raise _missing_field(call, status, "upload_credentials", credentials)
    require_text(call, status, credentials, *REQUIRED_KEYS, within="upload_credentials.")


def parse_credentials(fields: Mapping[str, Any], *, obtained_at: float, clock_offset_s: float = 0.0) -> Credentials:
    """Read the contract's `upload_credentials`, whose `REQUIRED_KEYS` were checked before.

    The server's clock is ahead of ours by `clock_offset_s`. The expiry in the response is by the server's clock; the
    result and `obtained_at` are UNIX seconds by ours.
    """
    region = fields.get("region")
    expires_at = parse_expiry(fields)
    return Credentials(
        access_key=fields["access_key"],
        secret_key=fields["secret_key"],
        session_token=fields["session_token"],
        region=region if isinstance(region, str) and region else None,
        expires_at=None if expires_at is None else expires_at - clock_offset_s,
        obtained_at=obtained_at,
    )


def parse_expiry(fields: Mapping[str, Any]) -> float | None:
    """Return UNIX seconds of `expires_at` or `expiration` (ISO-8601), `None` without a valid one.

    With or without a fraction, `Z` or an offset; a time without a zone is UTC.
    """
    for key in ("expires_at", "expiration"):
        value = fields.get(key)
        if not isinstance(value, str):
            continue
        try:
            moment = datetime.fromisoformat(value.strip().upper())
        except ValueError:
            continue
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return None


def processing_error(response: Mapping[str, Any], rows_sent: int) -> str | None:
    """Return the server's complaint about the data of `finish`, `None` when there is none."""
    processing = response.get("processing")
    if not isinstance(processing, dict):
        return None
    if processing.get("error"):
        return f"the server could not process the data: {printable(str(processing['error']), _SHOWN_CHARS)}"
    rows = processing.get("rows")
    if isinstance(rows, int) and not isinstance(rows, bool) and rows != rows_sent:
        return f"the server counted {rows} rows, {rows_sent} were sent"
    return None


def _missing_field(call: str, status: int, key: str, value: Any) -> SentinelAPIError:
    fault = "lacks the key" if value is None else "holds no usable value for"
    # Each repetition would leave another run at the server. A person must correct the server.
    return SentinelAPIError(
        status, call=call, reason=f"the answer {fault} {key!r}", retry_action=RetryAction.RETRY_SLOW
    )
