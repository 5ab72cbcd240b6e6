"""What the uploader needs of the outside: a Sentinel API and an object store."""

from typing import Any, Protocol

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


class SentinelAPI(Protocol):
    """The conversation about runs. Each method makes one attempt and raises `DeliveryError` when it fails.

    Methods may block for the length of a request's timeout and are called from several threads at once.
    """

    backoff_key: str
    """Names what is shared by all calls for the purpose of back-off (a base URL or a directory)."""
    inline_limit_bytes: int
    """Largest CSV that `finish` takes inline for a run without objects; 0: never inline."""

    def register(self, run: RunDescription) -> Registration:
        """Make the run known; a repetition may make another run."""

    def refresh(self, run_id: str) -> Credentials | None:
        """Return new credentials (`None` where none are needed); may be repeated."""

    def finish(self, request: FinishRequest) -> dict[str, Any]:
        """Close the run and return the backend's answer; a repetition after success is success."""

    def credentials_changed(self) -> bool:
        """Say once whether what the last call was refused for (a token) is another one now: worth a try at once."""

    def close(self) -> None:
        """Give back connections; calls under way may fail."""


class ObjectStore(Protocol):
    """Where objects go."""

    def backoff_key(self, uri: str) -> str:
        """Name what the object's store shares with others for the purpose of back-off (a bucket)."""

    def put(self, uri: str, body: bytes, credentials: Credentials | None) -> None:
        """Store the object durably under `uri`; one attempt, idempotent, raises `DeliveryError`."""

    def close(self) -> None:
        """Give back connections; calls under way may fail."""
