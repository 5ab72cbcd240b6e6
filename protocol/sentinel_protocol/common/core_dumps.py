"""Keeps what is in memory out of core files: the token, credentials, keys. Also for processes started later."""

import contextlib
import resource

_NO_MEMORY = "0"


def disable_core_dumps() -> None:
    """Write no core file, and no memory into one that is made all the same.

    The limit alone does not hold where `core_pattern` is a pipe to a program, and may be raised from outside; of the
    filter (core(5), `/proc/pid/coredump_filter`) no bit is left, so such a file has registers and no memory. The
    process stays open to a debugger of the same user's, who could read the token's file as well.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    # Not every kernel has it.
    with contextlib.suppress(OSError), open("/proc/self/coredump_filter", "w", encoding="ascii") as file:
        file.write(_NO_MEMORY)
