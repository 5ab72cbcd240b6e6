"""Keeps the token, credentials and keys out of core files, also of child processes."""

import contextlib
import resource

_NO_SEGMENTS = "0"


def disable_core_dumps() -> None:
    """Disable core files, and leave no memory in one that is written nevertheless.

    The limit alone is not enough: it does not apply if `core_pattern` is a pipe, and another process may raise it. With
    an empty filter (core(5), `/proc/pid/coredump_filter`) a core file has registers but no memory. A debugger of the
    same user can still attach; that user can read the token file as well.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    # Some kernels have no filter.
    with contextlib.suppress(OSError), open("/proc/self/coredump_filter", "w", encoding="ascii") as file:
        file.write(_NO_SEGMENTS)
