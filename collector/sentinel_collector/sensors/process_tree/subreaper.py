"""`prctl(PR_SET_CHILD_SUBREAPER)`: daemons of the job become children of the collector, not of init."""

_PR_SET_CHILD_SUBREAPER = 36


def set_subreaper() -> bool:
    """Adopt what the job orphans (`prctl(2)`); False where the system cannot do that.

    Whoever adopts must reap: the process tree's sensor does it when told `adopt_orphans`. Importing ctypes costs 3 ms
    that the job would wait for, so call it after the job has been started: what is orphaned before goes to init.
    """
    try:
        import ctypes

        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (ImportError, OSError, AttributeError):
        return False
    prctl.restype = ctypes.c_int
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    return bool(prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
