"""What health and metrics look like behind an address."""

from collections.abc import Callable

from uploader.counters import Counters
from uploader.observe.health import Health
from uploader.observe.metrics import CONTENT_TYPE, Metrics
from uploader.observe.server import Page, Pages
from uploader.spool import Spool


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
