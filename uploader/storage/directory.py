"""Objects as files below a local directory."""

import os
from urllib.parse import quote, unquote, urlsplit

from uploader.failures import DeliveryError, Remedy
from uploader.files import write_atomically
from uploader.ports import Credentials


class DirectoryStore:
    """An `ObjectStore` for `file://` uris; a directory is one destination."""

    def destination(self, uri: str) -> str:
        """Return the uri of the directory that all runs share."""
        return uri.rpartition("/")[0]

    def put(self, uri: str, body: bytes, credentials: Credentials | None) -> None:  # noqa: ARG002 -- the port's
        """Write the file atomically and durably."""
        path = path_of_uri(uri)
        try:
            write_atomically(path, body)
        except OSError as error:
            raise DeliveryError(f"cannot write {path}: {error.strerror}", remedy=Remedy.RETRY) from error

    def close(self) -> None:
        """Nothing is held open."""


def uri_of_path(path: str) -> str:
    """Return the `file://` uri of an absolute path."""
    return "file://" + quote(os.path.abspath(path))


def path_of_uri(uri: str) -> str:
    """Return the path of a `file://` uri."""
    return unquote(urlsplit(uri).path)
