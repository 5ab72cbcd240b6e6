"""What the uploader needs of the outside: a Sentinel API and an object store."""

from typing import NamedTuple, Protocol

from sentinel_uploader.runs.types import Credentials, FinishRequest, FinishResult, Registration, RunDescription


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

    def finish(self, request: FinishRequest) -> FinishResult:
        """Close the run and return the backend's response; a repetition after success is success."""

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


class Backend(NamedTuple):
    """Where runs are delivered: the API and the store that belongs to it."""

    api: SentinelAPI
    store: ObjectStore
    needs_credentials: bool
