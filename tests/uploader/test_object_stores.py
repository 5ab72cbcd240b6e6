"""The registry of object stores: each URI goes to the store of its scheme, and none to this machine's files."""

import functools
from contextlib import closing
from pathlib import Path

import pytest
from fakes.backend import Backend

from sentinel_protocol.common.clock import SystemClock
from sentinel_uploader.backends.http.client import HttpClient
from sentinel_uploader.backends.local import DirectoryStore, uri_of_path
from sentinel_uploader.backends.objectstore.by_scheme import StoresByScheme
from sentinel_uploader.runs.delivery_error import DeliveryError, RetryAction
from sentinel_uploader.runs.ports import StoreProbe


@pytest.mark.parametrize("uri", ["file:///tmp/x", "gs://bucket/key", "bucket/key", ""])
def test_scheme_that_no_store_has_is_an_error_that_is_retried(uri: str) -> None:
    clock = SystemClock()
    new_client = functools.partial(HttpClient, environ={}, clock=clock)
    with closing(StoresByScheme({}, clock, new_client)) as stores:
        for call in (
            stores.backoff_key,
            lambda uri: stores.put(uri, b"", None),
            lambda uri: [*stores.probe(uri, None)],
        ):
            with pytest.raises(DeliveryError, match="not an s3:// address") as caught:
                call(uri)
            assert caught.value.retry_action is RetryAction.RETRY_SLOW


def test_probe_names_the_server_and_stores_nothing() -> None:
    clock = SystemClock()
    with Backend() as backend:
        new_client = functools.partial(HttpClient, environ=backend.environ, clock=clock)
        with closing(StoresByScheme(backend.environ, clock, new_client)) as stores:
            (probe,) = stores.probe("s3://bucket/prefix", None)
            assert stores.backoff_key("s3://bucket/prefix/0001.csv.gz") == "s3://bucket"
        assert (probe.url, probe.is_certain, probe.error) == (backend.s3.url, True, None)
        assert probe.server_time == pytest.approx(clock.now(), abs=60)
        assert backend.s3.objects() == {}


def test_probe_of_a_directory(tmp_path: Path) -> None:
    store = DirectoryStore()
    uri = uri_of_path(str(tmp_path))
    assert [(probe.url, probe.error) for probe in store.probe(uri, None)] == [(uri, None)]
    assert list(tmp_path.iterdir()) == []
    (missing,) = store.probe(f"{uri}/none", None)
    assert (missing.error, bool(missing.remedy)) == ("No such file or directory", True)
    assert list[StoreProbe](store.probe(None, None)) == []
