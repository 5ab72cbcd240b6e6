"""Checks of credentials and storage that store nothing: for an open run, or as far as possible without one."""

from collections.abc import Iterator
from typing import NamedTuple

from sentinel_protocol.common.errors import UsageError
from sentinel_uploader.backends.http.client import Origin
from sentinel_uploader.backends.objectstore.s3 import address as s3
from sentinel_uploader.backends.objectstore.s3.store import AUTHORITY_VARIABLES, FALLBACK_REGION
from sentinel_uploader.backends.sentinel.backend import SentinelBackend
from sentinel_uploader.doctor.findings import Finding, Severity, failed, ok
from sentinel_uploader.doctor.machine_checks import OpenRun
from sentinel_uploader.doctor.probe import ProbeContext
from sentinel_uploader.runs.delivery_error import DeliveryError
from sentinel_uploader.runs.ports import object_uri
from sentinel_uploader.runs.types import Credentials


class _Server(NamedTuple):
    origin: Origin
    path: str
    is_certain: bool
    """Whether objects go there; otherwise it is the most likely server."""


def ask_for_credentials(
    context: ProbeContext, api: SentinelBackend, run: OpenRun
) -> tuple[Finding, Credentials | None]:
    """Request the run's credentials, as the uploader does; return a finding about them, and them."""
    subject = "credentials"
    try:
        given = api.refresh(run.run_id)
    except DeliveryError as error:
        remedy = "see `sentinel-uploader status`; ask the operator of the API"
        return failed(subject, f"of run {run.run_id}: {error}", remedy), None
    text = f"of run {run.run_id}"
    if given.region and s3.is_region(given.region):
        text += f", for {given.region}"
    if given.expires_at is None:
        return ok(subject, f"{text}, without an expiry"), given
    left_s = given.expires_at - context.clock.now()
    if left_s <= 0:
        remedy = "compare the clocks; ask the operator of the API"
        return failed(subject, f"{text}, were expired {-left_s:.0f} s before they arrived", remedy), given
    return ok(subject, f"{text}, new ones are good for {left_s / 60:.0f} minutes"), given


def check_storage(context: ProbeContext, run: OpenRun | None, credentials: Credentials | None) -> Iterator[Finding]:
    """Send one HEAD request to the storage server: checks its name, port, certificate and the proxy."""
    remedy = "check AWS_ENDPOINT_URL_S3, the network, HTTPS_PROXY and AWS_CA_BUNDLE"
    verdict = Severity.FAILED
    try:
        server = _server(context, run, credentials)
        if not server.is_certain:
            verdict = Severity.WARNING
        with context.client(AUTHORITY_VARIABLES) as client:
            sent_at = context.clock.now()
            answer = client.request("HEAD", "HEAD", server.origin, server.path, headers={})
    except (UsageError, DeliveryError) as error:
        yield Finding(verdict, "storage", str(error), remedy)
        return
    guess = "" if server.is_certain else "; a run's bucket may be elsewhere, --put tries it"
    yield ok("storage", f"{server.origin.url} answers{guess}")
    yield context.clock_finding(server.origin.url, answer, sent_at)


def _server(context: ProbeContext, run: OpenRun | None, credentials: Credentials | None) -> _Server:
    configured = s3.configured_endpoint(context.environ)
    if configured is not None:
        return _Server(configured.origin, f"{configured.prefix}/", is_certain=True)
    own = context.environ.get("AWS_REGION") or context.environ.get("AWS_DEFAULT_REGION") or ""
    region = (credentials.region if credentials is not None else None) or own
    if region and not s3.is_region(region):
        raise UsageError(f"{region!r} is not a region")
    if run is None:
        return _Server(s3.region_origin(region or FALLBACK_REGION), "/", is_certain=False)
    address = s3.parse_uri(object_uri(run.uri_prefix, 1))
    if not region:
        return _Server(*s3.bucket_location(address.bucket), is_certain=True)
    origin, _ = s3.object_location(address, region, None)
    return _Server(origin, "/", is_certain=True)
