"""`prctl(PR_SET_CHILD_SUBREAPER)`: daemons of the job become children of the collector, not of init."""

_PR_SET_CHILD_SUBREAPER = 36


def set_subreaper() -> bool:
    """Adopt the job's orphans (`prctl(2)`); False where the system cannot do that.

    Adopted orphans must be reaped: the waiter does it. Importing ctypes takes 3 ms, so call
    this after the job has been started. Earlier orphans go to init.
    """
    try:
        import ctypes

        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (ImportError, OSError, AttributeError):
        return False
    prctl.restype = ctypes.c_int
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    return bool(prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
