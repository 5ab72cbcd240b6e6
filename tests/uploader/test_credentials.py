import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel_uploader.backends.sentinel.responses import (
    parse_credentials,
    parse_expiry,
)
from sentinel_uploader.runs.types import REFRESH_WITH_LEFT_S, Credentials

KEYS = {"access_key": "a", "secret_key": "planted-secret", "session_token": "planted-session"}


def living(life_s: float | None, obtained_at: float = 1000.0) -> Credentials:
    expires_at = None if life_s is None else obtained_at + life_s
    return Credentials(**KEYS, expires_at=expires_at, obtained_at=obtained_at)


@pytest.mark.parametrize("key", ["expires_at", "expiration"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-02T03:04:05Z", 1767323045.0),
        ("2026-01-02T03:04:05z", 1767323045.0),
        ("2026-01-02T03:04:05+00:00", 1767323045.0),
        ("2026-01-02T05:04:05+02:00", 1767323045.0),
        ("2026-01-02T03:04:05.250Z", 1767323045.25),
        ("2026-01-02T03:04:05.250000+00:00", 1767323045.25),
        ("2026-01-02T03:04:05.123456789Z", 1767323045.123456),
        ("2026-01-02T03:04:05", 1767323045.0),
    ],
)
def test_expiry_is_read_in_every_form(key: str, text: str, expected: float) -> None:
    assert parse_expiry({key: text}) == expected


@pytest.mark.parametrize("fields", [{}, {"expires_at": None}, {"expires_at": "soon"}, {"expiration": 17}])
def test_expiry_that_is_missing_or_rubbish_is_unknown(fields: dict[str, Any]) -> None:
    assert parse_expiry(fields) is None


def test_expiration_counts_where_expires_at_is_empty() -> None:
    assert parse_expiry({"expires_at": None, "expiration": "1970-01-01T00:01:00Z"}) == 60.0


def test_credentials_are_parsed_and_never_shown() -> None:
    credentials = parse_credentials(
        {**KEYS, "region": "eu-west-1", "expires_at": "1970-01-01T01:00:00Z", "new": 1}, obtained_at=5.0
    )
    assert (credentials.region, credentials.expires_at, credentials.obtained_at) == ("eu-west-1", 3600.0, 5.0)
    assert "planted" not in repr(credentials) + str(credentials)
    assert parse_credentials(KEYS, obtained_at=5.0).region is None
    assert parse_credentials(KEYS, obtained_at=5.0).expires_at is None


def test_expiry_is_kept_by_our_clock_when_the_servers_is_off() -> None:
    fields = {**KEYS, "expires_at": "1970-01-01T02:00:00Z"}
    credentials = parse_credentials(fields, obtained_at=0.0, clock_offset_s=3600.0)
    assert credentials.expires_at == 3600.0


@pytest.mark.parametrize(
    ("life_s", "due_after_s"),
    [(3600, 3300), (900, 600), (600, 300), (360, 60), (310, 60), (300, 150), (60, 30), (6, 3), (None, math.inf)],
)
def test_refresh_is_due_five_minutes_before_the_end_or_at_half_of_a_short_life(
    life_s: float | None, due_after_s: float
) -> None:
    credentials = living(life_s)
    assert credentials.refresh_due_at == 1000.0 + due_after_s
    assert not credentials.is_refresh_due(1000.0 + min(due_after_s, 1e9) - 0.001)
    if math.isfinite(due_after_s):
        assert credentials.is_refresh_due(1000.0 + due_after_s)


def test_credentials_that_came_expired_are_used_until_storage_refuses_them() -> None:
    assert living(-100).refresh_due_at == math.inf
    assert living(0).refresh_due_at == math.inf


@given(st.floats(0.01, 1e6))
def test_refresh_is_never_due_at_once_nor_after_the_end(life_s: float) -> None:
    due_after_s = living(life_s, 0.0).refresh_due_at
    assert min(life_s / 2, 60.0) <= due_after_s < life_s
    assert due_after_s >= life_s - REFRESH_WITH_LEFT_S
