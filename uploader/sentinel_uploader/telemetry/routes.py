"""What health and metrics look like behind an address."""

from collections.abc import Callable

from sentinel_uploader.spool.store import Spool
from sentinel_uploader.telemetry.counters import Counters
from sentinel_uploader.telemetry.health import Health
from sentinel_uploader.telemetry.http_server import Page, Pages
from sentinel_uploader.telemetry.prometheus import CONTENT_TYPE, Metrics


def pages_of(
    *,
    health: Health,
    spool: Spool,
    counters: Counters,
    failing_destinations: Callable[[], int],
    connections: Callable[[], int],
) -> Pages:
    """Return the pages of one uploader by their paths."""
    metrics = Metrics(
        counters=counters,
        spool=spool,
        backlog=health.backlog,
        failing_destinations=failing_destinations,
        connections=connections,
    )
    return {
        "/livez": lambda: _verdict(health.not_live()),
        "/readyz": lambda: _verdict(health.not_ready()),
        "/healthz": lambda: _verdict(health.not_healthy()),
        "/metrics": lambda: Page(200, metrics.text(), CONTENT_TYPE),
    }


def _verdict(wrong: str) -> Page:
    return Page(503, f"{wrong}\n".encode()) if wrong else Page(200, b"ok\n")
