"""Composition root: makes the service's parts from the values of its settings."""

import functools
import os
from collections.abc import Mapping
from typing import Any

from sentinel_protocol.common.clock import Clock
from sentinel_protocol.common.endpoints import parse_address, require_encryption
from sentinel_protocol.common.errors import UsageError
from sentinel_protocol.common.local_uploader import SENTINEL_TARGET, default_target, local_uploader_paths
from sentinel_protocol.common.paths import make_socket_dir, state_home
from sentinel_uploader.app.config import ServiceConfig
from sentinel_uploader.backends.local import DirectoryStore, LocalRunBackend
from sentinel_uploader.limits import limits_of
from sentinel_uploader.runs.ports import Backend
from sentinel_uploader.runs.schedule import Policy
from sentinel_uploader.server.key_store import KeyStore


def service_config(
    values: Mapping[str, Any], environ: Mapping[str, str], target: Backend, *, listen: bool
) -> ServiceConfig:
    """Return the service's configuration; raises `UsageError` for settings that contradict each other."""
    place = local_uploader_paths(environ, values["target"])
    urls = values["bind"] if listen else []
    if listen and not urls:
        make_socket_dir(place.socket_path.rpartition("/")[0])
        urls = [place.url]
    addresses = [parse_address(url, bind=True) for url in urls]
    store = key_store(values["keys"], environ)
    has_keys = any(url.startswith("tcp:") for url in urls) and (bool(values["keys"]) or store.exists)
    for address in addresses:
        require_encryption(address, has_keys=has_keys, insecure=values["insecure"], role="bind")
    return ServiceConfig(
        addresses=addresses,
        keys=store if has_keys else None,
        limits=limits_of(values),
        spool_dir=spool_dir(values, environ),
        spool_max_bytes=values["spool_max"],
        policy=Policy(
            upload_interval_s=values["upload_interval"],
            stale_after_s=values["stale_after"],
            inline_limit_bytes=target.api.inline_limit_bytes,
        ),
        exit_when_idle_s=values["exit_when_idle"],
        http=values["http"] if listen else None,
        unhealthy_after_s=values["unhealthy_after"],
    )


def spool_dir(values: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    """Return the spool's directory: the one that was named, else this user's own for the target."""
    return values["spool"] or local_uploader_paths(environ, values["target"]).spool_dir


def key_store(named: str | None, environ: Mapping[str, str]) -> KeyStore:
    """Return the key store in the directory that was named, else in this user's own."""
    return KeyStore(named or os.path.join(state_home(environ), "keys"))


def make_backend(values: Mapping[str, Any], environ: Mapping[str, str], clock: Clock) -> Backend:
    """Return the backend to which runs are delivered; raises `UsageError` if it cannot be used."""
    where = values["target"] or default_target(environ)
    if where != SENTINEL_TARGET:
        if "://" in where:
            raise UsageError(f"--target {where!r}: expected {SENTINEL_TARGET} or a directory")
        return Backend(api=LocalRunBackend(where), store=DirectoryStore(), needs_credentials=False)
    try:
        # urllib3 and botocore come with an extra: a local directory needs neither.
        from sentinel_uploader.backends.http.client import TOTAL_TIMEOUT_S, HttpClient
        from sentinel_uploader.backends.objectstore.by_scheme import StoresByScheme
        from sentinel_uploader.backends.sentinel.backend import SentinelBackend
        from sentinel_uploader.backends.sentinel.client import DEFAULT_BASE_URL
        from sentinel_uploader.backends.sentinel.token import token_source
    except ImportError as error:
        raise UsageError(
            f"the Sentinel API needs more than the base package ({error.name} is missing): "
            "pip install 'sentinel-stream[uploader]'"
        ) from error
    token = token_source(environ)
    if token is None:
        raise UsageError("no API token: set SENTINEL_API_TOKEN or SENTINEL_API_TOKEN_FILE, or name a directory")
    timeout_s = values["call_timeout"]
    new_client = functools.partial(
        HttpClient,
        environ=environ,
        clock=clock,
        read_timeout_s=timeout_s,
        total_timeout_s=max(TOTAL_TIMEOUT_S, 2 * timeout_s),
    )
    base_url = environ.get("SENTINEL_API_URL") or DEFAULT_BASE_URL
    return Backend(
        api=SentinelBackend(token, base_url, clock, environ, client=new_client()),
        store=StoresByScheme(environ, clock, new_client),
        needs_credentials=True,
    )
