"""The lock of a spool directory, held as long as the process lives."""

import contextlib
import fcntl
import os
import threading

from sentinel_protocol.common.clock import Clock
from sentinel_protocol.common.errors import UsageError
from sentinel_protocol.common.paths import make_private_dir
from sentinel_uploader.spool.errors import SpoolLockedError

_LOCK_NAME = "lock"
_LOCK_TRIES = 20
_LOCK_RETRY_S = 0.05


class SpoolLock:
    """Exclusive ownership of a spool directory for as long as the process lives."""

    def __init__(self, directory: str, *, clock: Clock) -> None:
        """Take the lock; raises `SpoolLockedError` that names the owner, `UsageError` where nothing can be written."""
        self._directory = directory
        self._path = os.path.join(directory, _LOCK_NAME)
        self._is_new = not os.path.lexists(directory)
        try:
            self._fd = self._take(clock)
        except OSError as error:
            raise UsageError(f"cannot write in the spool directory {directory}: {error.strerror}") from error
        # The process id is for people. On a full disk, the uploader must still deliver what is there.
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Release the lock."""
        os.close(self._fd)

    def release_and_clean_up(self) -> None:
        """Release the lock, and remove the directory if this lock has made it and nothing else is in it."""
        with contextlib.suppress(OSError):
            if self._is_new and os.listdir(self._directory) == [_LOCK_NAME]:
                os.unlink(self._path)
                os.rmdir(self._directory)
        self.release()

    def _take(self, clock: Clock) -> int:
        never = threading.Event()
        owner = ""
        for _ in range(_LOCK_TRIES):
            make_private_dir(self._directory)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The previous owner may have removed the file between our open and our lock.
                if os.fstat(descriptor).st_nlink:
                    return descriptor
            except BlockingIOError:
                # A command that checks for an owner holds the lock for a moment, too.
                owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
            clock.wait_for(never, _LOCK_RETRY_S)
        raise SpoolLockedError(
            f"the spool {self._directory} is in use by another uploader (process {owner or 'unknown'})"
        )


def lock_owner_pid(directory: str) -> int | None:
    """Return the id of the process that owns the spool; `None`: there is none; 0: it has not written its id yet."""
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
