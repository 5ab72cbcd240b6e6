"""The interfaces of a backend: a Sentinel API and an object store."""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from sentinel_uploader.runs.types import Credentials, FinishRequest, FinishResult, Registration, RunDescription


class SentinelAPI(Protocol):
    """Registers and finishes runs. Each method makes one attempt and raises `DeliveryError` when it fails.

    Methods may block for the length of a request's timeout. Several threads call them at once.
    """

    backoff_key: str
    """Names the destination that all calls share: a base URL or a directory. Back-off applies to a destination."""
    inline_limit_bytes: int
    """The largest CSV that `finish` accepts inline, for a run without objects; 0: never inline."""

    def register(self, run: RunDescription) -> Registration:
        """Register the run. A repetition may create another run."""

    def refresh(self, run_id: str) -> Credentials | None:
        """Return new credentials, `None` where none are needed. May be repeated."""

    def finish(self, request: FinishRequest) -> FinishResult:
        """Close the run and return the backend's response. A repetition after success is a success."""

    def credentials_changed(self) -> bool:
        """Return True once when the token that was rejected has been replaced."""

    def close(self) -> None:
        """Close connections; calls in flight may fail."""


class StoreProbe(NamedTuple):
    """The result of a probe: the server of objects, and why it cannot be used."""

    url: str
    is_certain: bool
    """False: this is only the most likely server."""
    server_time: float | None = None
    """The server's clock (UNIX seconds), if it shows one."""
    error: str | None = None
    remedy: str = ""


class ObjectStore(Protocol):
    """Stores objects."""

    def backoff_key(self, uri: str) -> str:
        """Name the destination of the object: a bucket or a directory. Raises `DeliveryError` for a malformed `uri`."""

    def put(self, uri: str, body: bytes, credentials: Credentials | None) -> None:
        """Store the object durably under `uri`: one attempt, idempotent. Raises `DeliveryError`."""

    def probe(self, uri_prefix: str | None, region: str | None) -> Iterable[StoreProbe]:
        """Try the servers of a run's objects without storing any; `None`: of a run that is not known yet.

        May block for the length of a request's timeout. Never raises `DeliveryError`: the results tell.
        """

    def close(self) -> None:
        """Close connections; calls in flight may fail."""


class Backend(NamedTuple):
    """Where runs are delivered: an API and its object store."""

    api: SentinelAPI
    store: ObjectStore
    needs_credentials: bool


def object_uri(prefix: str, number: int) -> str:
    """Return the URI of a run's object `number` (from 1)."""
    return f"{prefix.rstrip('/')}/{number:04d}.csv.gz"
