"""Directories of a user's files: the XDG base directories, created with mode 0700."""

import contextlib
import os
import pwd
import stat
from collections.abc import Mapping
from typing import NamedTuple

from sentinel_protocol.common.atomic_file import sync_directory
from sentinel_protocol.common.endpoints import MAX_UNIX_PATH_BYTES
from sentinel_protocol.common.errors import UsageError

APPLICATION = "sentinel-stream"
_TEMPORARY = ("/tmp", "/var/tmp")  # noqa: S108 -- a directory in it is checked before it is used
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def state_home(environ: Mapping[str, str]) -> str:
    """`$XDG_STATE_HOME/sentinel-stream`: spools, and undelivered samples of collectors."""
    return os.path.join(_base(environ, "XDG_STATE_HOME", ".local/state"), APPLICATION)


def data_home(environ: Mapping[str, str]) -> str:
    """`$XDG_DATA_HOME/sentinel-stream`: runs that were delivered to the local directory."""
    return os.path.join(_base(environ, "XDG_DATA_HOME", ".local/share"), APPLICATION)


class RuntimeDir(NamedTuple):
    """Directory of a user's sockets; `fallback_reason` says why the preferred ones were passed over."""

    path: str
    fallback_reason: str


def runtime_dir(environ: Mapping[str, str], socket_name: str) -> RuntimeDir:
    """Choose the directory of a socket: `$XDG_RUNTIME_DIR/sentinel-stream`, else one under a temporary directory, else
    one in the state directory.

    It is the first one in which the socket's path is short enough for `unix(7)` and that does not belong to another
    user. All commands of a user choose the same. It may not exist yet.
    """
    candidates = []
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    # Another user's is left alone: a directory of ours in it would be in that user's way.
    if os.path.isabs(runtime) and os.path.isdir(runtime) and os.stat(runtime).st_uid == os.getuid():
        candidates.append(os.path.join(runtime, APPLICATION))
    temporary = (environ.get("TMPDIR", ""), *_TEMPORARY)
    candidates += [os.path.join(base, f"{APPLICATION}-{os.getuid()}") for base in temporary if os.path.isabs(base)]
    # Others may have taken these names.
    candidates.append(os.path.join(state_home(environ), "run"))
    errors: list[str] = []
    for path in candidates:
        error = socket_dir_error(path, socket_name, state_dir=state_home(environ))
        if not error:
            return RuntimeDir(path, "; ".join(errors))
        errors.append(error)
    # `make_socket_dir` will raise this directory's error.
    return RuntimeDir(candidates[-1], "; ".join(errors))


def make_private_dir(path: str) -> str:
    """Create the directory and its missing parents with mode 0700; returns its path.

    Raises `UsageError` if it cannot be created or belongs to another user, who could have created it first in a shared
    temporary directory. Root may use other users' directories, except in shared ones.
    """
    try:
        _make_dirs(path)
        error = _directory_error(path)
    except OSError as cause:
        raise UsageError(f"cannot create the directory {path}: {cause.strerror}") from cause
    if error:
        raise UsageError(error)
    return path


def make_socket_dir(path: str) -> str:
    """`make_private_dir` for sockets: also refuses a directory in which others could replace the socket."""
    make_private_dir(path)
    if error := socket_dir_error(path, ""):
        raise UsageError(error)
    return path


def _directory_error(path: str) -> str:
    """Return why an existing directory cannot be used, `""` if it can; raises `OSError`."""
    is_shared = bool(os.stat(os.path.dirname(os.path.abspath(path))).st_mode & stat.S_IWOTH)
    # The link first: the kernel may refuse to follow another user's (`fs.protected_symlinks`).
    for stat_path in (os.lstat, os.stat):
        found = stat_path(path)
        if found.st_uid != os.getuid() and (os.getuid() != 0 or is_shared):
            return f"the directory {path} belongs to another user (uid {found.st_uid})"
    return "" if stat.S_ISDIR(found.st_mode) else f"{path} is not a directory"


def socket_dir_error(directory: str, name: str, *, state_dir: str = "") -> str:
    """Return why the socket `name` cannot be in the directory, `""` if it can.

    A directory in `state_dir` may be made with all its parents, another one only where its parent exists.
    """
    path = os.path.join(directory, name)
    if not path.isprintable():
        return f"{directory!r} holds characters that cannot be printed"
    if len(path.encode()) > MAX_UNIX_PATH_BYTES:
        return f"{path} is longer than the {MAX_UNIX_PATH_BYTES} bytes of a Unix socket's path"
    try:
        parent = os.path.dirname(directory)
        if parent == state_dir:
            parent = _existing_ancestor(parent)
        if os.path.isdir(parent):
            found = os.stat(parent)
            if found.st_uid not in (os.getuid(), 0):
                return f"the directory {parent} belongs to another user (uid {found.st_uid})"
            if found.st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
                return f"others may rename the directory {directory}: {parent} has no sticky bit"
        if not os.path.lexists(directory):
            is_usable = os.path.isdir(parent) and os.access(parent, os.W_OK | os.X_OK)
            return "" if is_usable else f"nothing can be created in {parent}"
        if error := _directory_error(directory):
            return error
        is_open = os.stat(directory).st_mode & _WRITABLE_BY_OTHERS
    except OSError as cause:
        return f"cannot use the directory {directory}: {cause.strerror}"
    return f"others may write to the directory {directory}: chmod 700 {directory}" if is_open else ""


def _make_dirs(path: str) -> None:
    """`os.makedirs` sets the mode of the last directory only; the XDG specification wants all of them private."""
    if os.path.lexists(path):
        return
    parent = os.path.dirname(path.rstrip("/"))
    if parent:
        _make_dirs(parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
        # The umask may have taken the owner's own rights.
        os.chmod(path, 0o700)
    # Files that are synced in a new directory are lost with the directory's name.
    with contextlib.suppress(OSError):
        sync_directory(parent or os.curdir)


def _base(environ: Mapping[str, str], variable: str, default: str) -> str:
    value = environ.get(variable, "")
    # The XDG specification says that a relative path is invalid and must be ignored.
    if os.path.isabs(value) and not _is_foreign(value):
        return value
    return os.path.join(_home(environ), default)


def _home(environ: Mapping[str, str]) -> str:
    """Return an absolute path, also without `$HOME` or a passwd entry (a container with an arbitrary user id).

    Another user's `$HOME` (`su`, `sudo -E`) is not used: its owner could redirect our files, and ours would be in its
    owner's way. Nor is one in which this user has no place: `/` (a daemon, a container), or a directory of root's.
    """
    try:
        own = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        own = ""
    for home in (environ.get("HOME", ""), own):
        if home and _has_place(path := os.path.abspath(home)):
            return path
    return os.path.join(_TEMPORARY[0], f"{APPLICATION}-{os.getuid()}")


def _has_place(home: str) -> bool:
    """Whether a home directory is this user's, or can be made. A full or read-only one is still the user's."""
    existing = _existing_ancestor(home)
    if existing == "/":
        return False
    try:
        owner = os.stat(existing).st_uid
    except OSError:
        return False
    return owner == os.getuid() or (owner == 0 and os.access(existing, os.W_OK | os.X_OK))


def _is_foreign(path: str) -> bool:
    """Whether a directory, or the first existing one above it, belongs to a user other than us and root."""
    try:
        return os.stat(_existing_ancestor(path)).st_uid not in (os.getuid(), 0)
    except OSError:
        return False


def _existing_ancestor(path: str) -> str:
    while not os.path.lexists(path) and path not in ("", "/"):
        path = os.path.dirname(path)
    return path or os.curdir
