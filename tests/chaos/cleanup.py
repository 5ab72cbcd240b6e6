"""Acts as the operator: retries parked runs once their server works again."""

import subprocess
import threading
from collections.abc import Sequence

from fakes.background_thread import BackgroundThread

from chaos.processes import Uploader

_EVERY_S = 3.0


class Cleanup(BackgroundThread):
    """Retries parked runs, in a thread, as long as the `with` lasts; `retried` counts them."""

    end_within_s = 600.0
    """It may be waiting for several commands, each of which has a minute."""

    def __init__(self, uploaders: Sequence[Uploader]) -> None:
        self._uploaders = uploaders
        self._stop = threading.Event()
        self.retried = 0

    def work(self) -> None:
        """Retry parked runs every few seconds."""
        while not self._stop.wait(_EVERY_S):
            for uploader in self._uploaders:
                self._retry_parked(uploader)

    def end(self) -> None:
        """Stop."""
        self._stop.set()

    def _retry_parked(self, uploader: Uploader) -> None:
        try:
            parked = [run["key"] for run in uploader.runs() if run["state"] == "parked"]
            for key in parked:
                self.retried += uploader.command("retry", key).returncode == 0
        except (AssertionError, subprocess.TimeoutExpired):
            # The spool's disk is full, or its uploader is killed at this very moment: a person tries again, too.
            return
