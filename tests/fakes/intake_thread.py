"""An intake in a thread of its own, on a real spool and a real socket."""

import threading
from collections.abc import Callable
from pathlib import Path

from fakes.scripted_backend import SteppedClock
from fakes.uploader_harness import SPOOL_BYTES, open_spool_at
from sentinel_uploader.intake.loop import Intake
from sentinel_uploader.limits import ClientLimits
from sentinel_uploader.runs.schedule import Policy
from sentinel_uploader.server.zmq_server import ZmqServer
from sentinel_uploader.spool.open_run import OpenRun
from sentinel_uploader.telemetry.counters import Counters


class IntakeThread:
    """Listens from the beginning until `close`."""

    woken: list[OpenRun]
    """The runs that a scheduler would look at now, each as often as it was named."""

    def __init__(
        self,
        spool_dir: Path,
        server: ZmqServer,
        *,
        max_bytes: int = SPOOL_BYTES,
        policy: Policy | None = None,
        counters: Counters | None = None,
        name_of: Callable[[bytes], str | None] = lambda _: None,
        limits: ClientLimits | None = None,
        known_clients: Callable[[], int] = lambda: 0,
    ) -> None:
        self.clock = SteppedClock()
        self.spool = open_spool_at(spool_dir, self.clock, max_bytes=max_bytes)
        self.server = server
        self.counters = counters or Counters()
        self.woken = []
        self.intake = Intake(
            server=server,
            spool=self.spool,
            clock=self.clock,
            wake_run=self.woken.append,
            policy=policy or Policy(),
            counters=self.counters,
            name_of=name_of,
            limits=limits,
            known_clients=known_clients,
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.intake.run, args=(self._stop,))
        self._thread.start()

    @property
    def url(self) -> str:
        """Where collectors connect."""
        return self.server.urls[0]

    def close(self) -> None:
        """Stop, and close spool and socket."""
        self._stop.set()
        self.server.wake()
        self._thread.join(20)
        assert not self._thread.is_alive(), "the intake outlives its test"
        self.spool.close()
        self.server.close()
