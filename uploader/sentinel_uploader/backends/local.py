"""Runs that stay on this machine: each has a directory with a `run.json` and its objects."""

import json
import os
import time
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from sentinel_protocol.common.atomic_file import sync_directory, write_atomically
from sentinel_protocol.common.errors import UsageError
from sentinel_protocol.common.time_text import utc_text
from sentinel_uploader.runs.delivery_error import DeliveryError, RetryAction
from sentinel_uploader.runs.ports import StoreProbe
from sentinel_uploader.runs.types import Credentials, FinishRequest, FinishResult, Registration, RunDescription
from sentinel_uploader.util.writable import write_error

RUN_FILE = "run.json"
_SCHEME = "file://"


class LocalRunBackend:
    """A `SentinelAPI` that keeps runs in `DIR/RUN_ID/`. A run that is registered again gets the same directory."""

    inline_limit_bytes = 0

    def __init__(self, directory: str) -> None:
        """Raises `UsageError` when `directory` cannot be created or written."""
        self._directory = os.path.abspath(directory)
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot create the target directory {directory}: {error.strerror}") from error
        if not os.access(self._directory, os.W_OK | os.X_OK):
            raise UsageError(f"cannot write in the target directory {directory}")
        self.backoff_key = uri_of_path(self._directory)

    def register(self, run: RunDescription) -> Registration:
        """Create the run's directory and its first `run.json`."""
        run_id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(run.created_at))}-{run.uid[:8]}"
        path = os.path.join(self._directory, run_id)
        _write(path, _described(run, run_id) | {"state": "running"})
        return Registration(run_id=run_id, uri_prefix=uri_of_path(path), credentials=None)

    def refresh(self, run_id: str) -> Credentials | None:  # noqa: ARG002 -- the port's
        """Files need no credentials."""
        return None

    def finish(self, request: FinishRequest) -> FinishResult:
        """Write the final `run.json`."""
        path = os.path.join(self._directory, request.run_id)
        objects = [os.path.basename(path_of_uri(uri)) for uri in request.data_uris or []]
        description = _described(request.run, request.run_id) | {
            # The run may have reached the uploader long after it began.
            "started_at": utc_text(min(request.run.created_at, request.finished_at - _duration_s(request))),
            "status": request.status,
            "exit_code": request.exit_code,
            "finished_at": utc_text(request.finished_at),
            "objects": objects,
        }
        _write(path, description | request.summary)
        return FinishResult({"run": {"run_id": request.run_id, "run_status": request.status}, "directory": path})

    def credentials_changed(self) -> bool:
        """Nothing is rejected here."""
        return False

    def close(self) -> None:
        """Nothing is held open."""


class DirectoryStore:
    """An `ObjectStore` for `file://` URIs."""

    def backoff_key(self, uri: str) -> str:
        """Return the URI of the directory that all runs share: an object is `DIR/RUN_ID/NAME`."""
        return uri.rsplit("/", 2)[0]

    def put(self, uri: str, body: bytes, credentials: Credentials | None) -> None:  # noqa: ARG002 -- the port's
        """Write the file atomically and durably."""
        path = path_of_uri(uri)
        try:
            # The run's directory may have been removed: the run is delivered to its end all the same.
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            write_atomically(path, body)
        except OSError as error:
            raise DeliveryError(f"cannot write {path}: {error.strerror}", retry_action=RetryAction.RETRY) from error

    def probe(self, uri_prefix: str | None, region: str | None) -> list[StoreProbe]:  # noqa: ARG002 -- the port's
        """Try to create a file in the directory; there is nothing to try without one."""
        if uri_prefix is None:
            return []
        error = write_error(path_of_uri(uri_prefix))
        return [StoreProbe(uri_prefix, is_certain=True, error=error, remedy="give it to the user who runs this")]

    def close(self) -> None:
        """Nothing is held open."""


def uri_of_path(path: str) -> str:
    """Return the `file://` URI of a path."""
    return _SCHEME + quote(os.fsencode(os.path.abspath(path)))


def path_of_uri(uri: str) -> str:
    """Return the path of a `file://` URI."""
    return os.fsdecode(unquote_to_bytes(uri.removeprefix(_SCHEME)))


def _duration_s(ending: FinishRequest) -> float:
    """Return the length of all rows' intervals, 0 when it is unknown."""
    statistics = ending.summary.get("statistics")
    seconds = statistics.get("duration_seconds") if isinstance(statistics, dict) else None
    return float(seconds or 0.0)


def _described(run: RunDescription, run_id: str) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "run_key": run.run_key,
        "started_at": utc_text(run.created_at),
        "interval_seconds": run.interval_s,
        "metadata": run.metadata,
        "host": run.host,
        "cloud": run.cloud,
    }


def _write(directory: str, description: dict[str, Any]) -> None:
    path = os.path.join(directory, RUN_FILE)
    # Metadata was made JSON-safe when it was received: NaN here would be a defect.
    text = json.dumps(description, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        sync_directory(os.path.dirname(directory))
        write_atomically(path, text.encode())
    except OSError as error:
        raise DeliveryError(f"cannot write {path}: {error.strerror}", retry_action=RetryAction.RETRY) from error
