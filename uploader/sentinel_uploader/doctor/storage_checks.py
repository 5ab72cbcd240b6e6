"""Checks of credentials and storage that store nothing: for an open run, or as far as possible without one."""

from collections.abc import Iterator
from contextlib import closing

from sentinel_protocol.common.errors import UsageError
from sentinel_uploader.backends.objectstore.by_scheme import StoresByScheme
from sentinel_uploader.backends.sentinel.backend import SentinelBackend
from sentinel_uploader.doctor.findings import Finding, Severity, failed, ok
from sentinel_uploader.doctor.machine_checks import ProbedRun
from sentinel_uploader.doctor.probe import ProbeContext
from sentinel_uploader.runs.delivery_error import DeliveryError
from sentinel_uploader.runs.ports import StoreProbe
from sentinel_uploader.runs.types import Credentials
from sentinel_uploader.util.untrusted_text import printable


def ask_for_credentials(
    context: ProbeContext, api: SentinelBackend, run: ProbedRun
) -> tuple[Finding, Credentials | None]:
    """Request the run's credentials, as the uploader does; return a finding about them, and them."""
    subject = "credentials"
    try:
        given = api.refresh(run.run_id)
    except DeliveryError as error:
        remedy = "see `sentinel-uploader status`; ask the operator of the API"
        return failed(subject, f"of run {run.run_id}: {error}", remedy), None
    text = f"of run {run.run_id}"
    if given.region:
        text += f", for {printable(given.region, 40)}"
    if given.expires_at is None:
        return ok(subject, f"{text}, without an expiry"), given
    left_s = given.expires_at - context.clock.now()
    if left_s <= 0:
        remedy = "compare the clocks; ask the operator of the API"
        return failed(subject, f"{text}, were expired {-left_s:.0f} s before they arrived", remedy), given
    return ok(subject, f"{text}, new ones are good for {left_s / 60:.0f} minutes"), given


def check_storage(context: ProbeContext, run: ProbedRun | None, credentials: Credentials | None) -> Iterator[Finding]:
    """Probe the object stores: that of the run, or all."""
    region = credentials.region if credentials is not None else None
    try:
        with closing(StoresByScheme(context.environ, context.clock, context.new_client)) as stores:
            sent_at = context.clock.now()
            for probe in stores.probe(run.uri_prefix if run else None, region):
                yield from _storage_findings(context, probe, sent_at)
                sent_at = context.clock.now()
    except (UsageError, DeliveryError) as error:
        yield failed("storage", str(error), "correct the environment, or the API's response")


def _storage_findings(context: ProbeContext, probe: StoreProbe, sent_at: float) -> Iterator[Finding]:
    if probe.error is not None:
        severity = Severity.FAILED if probe.is_certain else Severity.WARNING
        yield Finding(severity, "storage", probe.error, probe.remedy)
        return
    guess = "" if probe.is_certain else "; a run's bucket may be elsewhere, --put tries it"
    yield ok("storage", f"{probe.url} answers{guess}")
    yield context.clock_finding(probe.url, probe.server_time, sent_at)
