"""Files that the user names (`--output`, `--summary-json`): opened and written without blocking and without harm."""

import contextlib
import errno
import fcntl
import os
import select
import stat
import termios
from collections.abc import Iterable

_STREAM_NAMES = {"-": 1, "/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_DESCRIPTOR_DIRS = ("/dev/fd", "/proc/self/fd")
_WRITE_FLAGS = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_ATOMIC_WRITE_BYTES = select.PIPE_BUF
_MAX_PENDING_BYTES = 1 << 18
"""More than this is not kept for a reader that is too slow."""
_CLOSE_PAUSES = 50
_PAUSE_MS = 20
_CLOCK_TICK_S = 0.01
"""A file's time stamp may be this much earlier than its writing."""
_LOCKS_UNSUPPORTED = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
"""Errors of file systems without locks: another run is not kept out there."""


class RegularFile:
    """A regular file that no process of the job writes through an inherited descriptor: it may be truncated."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._end: int | None = None

    def truncate(self, size: int) -> None:
        """Cut the file; `write` goes on there."""
        os.ftruncate(self.fd, size)
        os.lseek(self.fd, size, os.SEEK_SET)
        self._end = size

    def write(self, content: bytes) -> None:
        """Append to what was written; raises `OSError`, and leaves none of `content` then."""
        if self._end is None or os.fstat(self.fd).st_size != self._end:
            raise OSError(errno.EBUSY, "another process has changed it")
        written = os.write(self.fd, content)
        if written != len(content):
            self.truncate(self._end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._end += written

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


class Stream:
    """A pipe, a terminal, a device, or a file that the job writes too. Lines are appended, and nothing blocks.

    `fd` may share its file description with the job, so its flags are left alone. `reader` is a read end that keeps
    a FIFO open until its reader comes.
    """

    def __init__(self, fd: int, reader: int | None = None) -> None:
        self._fd = fd
        self._reader = reader
        self._pending = b""
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def write(self, content: bytes) -> None:
        """Append whole lines, now or with a later call; raises `OSError`."""
        self._pending += content
        while self._pending and self._poll.poll(0) and self._write_some():
            pass
        if len(self._pending) > _MAX_PENDING_BYTES:
            self._pending = b""
            raise BlockingIOError(errno.EAGAIN, "its reader is too slow")

    def close(self) -> None:
        """Write the rest if its reader takes it within a second, and close; raises `OSError` if lines are lost."""
        pauses = _CLOSE_PAUSES
        try:
            while self._pending:
                if self._poll.poll(0) and self._write_some():
                    continue
                if not pauses:
                    raise BlockingIOError(errno.EAGAIN, "its reader is too slow")
                pauses -= 1
                select.poll().poll(_PAUSE_MS)
            if self._reader is not None:
                self._check_has_reader(self._reader)
        finally:
            for fd in (self._fd, self._reader):
                if fd is not None:
                    os.close(fd)

    def _write_some(self) -> bool:
        # Whole lines of at most PIPE_BUF bytes: the kernel does not mix them with the job's.
        end = self._pending.rfind(b"\n", 0, _ATOMIC_WRITE_BYTES) + 1
        try:
            written = os.write(self._fd, self._pending[: end or _ATOMIC_WRITE_BYTES])
        except BlockingIOError:
            return False
        self._pending = self._pending[written:]
        return True

    def _check_has_reader(self, reader: int) -> None:
        unread = int.from_bytes(fcntl.ioctl(reader, termios.FIONREAD, b"\0\0\0\0"), "little")
        os.close(reader)
        self._reader = None
        if unread and any(events & select.POLLERR for _, events in self._poll.poll(0)):
            raise BrokenPipeError(errno.EPIPE, "no process reads it")


class OutputTargets:
    """Opens the files that the user names. Made while this process has the descriptors that the job inherits.

    `-`, `/dev/stdout`, `/dev/fd/N` and files that one of these descriptors is open on share that descriptor.
    `started_at` is when the job started, UNIX seconds.
    """

    def __init__(self, paths: Iterable[str | None], *, started_at: float) -> None:
        self._shared: list[tuple[str, int | OSError]] = []
        self._started_at_ns = int((started_at - _CLOCK_TICK_S) * 1e9)
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._found: dict[str, tuple[int, int, int] | None] = {}
        for path in paths:
            if path is None:
                continue
            self._found[path] = _state(path)
            shared = _inherited_descriptor(path)
            if shared is not None:
                self._shared.append((path, shared))

    def open(self, path: str, *, replaces: bytes | None = None) -> RegularFile | Stream:
        """Open for writing; raises `OSError`. Missing directories are made, but none in `/`.

        Call it once for each path that was given. A regular file is locked (`flock`), not truncated. With `replaces`, a
        file that has changed since the job started is refused, because the job may have written it, unless it is empty
        or begins with these bytes.
        """
        for index, (name, shared) in enumerate(self._shared):
            if name == path:
                del self._shared[index]
                if isinstance(shared, OSError):
                    raise shared
                return Stream(_reopen(shared))
        state = _state(path)
        is_changed = state is not None and (state != self._found[path] or state[2] >= self._started_at_ns)
        if replaces is not None and is_changed and not _begins_with(path, replaces):
            raise FileExistsError(errno.EEXIST, "it was written while the job ran")
        previous = os.umask(self._umask)
        try:
            return _open_path(path)
        finally:
            os.umask(previous)


def _open_path(path: str) -> RegularFile | Stream:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        _make_parent(path)
        mode = stat.S_IFREG
    if stat.S_ISBLK(mode):
        raise OSError(errno.EINVAL, "it is a block device")
    reader = None
    if stat.S_ISFIFO(mode):
        with contextlib.suppress(PermissionError):
            reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(mode):
            return Stream(os.open(path, _WRITE_FLAGS), reader)
    except OSError as error:
        if reader is not None:
            os.close(reader)
        if error.errno == errno.ENXIO and stat.S_ISFIFO(mode):
            raise BrokenPipeError(errno.EPIPE, "no process reads it") from None
        raise
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EBUSY, "another process has changed it")
        _lock(fd)
    except OSError:
        os.close(fd)
        raise
    return RegularFile(fd)


def _reopen(fd: int) -> int:
    """Return a descriptor that does not block, if possible: a pipe or a terminal of the job opened anew."""
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    try:
        own = os.open(f"/proc/self/fd/{fd}", _WRITE_FLAGS)
    except OSError:
        return fd
    os.close(fd)
    return own


def _inherited_descriptor(path: str) -> int | OSError | None:
    """Return a copy of the inherited descriptor that `path` stands for, or an error where it cannot be written."""
    directory, _, number = os.path.normpath(path).rpartition("/")
    named = _STREAM_NAMES.get(path, int(number) if directory in _DESCRIPTOR_DIRS and number.isdecimal() else None)
    try:
        if named is not None:
            # The collector opens /dev/null, not inheritable, in place of a closed stream.
            if not os.get_inheritable(named):
                return OSError(errno.EBADF, "it is closed")
            return _copy(named) if _is_writable(named) else OSError(errno.EBADF, "the job reads it")
        found = os.stat(path)
        same = [fd for fd in _inheritable_descriptors() if os.path.samestat(os.fstat(fd), found)]
        for fd in same:
            if _is_writable(fd):
                return _copy(fd)
    except OSError as error:
        return error if named is not None else None
    return OSError(errno.EBUSY, "the job reads it") if same and stat.S_ISREG(found.st_mode) else None


def _copy(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def _is_writable(fd: int) -> bool:
    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY


def _inheritable_descriptors() -> list[int]:
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # The listing's own.
            if os.get_inheritable(fd):
                found.append(fd)
    return sorted(found)


def _state(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    # A FIFO or a device changes with every byte.
    return (found.st_ino, found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


def _begins_with(path: str, content: bytes) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(fd, len(content)) in (content, b"")
    finally:
        os.close(fd)


def _make_parent(path: str) -> None:
    directory = os.path.dirname(os.path.abspath(path))
    missing = ""
    while not os.path.lexists(directory):
        missing, directory = directory, os.path.dirname(directory)
    if missing and directory == "/":
        raise FileNotFoundError(errno.ENOENT, f"there is no directory {missing}")
    if missing:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)


def _lock(fd: int) -> None:
    """Lock the file until it is closed; raises `BlockingIOError` when another run has locked it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(errno.EWOULDBLOCK, "another run is writing it, this run's rows are not in it") from None
    except OSError as error:
        if error.errno not in _LOCKS_UNSUPPORTED:
            raise
