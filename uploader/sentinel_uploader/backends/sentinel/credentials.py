"""Temporary storage credentials in a response. Pure functions."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sentinel_uploader.runs.types import Credentials

REQUIRED_KEYS = ("access_key", "secret_key", "session_token")


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
