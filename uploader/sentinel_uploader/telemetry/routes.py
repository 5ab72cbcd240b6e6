"""The paths of the HTTP server: health checks and metrics."""

from sentinel_uploader.telemetry.health import Health
from sentinel_uploader.telemetry.http_server import Response, Routes
from sentinel_uploader.telemetry.prometheus import CONTENT_TYPE, Metrics


def build_routes(health: Health, metrics: Metrics) -> Routes:
    """Return the routes of one uploader."""
    return {
        "/livez": lambda: _health_response(health.liveness_error()),
        "/readyz": lambda: _health_response(health.readiness_error()),
        "/healthz": lambda: _health_response(health.health_error()),
        "/metrics": lambda: Response(200, metrics.text(), CONTENT_TYPE),
    }


def _health_response(wrong: str) -> Response:
    return Response(503, f"{wrong}\n".encode()) if wrong else Response(200, b"ok\n")
