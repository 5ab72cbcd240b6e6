"""Where files lie: the XDG base directories, created for this user alone."""

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
    """Create the directory with mode 0700 where it is missing and return its path.

    Raises `UsageError` when it cannot be made or belongs to somebody else: a shared temporary directory
    is where another user could have put one first.
    """
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        found = os.lstat(path) if not os.path.islink(path) else os.stat(path)
    except OSError as error:
        raise UsageError(f"cannot create the directory {path}: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise UsageError(f"{path} is not a directory")
    if found.st_uid != os.getuid() and os.getuid() != 0:
        raise UsageError(f"the directory {path} belongs to another user (uid {found.st_uid})")
    return path


def _base(environ: Mapping[str, str], variable: str, default: str) -> str:
    value = environ.get(variable, "")
    # The XDG specification: a relative path is invalid and to be ignored.
    if os.path.isabs(value):
        return value
    return os.path.join(os.path.expanduser("~"), default)
