"""Who owns a spool directory: a lock that lasts as long as the process, and a look at it from outside."""

import contextlib
import fcntl
import os
import threading

from protocol.clock import Clock
from protocol.errors import UsageError
from protocol.paths import make_private_dir
from uploader.database import SpoolLockedError

_LOCK_NAME = "lock"
_LOCK_TRIES = 20
_LOCK_RETRY_S = 0.05


class SpoolLock:
    """Exclusive ownership of a spool directory for as long as the process lives."""

    def __init__(self, directory: str, *, clock: Clock) -> None:
        """Take the lock; raises `SpoolLockedError` that names the owner, `UsageError` where nothing can be written."""
        make_private_dir(directory)
        path = os.path.join(directory, _LOCK_NAME)
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UsageError(f"cannot write in the spool directory {directory}: {error.strerror}") from error
        try:
            self._take(directory, clock)
        except OSError as error:
            os.close(self._fd)
            raise UsageError(f"cannot lock the spool directory {directory}: {error.strerror}") from error
        except SpoolLockedError:
            os.close(self._fd)
            raise
        # The number is for people: a full disk must not keep an uploader from delivering what is there.
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock back."""
        os.close(self._fd)

    def _take(self, directory: str, clock: Clock) -> None:
        never = threading.Event()
        for _ in range(_LOCK_TRIES):
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # A command that looks whether anybody owns the spool holds the lock for a moment, too.
                clock.wait(never, _LOCK_RETRY_S)
            else:
                return
        owner = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip()
        raise SpoolLockedError(f"the spool {directory} is in use by another uploader (process {owner or 'unknown'})")


def owner_pid(directory: str) -> int | None:
    """Return the process that owns the spool, `None` when nobody does (0: it has not told its number yet)."""
    try:
        descriptor = os.open(os.path.join(directory, _LOCK_NAME), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"cannot look at the spool directory {directory}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        return int(text) if text.isdigit() else 0
    else:
        return None
    finally:
        os.close(descriptor)
