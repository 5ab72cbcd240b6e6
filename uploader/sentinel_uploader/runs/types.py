"""Values that runs, backends and the spool exchange."""

import math
from typing import Any, NamedTuple

import msgspec

REFRESH_WITH_LEFT_S = 300.0
MIN_USE_S = 60.0
"""Credentials that live little longer than `REFRESH_WITH_LEFT_S` are used for at least this long."""
_MIN_AGE_S = 1.0


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """Temporary storage credentials; kept in memory only, and never shown. Times are UNIX seconds.

    Without `expires_at`, they are used until storage rejects them.
    """

    access_key: str
    secret_key: str
    session_token: str
    region: str | None = None
    expires_at: float | None = None
    obtained_at: float

    def __repr__(self) -> str:
        return f"Credentials(expires_at={self.expires_at})"

    @property
    def refresh_due_at(self) -> float:
        """When new credentials are requested (UNIX seconds); infinity: only when storage rejects these.

        Five minutes before they expire; halfway through when they live no longer than that. Credentials that are
        already expired when received indicate clock skew. They are used until storage rejects them.
        """
        if self.expires_at is None or self.expires_at <= self.obtained_at:
            return math.inf
        life_s = self.expires_at - self.obtained_at
        if life_s <= REFRESH_WITH_LEFT_S:
            return self.obtained_at + life_s / 2
        return max(self.expires_at - REFRESH_WITH_LEFT_S, self.obtained_at + MIN_USE_S)

    def is_refresh_due(self, now: float) -> bool:
        """Whether new credentials should be requested (`now`: UNIX seconds)."""
        return not self._is_new(now) and now >= self.refresh_due_at

    def has_expired(self, now: float) -> bool:
        """Whether these credentials cannot be used any more (`now`: UNIX seconds)."""
        if self.expires_at is None or self.expires_at <= self.obtained_at or self._is_new(now):
            return False
        return self.expires_at <= now

    def _is_new(self, now: float) -> bool:
        # New credentials are used at least once: otherwise one refresh would follow another.
        return abs(now - self.obtained_at) < _MIN_AGE_S


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """The response to `register`. `credentials` is `None` where storage needs none."""

    run_id: str
    uri_prefix: str
    credentials: Credentials | None


class RunDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What `register` sends. The groups have the contract's flat keys; the client leaves out `None` values.

    `uid` is the spool's random id of the run (hex), `created_at` UNIX seconds.
    """

    uid: str
    run_key: str
    created_at: float
    interval_s: float
    metadata: dict[str, Any]
    host: dict[str, Any]
    cloud: dict[str, Any]


class FinishRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What `finish` sends. Exactly one of `data_uris` (in order) and `data_csv` (header and all rows) is set."""

    run: RunDescription
    run_id: str
    exit_code: int | None
    status: str
    """`finished` or `failed`."""
    finished_at: float
    """UNIX seconds."""
    data_uris: list[str] | None
    data_csv: bytes | None
    rows: int
    summary: dict[str, Any]
    """For a local run's `run.json`: statistics, rows, missing rows, why the run was closed."""


class FinishResult(NamedTuple):
    """The backend's response to `finish`, and its complaint about the run's data (`None`: it has none)."""

    response: dict[str, Any]
    complaint: str | None = None
