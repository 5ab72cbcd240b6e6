"""Objects as files below a local directory."""

import os
from urllib.parse import quote, unquote_to_bytes

from sentinel_protocol.common.atomic_file import write_atomically
from sentinel_uploader.runs.delivery_error import DeliveryError, RetryAction
from sentinel_uploader.runs.ports import StoreProbe
from sentinel_uploader.runs.types import Credentials
from sentinel_uploader.util.writable import write_error

_SCHEME = "file://"


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
