"""Requests of the doctor: as the uploader makes them, with short timeouts. Each response also shows a clock."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sentinel_protocol.common.clock import Clock
from sentinel_uploader.backends.http.client import HttpClient
from sentinel_uploader.doctor.findings import Finding, Severity, ok, skipped

MAX_OK_SKEW_S = 5.0
"""The `Date` header has whole seconds, and the response took a while."""
MAX_WARNING_SKEW_S = 60.0
TIMEOUT_S = 15.0


class ProbeContext(NamedTuple):
    """The environment and the clock that the uploader would have."""

    environ: Mapping[str, str]
    clock: Clock

    def new_client(self, authority_variables: Sequence[str]) -> HttpClient:
        """Return an HTTP client; raises `UsageError` for a proxy or certificate authorities that cannot be used."""
        return HttpClient(
            environ=self.environ,
            clock=self.clock,
            authority_variables=authority_variables,
            read_timeout_s=TIMEOUT_S,
            total_timeout_s=TIMEOUT_S,
        )

    def clock_finding(self, url: str, server: float | None, sent_at: float) -> Finding:
        """Compare this machine's clock with that of a response that has just arrived. Times are UNIX seconds."""
        if server is None:
            return skipped("clock", f"{url} does not tell the time")
        ahead_s = (sent_at + self.clock.now()) / 2 - server
        if abs(ahead_s) <= MAX_OK_SKEW_S:
            return ok("clock", f"agrees with that of {url}")
        text = f"{abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} that of {url}"
        verdict = Severity.WARNING if abs(ahead_s) <= MAX_WARNING_SKEW_S else Severity.FAILED
        return Finding(verdict, "clock", text, "set this machine's clock; rows carry its time")
