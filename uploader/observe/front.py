"""Health and metrics of one uploader put behind an address."""

from collections.abc import Callable

from protocol.clock import Clock
from protocol.errors import UsageError
from uploader.counters import Counters
from uploader.observe.address import HttpAddress
from uploader.observe.health import Health
from uploader.observe.server import HttpServer, Page
from uploader.spool import Spool


def open_front(
    address: HttpAddress,
    *,
    health: Health,
    spool: Spool,
    counters: Counters,
    failing_destinations: Callable[[], int],
    connections: Callable[[], int],
    clock: Clock,
) -> HttpServer:
    """Take the address; raises `UsageError` when that cannot be done, or where `prometheus_client` is missing."""
    try:
        from uploader.observe.metrics import CONTENT_TYPE, Metrics
    except ImportError as error:
        raise UsageError(
            f"--http needs more than the base package ({error.name} is missing): "
            "pip install 'sentinel-stream[uploader]'"
        ) from error
    metrics = Metrics(
        counters=counters,
        spool=spool,
        backlog=health.backlog,
        failing_destinations=failing_destinations,
        connections=connections,
    )
    pages = {
        "/livez": lambda: _verdict(health.not_live()),
        "/readyz": lambda: _verdict(health.not_ready()),
        "/healthz": lambda: _verdict(health.not_healthy()),
        "/metrics": lambda: Page(200, metrics.text(), CONTENT_TYPE),
    }
    return HttpServer(address, pages, clock=clock)


def _verdict(wrong: str) -> Page:
    return Page(503, f"{wrong}\n".encode()) if wrong else Page(200, b"ok\n")
