"""A whole uploader in this process whose clock runs many times as fast: real spool, real sockets, hours in seconds."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fakes.process_harness import DEADLINE_S
from sentinel_protocol.common.clock import SystemClock
from sentinel_protocol.common.endpoints import parse_address
from sentinel_uploader.app.config import ServiceConfig
from sentinel_uploader.app.factory import make_backend
from sentinel_uploader.app.service import Service
from sentinel_uploader.runs.schedule import Policy


class HastyClock(SystemClock):
    """The machine's clocks, `speed` times as fast, and waits so many times as short."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._wall_s = super().now()
        self._monotonic_s = super().monotonic()

    def now(self) -> float:
        return self._wall_s + (super().now() - self._wall_s) * self._speed

    def monotonic(self) -> float:
        return self._monotonic_s + (super().monotonic() - self._monotonic_s) * self._speed

    def wait_for(self, event: threading.Event, timeout_s: float | None) -> bool:
        return super().wait_for(event, None if timeout_s is None else timeout_s / self._speed)


@contextmanager
def hasty_uploader(
    directory: Path, url: str, environ: Mapping[str, str], clock: HastyClock, *, upload_interval_s: float
) -> Iterator[Service]:
    """Serve at `url` for the API and storage that `environ` names; no run is ever stale."""
    target = make_backend({"target": None, "call_timeout": 30.0}, environ, clock)
    policy = Policy(
        upload_interval_s=upload_interval_s, stale_after_s=1e9, inline_limit_bytes=target.api.inline_limit_bytes
    )
    config = ServiceConfig(
        addresses=[parse_address(url, bind=True)],
        spool_dir=str(directory / "spool"),
        spool_max_bytes=64 << 20,
        policy=policy,
    )
    service = Service(config, target=target, clock=clock)
    thread = threading.Thread(target=service.run, name="hasty uploader")
    thread.start()
    try:
        yield service
    finally:
        # Twice: without delivering what is left.
        service.stop()
        service.stop()
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), "the uploader does not end"
