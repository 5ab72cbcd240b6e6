"""Imports what only runs once the job does. Whoever wraps a short job waits for little else, so it is made quick."""

import gc
import sys

TYPE_CHECKING = False  # `typing` is loaded below, with the rest
if TYPE_CHECKING:
    from sentinel_collector.session import Recorder

_NOT_NEEDED = "typing_extensions"
"""msgspec takes it, where it is installed, for what `typing` has since Python 3.11; it brings `inspect`, `ast`, `dis`
and `tokenize` along: a fifth of all that is imported here, and 3 MiB."""


def import_session() -> "type[Recorder]":
    """Import the session with sensors, ZeroMQ and delivery. Main thread only, before any other thread.

    Nothing that is made while modules are imported is ever garbage: looking for it meanwhile, at each collection of a
    long run and three times more when the interpreter ends is most of what the collector of garbage would do.
    """
    was_there = _NOT_NEEDED in sys.modules
    was_enabled = gc.isenabled()
    gc.disable()
    if not was_there:
        # What the import system has for a module that must not be found.
        sys.modules[_NOT_NEEDED] = None  # type: ignore[assignment]  # typeshed does not know of that
    try:
        from sentinel_collector.session import Recorder
    finally:
        if not was_there:
            del sys.modules[_NOT_NEEDED]
        gc.freeze()
        if was_enabled:
            gc.enable()
    return Recorder
