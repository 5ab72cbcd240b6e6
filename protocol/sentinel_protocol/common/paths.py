"""Where files lie: the XDG base directories, created for this user alone."""

import contextlib
import os
import pwd
import stat
from collections.abc import Mapping
from typing import NamedTuple

from sentinel_protocol.common.endpoints import MAX_UNIX_PATH_BYTES
from sentinel_protocol.common.errors import UsageError

APPLICATION = "sentinel-stream"
_TEMPORARY = ("/tmp", "/var/tmp")  # noqa: S108 -- what is below is looked at before it is used
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def state_home(environ: Mapping[str, str]) -> str:
    """`$XDG_STATE_HOME/sentinel-stream`: spools and what collectors have not delivered yet."""
    return os.path.join(_base(environ, "XDG_STATE_HOME", ".local/state"), APPLICATION)


def data_home(environ: Mapping[str, str]) -> str:
    """`$XDG_DATA_HOME/sentinel-stream`: runs that were delivered to the local directory."""
    return os.path.join(_base(environ, "XDG_DATA_HOME", ".local/share"), APPLICATION)


class RuntimeDir(NamedTuple):
    """Directory of a user's sockets; `fallback_reason` says why the preferred ones were passed over."""

    path: str
    fallback_reason: str


def runtime_dir(environ: Mapping[str, str], socket_name: str) -> RuntimeDir:
    """Choose the directory of a socket: `$XDG_RUNTIME_DIR/sentinel-stream`, else one under a temporary directory.

    It is the first in which the socket's path is short enough for `unix(7)` and that is not somebody else's: all
    commands of a user come to the same. It need not exist yet.
    """
    places = []
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime) and os.path.isdir(runtime):
        places.append(os.path.join(runtime, APPLICATION))
    temporary = (environ.get("TMPDIR", ""), *_TEMPORARY)
    places += [os.path.join(base, f"{APPLICATION}-{os.getuid()}") for base in temporary if os.path.isabs(base)]
    remarks: list[str] = []
    for path in places:
        complaint = _socket_dir_error(path, socket_name)
        if not complaint:
            return RuntimeDir(path, "; ".join(remarks))
        remarks.append(complaint)
    # Whoever makes it will say what is wrong.
    return RuntimeDir(places[-1], "; ".join(remarks))


def make_private_dir(path: str) -> str:
    """Create the directory, and what is missing above it, with mode 0700 and return its path.

    Raises `UsageError` when it cannot be made or belongs to somebody else: a shared temporary directory
    is where another user could have put one first. Root may use a directory of another user's, but not there.
    """
    try:
        _make_dirs(path)
        complaint = _directory_error(path)
    except OSError as error:
        raise UsageError(f"cannot create the directory {path}: {error.strerror}") from error
    if complaint:
        raise UsageError(complaint)
    return path


def make_socket_dir(path: str) -> str:
    """`make_private_dir` for sockets: whoever could write there could put one of theirs in the place of ours."""
    make_private_dir(path)
    if complaint := _socket_dir_error(path, ""):
        raise UsageError(complaint)
    return path


def _directory_error(path: str) -> str:
    """Return what is wrong with a directory that is there, empty when nothing is; raises `OSError`."""
    is_shared = bool(os.stat(os.path.dirname(os.path.abspath(path))).st_mode & stat.S_IWOTH)
    # The link first: the kernel may refuse to follow a stranger's (`fs.protected_symlinks`).
    for look in (os.lstat, os.stat):
        found = look(path)
        if found.st_uid != os.getuid() and (os.getuid() != 0 or is_shared):
            return f"the directory {path} belongs to another user (uid {found.st_uid})"
    return "" if stat.S_ISDIR(found.st_mode) else f"{path} is not a directory"


def _socket_dir_error(directory: str, name: str) -> str:
    path = os.path.join(directory, name)
    if not path.isprintable():
        return f"{directory!r} holds characters that cannot be printed"
    if len(path.encode()) > MAX_UNIX_PATH_BYTES:
        return f"{path} is longer than the {MAX_UNIX_PATH_BYTES} bytes of a Unix socket's path"
    try:
        if not os.path.lexists(directory):
            parent = os.path.dirname(directory)
            is_usable = os.path.isdir(parent) and os.access(parent, os.W_OK | os.X_OK)
            return "" if is_usable else f"nothing can be created in {parent}"
        if complaint := _directory_error(directory):
            return complaint
        is_open = os.stat(directory).st_mode & _WRITABLE_BY_OTHERS
    except OSError as error:
        return f"cannot use the directory {directory}: {error.strerror}"
    return f"others may write to the directory {directory}: chmod 700 {directory}" if is_open else ""


def _make_dirs(path: str) -> None:
    """`os.makedirs` gives only the last one its mode; the XDG specification wants all of them private."""
    if os.path.lexists(path):
        return
    parent = os.path.dirname(path.rstrip("/"))
    if parent:
        _make_dirs(parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    _sync(parent or os.curdir)


def _sync(directory: str) -> None:
    """Make the names in it durable: what is synced in a new directory is lost with the directory's own name."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _base(environ: Mapping[str, str], variable: str, default: str) -> str:
    value = environ.get(variable, "")
    # The XDG specification: a relative path is invalid and to be ignored.
    if os.path.isabs(value):
        return value
    return os.path.join(_home(environ), default)


def _home(environ: Mapping[str, str]) -> str:
    """Return an absolute path also for a user without `$HOME`, or without an entry (a container with any user id)."""
    home = environ.get("HOME", "")
    if not home:
        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            home = os.path.join(_TEMPORARY[0], f"{APPLICATION}-{os.getuid()}")
    return os.path.abspath(home)
