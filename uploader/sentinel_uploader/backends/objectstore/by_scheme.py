"""The object stores behind a Sentinel API, by the scheme of their URIs."""

import importlib
from collections.abc import Callable, Iterator, Mapping

from sentinel_protocol.common.clock import Clock
from sentinel_uploader.backends.http.client import HttpClient
from sentinel_uploader.runs.delivery_error import DeliveryError, RetryAction
from sentinel_uploader.runs.ports import ObjectStore, StoreProbe
from sentinel_uploader.runs.types import Credentials

REMOTE_STORES = {"s3": "sentinel_uploader.backends.objectstore.s3.store"}
"""Modules with `open_store(environ, clock, new_client)`, imported when a `StoresByScheme` is made.

`file` is not among them: an API must not name files of this machine.
"""


class StoresByScheme:
    """An `ObjectStore` that hands each URI to the store of its scheme; raises `UsageError` as their constructors do.

    `new_client` takes the `authority_variables` of `HttpClient`.
    """

    def __init__(self, environ: Mapping[str, str], clock: Clock, new_client: Callable[..., HttpClient]) -> None:
        self._stores: dict[str, ObjectStore] = {
            scheme: importlib.import_module(module).open_store(environ, clock, new_client)
            for scheme, module in REMOTE_STORES.items()
        }

    def backoff_key(self, uri: str) -> str:
        """Return the key of the URI's store."""
        return self._store(uri).backoff_key(uri)

    def put(self, uri: str, body: bytes, credentials: Credentials | None) -> None:
        """Store the object in the URI's store."""
        self._store(uri).put(uri, body, credentials)

    def probe(self, uri_prefix: str | None, region: str | None) -> Iterator[StoreProbe]:
        """Probe the store of the prefix, or all stores. An unknown scheme raises `DeliveryError`."""
        for store in self._stores.values() if uri_prefix is None else [self._store(uri_prefix)]:
            yield from store.probe(uri_prefix, region)

    def close(self) -> None:
        """Close all stores."""
        for store in self._stores.values():
            store.close()

    def _store(self, uri: str) -> ObjectStore:
        store = self._stores.get(uri.partition("://")[0])
        if store is None:
            known = ", ".join(f"{scheme}://" for scheme in self._stores)
            raise DeliveryError(f"PUT {uri!r}: not an {known} address", retry_action=RetryAction.RETRY_SLOW)
        return store
