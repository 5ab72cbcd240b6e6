"""The person who looks after parked runs: an answer came that no repetition changes, and the server is well again."""

import subprocess
import threading
from collections.abc import Sequence

from fakes.threaded import Threaded

from chaos.processes import Uploader

_EVERY_S = 3.0


class Caretaker(Threaded):
    """Takes parked runs up again, in a thread, as long as the `with` lasts; `retried` counts them."""

    end_within_s = 600.0
    """It may be waiting for several commands, each of which has a minute."""

    def __init__(self, uploaders: Sequence[Uploader]) -> None:
        self._uploaders = uploaders
        self._stop = threading.Event()
        self.retried = 0

    def work(self) -> None:
        """Look after the runs every few seconds."""
        while not self._stop.wait(_EVERY_S):
            for uploader in self._uploaders:
                self._retry_parked(uploader)

    def end(self) -> None:
        """Look no more."""
        self._stop.set()

    def _retry_parked(self, uploader: Uploader) -> None:
        try:
            parked = [run["key"] for run in uploader.runs() if run["state"] == "parked"]
            for key in parked:
                self.retried += uploader.command("retry", key).returncode == 0
        except (AssertionError, subprocess.TimeoutExpired):
            # The spool's disk is full, or its uploader is killed at this very moment: a person tries again, too.
            return
