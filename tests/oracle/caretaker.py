"""The person who looks after parked runs: an answer came that no repetition changes, and the server is well again."""

import subprocess
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from oracle.subjects import Uploader

_EVERY_S = 3.0


class Caretaker:
    """Takes parked runs up again, in a thread, as long as the `with` lasts; `retried` counts them."""

    def __init__(self, uploaders: Sequence[Uploader]) -> None:
        self._uploaders = uploaders
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look_after, name="caretaker")
        self.retried = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _look_after(self) -> None:
        while not self._stop.wait(_EVERY_S):
            for uploader in self._uploaders:
                self._retry_parked(uploader)

    def _retry_parked(self, uploader: Uploader) -> None:
        try:
            parked = [run["key"] for run in uploader.runs() if run["state"] == "parked"]
            for key in parked:
                self.retried += uploader.command("retry", key).returncode == 0
        except (AssertionError, subprocess.TimeoutExpired):
            # The spool's disk is full, or its uploader is killed at this very moment: a person tries again, too.
            return
