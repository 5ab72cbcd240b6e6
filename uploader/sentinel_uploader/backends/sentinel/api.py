"""The three calls of the Sentinel API: one attempt each, which returns the server's response.

Everything else raises `SentinelAPIError`, also a missing connection (`status_code` is `None` then). Nothing is retried.
Without a `client`, the environment configures it (`SENTINEL_API_URL`, proxies, `SSL_CERT_FILE`).
"""

import gzip
import logging
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import msgspec

from sentinel_protocol.common.time_text import utc_text
from sentinel_uploader.backends.http.client import HttpResponse
from sentinel_uploader.backends.sentinel.client import SentinelClient, default_client, run_path
from sentinel_uploader.backends.sentinel.payload import registration
from sentinel_uploader.backends.sentinel.responses import (
    parse_object,
    require_credentials,
    require_text,
)

_log = logging.getLogger(__name__)

_MAX_TRIES_IN_A_CALL = 6
_OPTIONAL_AT_FINISH = frozenset({"finished_at"})


class RunStatus(StrEnum):
    """How a run ended."""

    finished = "finished"
    failed = "failed"


class DataSource(StrEnum):
    """How the run's rows are delivered."""

    s3 = "s3"
    inline = "inline"


def register_run(
    token: str,
    metadata: Mapping[str, Any] | None = None,
    *,
    host_info: Mapping[str, Any] | None = None,
    cloud_info: Mapping[str, Any] | None = None,
    client: SentinelClient | None = None,
) -> dict[str, Any]:
    """Register a run and return the response, which has `run_id`, `upload_uri_prefix` and `upload_credentials`.

    A field that the server rejects (422) is left out with a warning; tags are sent as a list first. Rejected fields are
    remembered for an hour.
    """
    client = client or default_client()
    body = client.unsupported_fields.strip(registration(metadata, host_info, cloud_info))
    for _ in range(_MAX_TRIES_IN_A_CALL):
        answer = client.post("register", "/runs", token, msgspec.json.encode(body))
        adapted = client.unsupported_fields.record_422(body, answer.body) if answer.status == 422 else None
        if adapted is None:
            break
        body = adapted
    response = _read("register", answer, token, client)
    require_text("register", answer.status, response, "run_id", "upload_uri_prefix")
    require_credentials("register", answer.status, response)
    return response


def refresh_credentials(token: str, run_id: str, *, client: SentinelClient | None = None) -> dict[str, Any]:
    """Request new storage credentials and return the response, which has `upload_credentials`."""
    client = client or default_client()
    answer = client.post("refresh", run_path("refresh", run_id, "refresh-credentials"), token, b"")
    response = _read("refresh", answer, token, client)
    require_credentials("refresh", answer.status, response)
    return response


def finish_run(
    token: str,
    run_id: str,
    *,
    exit_code: int | None = 0,
    run_status: RunStatus = RunStatus.finished,
    data_source: DataSource = DataSource.s3,
    data_uris: Sequence[str] | None = None,
    data_csv: str | bytes | None = None,
    finished_at: float | None = None,
    client: SentinelClient | None = None,
) -> dict[str, Any]:
    """Close a run and return the response, `{}` when it is empty.

    `data_uris` are all objects in order, for `s3`; `data_csv` is the header and all rows, for `inline`. An `exit_code`
    of `None` is unknown and left out. `finished_at` is UNIX seconds. Raises `ValueError`, before anything is sent, for
    missing data or data of the wrong kind.
    """
    body: dict[str, Any] = {"exit_code": exit_code, "run_status": RunStatus(run_status).value}
    body["finished_at"] = None if finished_at is None else utc_text(finished_at)
    body |= _data_fields(DataSource(data_source), data_uris, data_csv)
    client = client or default_client()
    body = {key: value for key, value in body.items() if value is not None}
    answer = _post_finish(client, run_path("finish", run_id, "finish"), token, body)
    return _read("finish", answer, token, client)


def _data_fields(source: DataSource, data_uris: Sequence[str] | None, data_csv: str | bytes | None) -> dict[str, Any]:
    if source is DataSource.s3:
        if data_csv is not None:
            raise ValueError("data_csv is for data_source=inline; data_source=s3 takes data_uris")
        if isinstance(data_uris, str) or not data_uris or not all(isinstance(uri, str) and uri for uri in data_uris):
            raise ValueError("data_source=s3 needs data_uris, a list of at least one address")
        return {"data_source": source.value, "data_uris": list(data_uris)}
    if data_uris is not None:
        raise ValueError("data_uris is for data_source=s3; data_source=inline takes data_csv")
    if not isinstance(data_csv, str | bytes) or not data_csv:
        raise ValueError("data_source=inline needs data_csv, a text with at least the header line")
    text = data_csv if isinstance(data_csv, str) else data_csv.decode()
    return {"data_source": source.value, "data_csv": text}


def _post_finish(client: SentinelClient, path: str, token: str, body: dict[str, Any]) -> HttpResponse:
    """Send the body: inline data gzipped first, then plain, and without optional fields that are rejected."""
    unsupported = client.unsupported_fields
    body = {
        key: value
        for key, value in body.items()
        if key not in _OPTIONAL_AT_FINISH or not unsupported.is_unsupported(key)
    }
    gzipped = "data_csv" in body and not unsupported.is_unsupported("Content-Encoding", "gzip")
    plain_is_trial = False
    while True:
        encoded = msgspec.json.encode(body)
        if gzipped:
            # Level 1: the body need not be small. No timestamp: a repetition is equal byte for byte.
            answer = client.post("finish", path, token, gzip.compress(encoded, 1, mtime=0), encoding="gzip")
        else:
            answer = client.post("finish", path, token, encoded)
        if answer.is_success and plain_is_trial:
            unsupported.remember("Content-Encoding", "gzip")
        refused = (
            unsupported.fields_in(answer.body) & body.keys() & _OPTIONAL_AT_FINISH if answer.status == 422 else set()
        )
        if refused:
            for field in refused:
                unsupported.remember(field)
            _log.warning("finish fields refused, sending without them: fields=%s", ",".join(sorted(refused)))
            body = {key: value for key, value in body.items() if key not in refused}
        elif gzipped and answer.status in {400, 415, 422}:
            gzipped, plain_is_trial = False, True
        else:
            return answer


def _read(call: str, answer: HttpResponse, token: str, client: SentinelClient) -> dict[str, Any]:
    return parse_object(call, answer, token=token, now=client.clock.now())
