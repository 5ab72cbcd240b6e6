"""Temporary storage credentials: reading them from an answer, and when to ask for new ones. Pure functions."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sentinel_uploader.runs.types import Credentials

REFRESH_WITH_LEFT_S = 300.0
MIN_USE_S = 60.0
"""Credentials that live little longer than `REFRESH_WITH_LEFT_S` are still used for this long."""

REQUIRED_KEYS = ("access_key", "secret_key", "session_token")


def parse_credentials(fields: Mapping[str, Any], *, obtained_at: float, clock_offset_s: float = 0.0) -> Credentials:
    """Read the contract's `upload_credentials`, whose `REQUIRED_KEYS` were checked before.

    `obtained_at` is UNIX seconds by our clock, which the server's is ahead of by `clock_offset_s`: the expiry is
    given by the server's clock and kept by ours.
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
    """Return UNIX seconds of `expires_at` or `expiration` (ISO-8601), `None` when there is none that can be read.

    `Z` or an offset, with or without a fraction; a time without either is UTC.
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


def refresh_due_at(credentials: Credentials) -> float:
    """Return when (UNIX seconds) new credentials are to be asked for; infinity: only when storage refuses them.

    With five minutes of life left; at half the life of those that live no longer than that. Credentials that seem to
    have expired before they came tell of clocks that disagree, not of their life: storage's word counts then.
    """
    expires_at = credentials.expires_at
    if expires_at is None or expires_at <= credentials.obtained_at:
        return math.inf
    life_s = expires_at - credentials.obtained_at
    if life_s <= REFRESH_WITH_LEFT_S:
        return credentials.obtained_at + life_s / 2
    return max(expires_at - REFRESH_WITH_LEFT_S, credentials.obtained_at + MIN_USE_S)


def is_refresh_due(credentials: Credentials, now: float) -> bool:
    """Say whether `refresh_due_at` has come."""
    return now >= refresh_due_at(credentials)
