"""Limits of the local uploader's process: it serves all of a user's jobs, and must not keep those of the first."""

import contextlib
import os
import resource
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_LIMITS = ("AS", "CPU", "DATA", "FSIZE", "NPROC", "RSS", "STACK", "SIGPENDING", "NOFILE")
_DEFAULTS = {"NOFILE": (1 << 19, 1 << 19), "STACK": (8 << 20, resource.RLIM_INFINITY)}
_NEEDED = {"AS": 4 << 30, "DATA": 4 << 30, "FSIZE": 4 << 30, "CPU": 1 << 30, "NOFILE": 1024}
"""An uploader with less may fail: it keeps a spool of 2 GiB and more, and runs for as long as there are jobs."""


def reset_limits(pid: int) -> None:
    """Undo what the first job's surroundings have set for its uploader's process, as far as this user may.

    These are limits, scheduling, affinity, nice value and OOM score.
    """
    if not hasattr(resource, "prlimit"):
        return
    for name in _LIMITS:
        number = getattr(resource, f"RLIMIT_{name}")
        with contextlib.suppress(OSError, ValueError):
            hard = resource.prlimit(pid, number)[1]
            soft, most = _DEFAULTS.get(name, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            if name == "NOFILE" and not _is_less(hard, most):
                soft = most = hard
            try:
                resource.prlimit(pid, number, (soft, most))
            except (OSError, ValueError):
                # Only root may raise the hard limit.
                resource.prlimit(pid, number, (soft if _is_less(soft, hard) else hard, hard))
    undo_all: tuple[Callable[[], object], ...] = (
        lambda: os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0)),
        lambda: os.setpriority(os.PRIO_PROCESS, pid, 0),
        lambda: os.sched_setaffinity(pid, range(os.cpu_count() or 1)),
        lambda: _write(f"/proc/{pid}/oom_score_adj", b"0"),
    )
    for undo in undo_all:
        with contextlib.suppress(OSError):
            undo()


def is_limited(pid: int) -> bool:
    """Whether a process has less than an uploader needs, and one that this process starts would have more."""
    if not hasattr(resource, "prlimit"):
        return False
    for name, needed in _NEEDED.items():
        number = getattr(resource, f"RLIMIT_{name}")
        try:
            soft, _ = resource.prlimit(pid, number)
        except OSError:
            return False
        if _is_less(soft, needed) and _is_less(soft, resource.getrlimit(number)[1]):
            return True
    return False


def _is_less(limit: int, other: int) -> bool:
    return limit != resource.RLIM_INFINITY and (other == resource.RLIM_INFINITY or limit < other)


def _write(path: str, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, content)
    finally:
        os.close(fd)
