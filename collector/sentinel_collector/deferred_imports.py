"""Imports the recorder after the job has started. These imports dominate the overhead of a short job."""

import gc
import sys

TYPE_CHECKING = False  # `typing` is loaded below, with the rest
if TYPE_CHECKING:
    from sentinel_collector.session import Recorder

_NOT_NEEDED = "typing_extensions"
"""msgspec prefers it to `typing` where it is installed. It imports `inspect`, `ast`, `dis` and `tokenize`: a fifth of
all imports here, and 3 MiB."""


def import_session() -> "type[Recorder]":
    """Import the recorder with sensors, ZeroMQ and delivery. Main thread only, before any other thread starts.

    Objects made by imports are never garbage. They are frozen: to scan them during the imports, in each later
    collection and three times at exit would be most of the garbage collector's work.
    """
    was_there = _NOT_NEEDED in sys.modules
    was_enabled = gc.isenabled()
    gc.disable()
    if not was_there:
        # `None` makes an import of the module fail.
        sys.modules[_NOT_NEEDED] = None  # type: ignore[assignment]  # typeshed knows no None here
    try:
        from sentinel_collector.session import Recorder
    finally:
        if not was_there:
            del sys.modules[_NOT_NEEDED]
        gc.freeze()
        if was_enabled:
            gc.enable()
    return Recorder
