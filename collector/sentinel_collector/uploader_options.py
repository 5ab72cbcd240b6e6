"""Which uploaders a collector connects to, with which keys, and whether this user's own uploader can start.

Imported before the job starts.
"""

from __future__ import annotations

from sentinel_collector.settings import SETTINGS, pre_start_settings
from sentinel_protocol.common.api_url import API_URL_VARIABLE, api_url_error, redact_url
from sentinel_protocol.common.errors import UsageError
from sentinel_protocol.common.settings.sources import merge_file_collecting_errors

TYPE_CHECKING = False  # `typing` itself would cost milliseconds of the job's start
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from sentinel_protocol.common.endpoints import Address
    from sentinel_protocol.common.settings.sources import SettingsFile
    from sentinel_protocol.wire.curve_keys import ClientCurveKeys


def check_local_uploader_config(
    given: Mapping[str, Any], file: SettingsFile | None, environ: Mapping[str, str]
) -> None:
    """Raise `UsageError` when this user's own uploader could not start because of `SENTINEL_API_URL`."""
    url = environ.get(API_URL_VARIABLE)
    fault = api_url_error(url) if url else ""
    # The file and further modules are read for a wrong URL only: they cost time.
    if not url or not fault or pre_start_settings(given, file, "connect")["connect"]:
        return
    from sentinel_protocol.common.local_uploader import SENTINEL_TARGET, default_target

    if default_target(environ) == SENTINEL_TARGET:
        raise UsageError(f"{API_URL_VARIABLE} {redact_url(url)!r}: {fault}")


def settings_for_started_job(
    given: Mapping[str, Any], file: SettingsFile | None
) -> tuple[dict[str, Any], list[Address], list[UsageError]]:
    """Return all settings, the uploaders' addresses, and the errors of the file, whose wrong entries are ignored.

    A file with errors may have meant to leave out the command line, so the command line is left out.
    """
    settings, errors = merge_file_collecting_errors(SETTINGS, given, file)
    try:
        addresses = uploader_addresses(settings)
    except UsageError as error:
        assert file is not None  # flags and environment were checked before the job started
        errors.append(UsageError(f"{file.path}: {error}"))
        settings["connect"] = addresses = []
    if errors and "command_line" not in given:
        settings["command_line"] = False
    return settings, addresses, errors


def uploader_addresses(values: Mapping[str, Any]) -> list[Address]:
    """Return the checked addresses of the uploaders, none for this user's own; raises `UsageError`."""
    if not values.get("connect"):
        return []
    from sentinel_protocol.common.endpoints import parse_address, require_encryption

    addresses = [parse_address(url, bind=False) for url in values["connect"]]
    has_keys = bool(client_curve_keys(values))
    for address in addresses:
        require_encryption(address, has_keys=has_keys, insecure=bool(values.get("insecure")), role="connect")
    return addresses


def client_curve_keys(values: Mapping[str, Any]) -> dict[str, ClientCurveKeys]:
    """Return the keys by uploader URL, none where no keys are given; raises `UsageError`."""
    server_keys, key, urls = values.get("server_key") or [], values.get("key"), values.get("connect") or []
    if not urls or not (server_keys or key):
        return {}
    if not server_keys or not key:
        raise UsageError(
            "two keys are needed: --server-key (the uploader's public key) and --key (this collector's secret file)"
        )
    if len(server_keys) not in {1, len(urls)}:
        raise UsageError(
            f"{len(server_keys)} times --server-key for {len(urls)} times --connect: give one for all, or one each"
        )
    from sentinel_protocol.wire.curve_keys import ClientCurveKeys, load_server_key, read_key_pair

    own = read_key_pair(key)
    servers = [load_server_key(text) for text in server_keys]
    return {url: ClientCurveKeys(own, servers[index % len(servers)]) for index, url in enumerate(urls)}


def load_keys_without_core_dumps(values: Mapping[str, Any]) -> dict[str, ClientCurveKeys]:
    """Return the keys by uploader URL, and disable core files, which would hold them."""
    keys = client_curve_keys(values)
    if keys:
        # The job runs already and keeps its own limit.
        from sentinel_protocol.common.core_dumps import disable_core_dumps

        disable_core_dumps()
    return keys
