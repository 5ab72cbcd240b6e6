"""Values that runs, backends and the spool exchange."""

from typing import Any

import msgspec


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """Temporary storage credentials; held in memory only, and never shown.

    `expires_at` is UNIX seconds or `None` (used until storage refuses them); `obtained_at` is when they came.
    """

    access_key: str
    secret_key: str
    session_token: str
    region: str | None = None
    expires_at: float | None = None
    obtained_at: float

    def __repr__(self) -> str:
        return f"Credentials(expires_at={self.expires_at})"


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `register`: where the run's objects go, and what with (`None`: no credentials needed)."""

    run_id: str
    uri_prefix: str
    credentials: Credentials | None


class RunDescription(msgspec.Struct, frozen=True, kw_only=True):
    """What `register` tells: the contract's fields, flat keys of each group, `None` values left out by the API.

    `uid` is the spool's own random name of the run (hex), `created_at` UNIX seconds.
    """

    uid: str
    run_key: str
    created_at: float
    interval_s: float
    metadata: dict[str, Any]
    host: dict[str, Any]
    cloud: dict[str, Any]


class FinishRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What `finish` tells. Exactly one of `data_uris` (in order) and `data_csv` (header and all rows) is set."""

    run: RunDescription
    run_id: str
    exit_code: int | None
    status: str
    """`finished` or `failed`."""
    finished_at: float
    """UNIX seconds."""
    data_uris: list[str] | None
    data_csv: bytes | None
    summary: dict[str, Any]
    """What the local target also writes down: statistics, rows, missing rows, why the run was closed."""
