"""Checks of the outside: the token, the API, storage, and the clocks."""

import hashlib
import os
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing

import msgspec

from sentinel_protocol.common.clock import Clock
from sentinel_protocol.common.errors import SentinelStreamError, UsageError
from sentinel_protocol.wire.sample import CSV_HEADER
from sentinel_uploader.backends.http.client import HttpResponse
from sentinel_uploader.backends.objectstore.by_scheme import StoresByScheme
from sentinel_uploader.backends.sentinel.backend import SentinelBackend
from sentinel_uploader.backends.sentinel.client import DEFAULT_BASE_URL, SentinelClient, run_path
from sentinel_uploader.backends.sentinel.token import TokenError, token_source
from sentinel_uploader.delivery.csv_batch import gzip_csv
from sentinel_uploader.doctor.findings import Finding, Severity, failed, ok, skipped, warning
from sentinel_uploader.doctor.machine_checks import ProbedRun
from sentinel_uploader.doctor.probe import ProbeContext
from sentinel_uploader.doctor.storage_checks import ask_for_credentials, check_storage
from sentinel_uploader.runs.delivery_error import DeliveryError
from sentinel_uploader.runs.ports import ObjectStore, object_uri
from sentinel_uploader.runs.types import FinishRequest, Registration, RunDescription

JOB_NAME = "sentinel-uploader doctor"


def check_backend(
    environ: Mapping[str, str], *, clock: Clock, put: bool, run: ProbedRun | None = None
) -> Iterator[Finding]:
    """Check API and storage without leaving anything there. With `put`, also create, store and finish one empty run.

    `run` is an open run of the spool, if there is one: the API gives credentials only to a run.
    """
    context = ProbeContext(environ, clock)
    source = token_source(environ)
    if source is None:
        yield failed("token", "no token is set", "set SENTINEL_API_TOKEN or SENTINEL_API_TOKEN_FILE")
        return
    try:
        token = source()
    except TokenError as error:
        yield failed("token", str(error), "write only the token to the file")
        return
    yield _token(environ)
    is_taken = False
    for finding in _api(context, token):
        is_taken = is_taken or (finding.subject == "api" and finding.severity is Severity.OK)
        yield finding
    credentials = None
    if is_taken and run is not None:
        with closing(SentinelBackend(source, _base_url(environ), clock, environ)) as api:
            finding, credentials = ask_for_credentials(context, api, run)
        yield finding
    elif is_taken and not put:
        yield skipped("credentials", "the API gives them only to a run, and no run is open: --put creates one")
    is_reachable = True
    for finding in check_storage(context, run, credentials):
        is_reachable = is_reachable and finding.severity is not Severity.FAILED
        yield finding
    if not put:
        yield skipped("put", "nothing was stored: --put registers, stores and finishes one empty run")
    elif is_taken and is_reachable:
        yield from _end_to_end_run(context, SentinelBackend(source, _base_url(environ), clock, environ))
    else:
        yield skipped("put", "no run is created, because the checks above failed")


def _token(environ: Mapping[str, str]) -> Finding:
    for variable in ("SENTINEL_API_TOKEN", "SENTINEL_API_KEY"):
        if environ.get(variable, "").strip():
            return ok("token", f"from {variable}")
    path = environ["SENTINEL_API_TOKEN_FILE"]
    if stat.S_IMODE(os.stat(path).st_mode) & 0o077:
        return warning("token", f"other users can read {path}", f"chmod 600 {path}")
    return ok("token", f"from the file {path}")


def _base_url(environ: Mapping[str, str]) -> str:
    return environ.get("SENTINEL_API_URL") or DEFAULT_BASE_URL


def _api(context: ProbeContext, token: str) -> Iterator[Finding]:
    """Ask for credentials of a run that does not exist: with a valid token, the API says that there is none."""
    remedy = "check SENTINEL_API_URL, the network, HTTPS_PROXY and SSL_CERT_FILE"
    try:
        with closing(context.new_client(("SSL_CERT_FILE",))) as client:
            endpoint = SentinelClient(
                _base_url(context.environ), clock=context.clock, environ=context.environ, client=client
            )
            sent_at = context.clock.now()
            path = run_path("probe", f"doctor-{uuid.uuid4().hex}", "refresh-credentials")
            answer = endpoint.post("probe", path, token, b"")
    except (UsageError, DeliveryError) as error:
        yield failed("api", str(error), remedy)
        return
    yield _api_answer(endpoint.base_url, answer)
    yield context.clock_finding(endpoint.base_url, answer.date(), sent_at)


def _api_answer(base_url: str, answer: HttpResponse) -> Finding:
    text = f"{base_url} answers HTTP {answer.status}"
    if answer.status in {401, 403}:
        return failed("api", f"{text}: it refuses the token", "replace the token")
    if answer.status in {408, 425, 429} or answer.status >= 500:
        return failed("api", text, "wait, or ask its operator; rows are kept meanwhile")
    if not _is_json(answer.body):
        return failed("api", f"{text}, and not as the Sentinel API does", "check SENTINEL_API_URL, with its path")
    return ok("api", f"{base_url} takes the token")


def _end_to_end_run(context: ProbeContext, api: SentinelBackend) -> Iterator[Finding]:
    store = StoresByScheme(context.environ, context.clock, context.new_client)
    run = RunDescription(
        uid=uuid.uuid4().hex,
        run_key=JOB_NAME,
        created_at=context.clock.now(),
        interval_s=1.0,
        metadata={"job_name": JOB_NAME},
        host={},
        cloud={},
    )
    try:
        registration = api.register(run)
        yield ok("register", f"run {registration.run_id}, to be stored under {registration.uri_prefix}")
        yield from _put_and_finish(context, api, store, run, registration)
    except SentinelStreamError as error:
        yield failed("register", str(error), "ask the operator of the API")
    finally:
        api.close()
        store.close()


def _put_and_finish(
    context: ProbeContext, api: SentinelBackend, store: ObjectStore, run: RunDescription, registration: Registration
) -> Iterator[Finding]:
    uri = object_uri(registration.uri_prefix, 1)
    body = gzip_csv(CSV_HEADER)
    try:
        store.put(uri, body, registration.credentials)
        is_stored = True
        digest = hashlib.sha256(body).hexdigest()[:12]
        yield ok("put", f"{uri}, {len(body)} bytes, sha256 {digest}…")
    except SentinelStreamError as error:
        is_stored = False
        yield failed(
            "put", str(error), "check the storage server's address, and the rights that the API's credentials give"
        )
    ending = FinishRequest(
        run=run,
        run_id=registration.run_id,
        exit_code=0 if is_stored else 1,
        status="finished" if is_stored else "failed",
        finished_at=context.clock.now(),
        data_uris=[uri] if is_stored else None,
        data_csv=None if is_stored else CSV_HEADER,
        rows=0,
        summary={},
    )
    try:
        api.finish(ending)
        yield ok("finish", f"run {registration.run_id} is closed")
    except SentinelStreamError as error:
        yield failed("finish", str(error), f"close run {registration.run_id} by hand")


def _is_json(body: bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(body or b"{}"), dict)
    except msgspec.DecodeError:
        return False
