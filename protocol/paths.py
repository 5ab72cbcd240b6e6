"""Where files lie: the XDG base directories, created for this user alone."""

import contextlib
import os
import stat
import tempfile
from collections.abc import Mapping

from protocol.errors import UsageError

APPLICATION = "sentinel-stream"


def state_home(environ: Mapping[str, str]) -> str:
    """`$XDG_STATE_HOME/sentinel-stream`: spools and what collectors have not delivered yet."""
    return os.path.join(_base(environ, "XDG_STATE_HOME", ".local/state"), APPLICATION)


def data_home(environ: Mapping[str, str]) -> str:
    """`$XDG_DATA_HOME/sentinel-stream`: runs that were delivered to the local directory."""
    return os.path.join(_base(environ, "XDG_DATA_HOME", ".local/share"), APPLICATION)


def runtime_dir(environ: Mapping[str, str]) -> str:
    """`$XDG_RUNTIME_DIR/sentinel-stream`, else a directory of this user's under the temporary directory."""
    base = environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(base) and os.path.isdir(base):
        return os.path.join(base, APPLICATION)
    return os.path.join(tempfile.gettempdir(), f"{APPLICATION}-{os.getuid()}")


def make_private_dir(path: str) -> str:
    """Create the directory, and what is missing above it, with mode 0700 and return its path.

    Raises `UsageError` when it cannot be made or belongs to somebody else: a shared temporary directory
    is where another user could have put one first. Root may use a directory of another user's, but not there.
    """
    try:
        _make_dirs(path)
        owners = {os.lstat(path).st_uid, os.stat(path).st_uid}
        is_directory = stat.S_ISDIR(os.stat(path).st_mode)
        is_shared = bool(os.stat(os.path.dirname(os.path.abspath(path))).st_mode & stat.S_IWOTH)
    except OSError as error:
        raise UsageError(f"cannot create the directory {path}: {error.strerror}") from error
    if not is_directory:
        raise UsageError(f"{path} is not a directory")
    strangers = owners - {os.getuid()}
    if strangers and (os.getuid() != 0 or is_shared):
        raise UsageError(f"the directory {path} belongs to another user (uid {strangers.pop()})")
    return path


def _make_dirs(path: str) -> None:
    """`os.makedirs` gives only the last one its mode; the XDG specification wants all of them private."""
    if os.path.lexists(path):
        return
    parent = os.path.dirname(path.rstrip("/"))
    if parent:
        _make_dirs(parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)


def _base(environ: Mapping[str, str], variable: str, default: str) -> str:
    value = environ.get(variable, "")
    # The XDG specification: a relative path is invalid and to be ignored.
    if os.path.isabs(value):
        return value
    return os.path.join(os.path.expanduser("~"), default)
