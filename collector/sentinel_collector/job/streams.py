"""The job's streams and descriptors, which the waiter and the recorder let go of once the job has them.

Imported before the job starts.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # `typing` itself would cost milliseconds of the job's start
if TYPE_CHECKING:
    from collections.abc import Iterable

_STREAM_NAMES = {"-": 1, "/dev/stdin": 0, "/dev/stdout": 1}
_FD_DIRECTORIES = ("/dev/fd", "/proc/self/fd")
_STDERR = 2
_MAX_FD = 4096
"""Descriptors up to this number are looked at where `/proc` does not list them."""


class JobStreams:
    """Descriptors that the job inherits. Made before the job is started; `release` lets go of them after that.

    `paths` are files that the recorder writes to: descriptors that they name, or that lead to them, are kept.
    """

    def __init__(self, paths: Iterable[str | None]) -> None:
        self._inherited = _inherited_fds()
        self._kept = _named_fds(paths, (0, 1, *self._inherited))
        try:
            self._devnull_fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            self._devnull_fd = -1

    def release(self) -> None:
        """Close the descriptors, and put /dev/null in the place of stdin and stdout; raises `OSError`.

        The other ends then see what the job does with its own. Our messages still go to stderr.
        """
        for fd in self._inherited:
            if fd not in self._kept:
                os.close(fd)
        devnull_fd = self._devnull_fd
        if devnull_fd < 0:
            # There was no descriptor left.
            os.close(0)
            devnull_fd = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1):
            if fd not in self._kept and fd != devnull_fd:
                os.dup2(devnull_fd, fd)


def _named_fds(paths: Iterable[str | None], candidates: Iterable[int]) -> set[int]:
    kept = set()
    for path in paths:
        if not path:
            continue
        directory, name = os.path.split(path)
        if path in _STREAM_NAMES:
            kept.add(_STREAM_NAMES[path])
        elif directory in _FD_DIRECTORIES and name.isdigit():
            kept.add(int(name))
        for fd in candidates:
            try:
                if os.path.samestat(os.stat(path), os.fstat(fd)):
                    kept.add(fd)
            except OSError:
                continue
    return kept


def _inherited_fds() -> list[int]:
    """Return the descriptors beyond stderr that the job inherits; ours are closed at its start."""
    try:
        candidates: Iterable[int] = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        candidates = range(_MAX_FD)
    found = []
    for fd in candidates:
        try:
            if fd > _STDERR and os.get_inheritable(fd):
                found.append(fd)
        except OSError:
            continue
    return found
