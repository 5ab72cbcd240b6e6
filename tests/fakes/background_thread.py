"""What runs in a thread of its own as long as a `with` lasts."""

import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class BackgroundThread(ABC):
    """`with` starts the thread and ends it; subclasses say what it does and how it is told to end."""

    end_within_s = 10.0
    """A thread that has not ended so long after it was told to fails its test."""

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.work, name=type(self).__name__)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        self._thread.join(self.end_within_s)
        assert not self._thread.is_alive(), f"the {self._thread.name} outlives its test"

    @abstractmethod
    def work(self) -> None:
        """Do the work, in the thread, until told to end."""

    @abstractmethod
    def end(self) -> None:
        """Make `work` return."""
