"""Imports what only runs once the job does. A wrapped job that is short waits for little else, so it is made quick."""

import gc
import sys
from types import ModuleType

TYPE_CHECKING = False  # `typing` is loaded below, with the rest
if TYPE_CHECKING:
    from sentinel_collector.session import Recorder

_CODE_FLAGS = {
    "CO_OPTIMIZED": 1,
    "CO_NEWLOCALS": 2,
    "CO_VARARGS": 4,
    "CO_VARKEYWORDS": 8,
    "CO_GENERATOR": 32,
    "CO_COROUTINE": 128,
    "CO_ASYNC_GENERATOR": 512,
}
"""Of a code object (CPython's `Include/cpython/code.h`)."""


def import_session() -> "type[Recorder]":
    """Import the recorder with sensors, ZeroMQ and delivery. Main thread only, before any other thread starts.

    Nothing that is made while modules are imported is ever garbage. To look for it meanwhile, at each collection of a
    long run and three times when the interpreter ends is most of the garbage collector's work.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    replaced = {name: module for name, module in _replacements().items() if name not in sys.modules}
    sys.modules.update(replaced)  # type: ignore[arg-type]  # typeshed does not know of None
    try:
        from sentinel_collector.session import Recorder
    finally:
        for name in replaced:
            del sys.modules[name]
        gc.freeze()
        if was_enabled:
            gc.enable()
    return Recorder


def _replacements() -> dict[str, ModuleType | None]:
    """What dependencies import and can do without. It would be a third of all that is imported here, and 3 MiB.

    msgspec takes `typing_extensions`, where it is installed, for what `typing` has since Python 3.11; None says that
    there is no such module. pyzmq's wheel for Python 3.12 and later takes the flags of code objects from `inspect`.
    Both would bring `ast`, `dis` and `tokenize` along.
    """
    flags = ModuleType("inspect")
    vars(flags).update(_CODE_FLAGS)
    return {"typing_extensions": None, "inspect": flags}
