"""What the uploader needs of the outside: a token, an API that takes it, storage, clocks that agree."""

import hashlib
import os
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import NamedTuple

import msgspec

from protocol.clock import Clock
from protocol.errors import SentinelStreamError, UsageError
from protocol.sample import CSV_HEADER
from uploader.batch import compress, object_uri
from uploader.doctor.findings import Finding, Verdict
from uploader.failures import DeliveryError
from uploader.http import Answer, HttpClient
from uploader.ports import Ending, Registration, RunDescription
from uploader.sentinel.endpoint import DEFAULT_BASE_URL, Endpoint, run_path
from uploader.sentinel.http_api import HttpSentinelAPI
from uploader.sentinel.token import TokenError, token_source
from uploader.storage.address import configured_endpoint
from uploader.storage.s3 import AUTHORITY_VARIABLES, S3Store

AGREEING_S = 5.0
"""The `Date` header has whole seconds, and the answer took a while."""
WRONG_S = 60.0
PATIENCE_S = 15.0
JOB_NAME = "sentinel-uploader doctor"


class _Place(NamedTuple):
    environ: Mapping[str, str]
    clock: Clock


def check_backend(environ: Mapping[str, str], *, clock: Clock, put: bool) -> Iterator[Finding]:
    """Ask API and storage without leaving anything there; with `put`, also take one empty run from start to end."""
    place = _Place(environ, clock)
    source = token_source(environ)
    if source is None:
        remedy = "set SENTINEL_API_TOKEN or SENTINEL_API_TOKEN_FILE"
        yield Finding(Verdict.FAILED, "token", "there is none", remedy)
        return
    try:
        token = source()
    except TokenError as error:
        yield Finding(Verdict.FAILED, "token", str(error), "write the token there, and nothing else")
        return
    yield _token(environ)
    is_taken = False
    for finding in _api(place, token):
        is_taken = is_taken or (finding.subject == "api" and finding.verdict is Verdict.OK)
        yield finding
    is_reachable = True
    for finding in _storage(place):
        is_reachable = is_reachable and finding.verdict is not Verdict.FAILED
        yield finding
    if not put:
        yield Finding(Verdict.SKIPPED, "put", "nothing was stored: --put registers, stores and finishes one empty run")
    elif is_taken and is_reachable:
        yield from _whole_life(place, HttpSentinelAPI(source, _base_url(environ), clock, environ))
    else:
        yield Finding(Verdict.SKIPPED, "put", "no run is begun that could not be stored")


def _token(environ: Mapping[str, str]) -> Finding:
    for variable in ("SENTINEL_API_TOKEN", "SENTINEL_API_KEY"):
        if environ.get(variable, "").strip():
            return Finding(Verdict.OK, "token", f"from {variable}")
    path = environ["SENTINEL_API_TOKEN_FILE"]
    if stat.S_IMODE(os.stat(path).st_mode) & 0o077:
        return Finding(Verdict.WARNING, "token", f"others can read {path}", f"chmod 600 {path}")
    return Finding(Verdict.OK, "token", f"from the file {path}")


def _base_url(environ: Mapping[str, str]) -> str:
    return environ.get("SENTINEL_API_URL") or DEFAULT_BASE_URL


def _api(place: _Place, token: str) -> Iterator[Finding]:
    """Ask for credentials of a run that cannot exist: whoever is let in hears that there is none."""
    remedy = "check SENTINEL_API_URL, the network, HTTPS_PROXY and SSL_CERT_FILE"
    try:
        with closing(_client(place, ("SSL_CERT_FILE",))) as client:
            endpoint = Endpoint(_base_url(place.environ), clock=place.clock, environ=place.environ, client=client)
            sent_at = place.clock.now()
            path = run_path("probe", f"doctor-{uuid.uuid4().hex}", "refresh-credentials")
            answer = endpoint.post("probe", path, token, b"")
    except (UsageError, DeliveryError) as error:
        yield Finding(Verdict.FAILED, "api", str(error), remedy)
        return
    yield _api_answer(endpoint.base_url, answer)
    yield _clock(endpoint.base_url, answer, sent_at, place.clock.now())


def _api_answer(base_url: str, answer: Answer) -> Finding:
    text = f"{base_url} answers HTTP {answer.status}"
    if answer.status in {401, 403}:
        return Finding(Verdict.FAILED, "api", f"{text}: it refuses the token", "replace the token")
    if answer.status in {408, 425, 429} or answer.status >= 500:
        return Finding(Verdict.FAILED, "api", text, "wait, or ask those who run it; rows are kept meanwhile")
    if not _is_json(answer.body):
        remedy = "check SENTINEL_API_URL, with its path"
        return Finding(Verdict.FAILED, "api", f"{text}, and not as the Sentinel API does", remedy)
    return Finding(Verdict.OK, "api", f"{base_url} takes the token")


def _storage(place: _Place) -> Iterator[Finding]:
    remedy = "check AWS_ENDPOINT_URL_S3, the network, HTTPS_PROXY and AWS_CA_BUNDLE"
    try:
        configured = configured_endpoint(place.environ)
        if configured is None:
            yield Finding(Verdict.SKIPPED, "storage", "its address is known to a run alone: --put tries it")
            return
        with closing(_client(place, AUTHORITY_VARIABLES)) as client:
            sent_at = place.clock.now()
            answer = client.request("HEAD", "HEAD", configured.origin, f"{configured.prefix}/", headers={})
    except (UsageError, DeliveryError) as error:
        yield Finding(Verdict.FAILED, "storage", str(error), remedy)
        return
    yield Finding(Verdict.OK, "storage", f"{configured.origin.url} answers")
    yield _clock(configured.origin.url, answer, sent_at, place.clock.now())


def _clock(url: str, answer: Answer, sent_at: float, received_at: float) -> Finding:
    server = answer.server_time()
    if server is None:
        return Finding(Verdict.SKIPPED, "clock", f"{url} does not tell the time")
    ahead_s = (sent_at + received_at) / 2 - server
    if abs(ahead_s) <= AGREEING_S:
        return Finding(Verdict.OK, "clock", f"agrees with that of {url}")
    text = f"{abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} that of {url}"
    verdict = Verdict.WARNING if abs(ahead_s) <= WRONG_S else Verdict.FAILED
    return Finding(verdict, "clock", text, "set this machine's clock; rows carry its time")


def _whole_life(place: _Place, api: HttpSentinelAPI) -> Iterator[Finding]:
    store = S3Store(environ=place.environ, clock=place.clock)
    run = RunDescription(
        uid=uuid.uuid4().hex,
        run_key=JOB_NAME,
        created_at=place.clock.now(),
        interval_s=1.0,
        metadata={"job_name": JOB_NAME},
        host={},
        cloud={},
    )
    try:
        registration = api.register(run)
        yield Finding(
            Verdict.OK, "register", f"run {registration.run_id}, to be stored under {registration.uri_prefix}"
        )
        yield from _put_and_finish(place, api, store, run, registration)
    except SentinelStreamError as error:
        yield Finding(Verdict.FAILED, "register", str(error), "ask those who run the API")
    finally:
        api.close()
        store.close()


def _put_and_finish(
    place: _Place, api: HttpSentinelAPI, store: S3Store, run: RunDescription, registration: Registration
) -> Iterator[Finding]:
    uri = object_uri(registration.uri_prefix, 1)
    body = compress(CSV_HEADER)
    try:
        store.put(uri, body, registration.credentials)
        is_stored = True
        digest = hashlib.sha256(body).hexdigest()[:12]
        yield Finding(Verdict.OK, "put", f"{uri}, {len(body)} bytes, sha256 {digest}…")
    except SentinelStreamError as error:
        is_stored = False
        remedy = "check AWS_ENDPOINT_URL_S3, and the rights that the API's credentials give"
        yield Finding(Verdict.FAILED, "put", str(error), remedy)
    ending = Ending(
        run=run,
        run_id=registration.run_id,
        exit_code=0 if is_stored else 1,
        status="finished" if is_stored else "failed",
        finished_at=place.clock.now(),
        data_uris=[uri] if is_stored else None,
        data_csv=None if is_stored else CSV_HEADER,
        facts={},
    )
    try:
        api.finish(ending)
        yield Finding(Verdict.OK, "finish", f"run {registration.run_id} is closed")
    except SentinelStreamError as error:
        yield Finding(Verdict.FAILED, "finish", str(error), f"close run {registration.run_id} by hand")


def _client(place: _Place, authority_variables: tuple[str, ...]) -> HttpClient:
    return HttpClient(
        environ=place.environ,
        clock=place.clock,
        authority_variables=authority_variables,
        read_timeout_s=PATIENCE_S,
        total_timeout_s=PATIENCE_S,
    )


def _is_json(body: bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(body or b"{}"), dict)
    except msgspec.DecodeError:
        return False
