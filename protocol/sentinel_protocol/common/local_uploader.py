"""Paths of a local uploader: the one that a collector starts for its user, and that the user's collectors share.

There is one for each target: runs for another target, or with another token, go through another local uploader.
"""

import os
from collections.abc import Mapping
from typing import NamedTuple

from sentinel_protocol.common.atomic_file import write_atomically
from sentinel_protocol.common.endpoints import MAX_UNIX_PATH_BYTES
from sentinel_protocol.common.hashing import sha256
from sentinel_protocol.common.paths import data_home, runtime_dir, socket_dir_error, state_home

TOKEN_VARIABLES = ("SENTINEL_API_TOKEN", "SENTINEL_API_KEY", "SENTINEL_API_TOKEN_FILE")
TARGET_VARIABLE = "SENTINEL_TARGET"
SENTINEL_TARGET = "sentinel:"
PATH_VARIABLES = (TOKEN_VARIABLES[-1], "HOME", "SSL_CERT_FILE", "SSL_CERT_DIR", "AWS_CA_BUNDLE")
"""Variables with paths that an uploader reads; relative ones start at the directory of the collector."""
_SOCKET_PATH_FILE = "socket"
_TARGET_VARIABLES = (TARGET_VARIABLE, "SENTINEL_API_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_SETTING_VARIABLES = (
    "SENTINEL_CALL_TIMEOUT", "SENTINEL_CLIENT_BURST", "SENTINEL_CLIENT_SPOOL_SHARE", "SENTINEL_HTTP",
    "SENTINEL_INSECURE", "SENTINEL_KEYS", "SENTINEL_LOG_FORMAT", "SENTINEL_MAX_CLIENT_CONNECTIONS",
    "SENTINEL_MAX_CLIENT_ROWS", "SENTINEL_MAX_CLIENT_RUNS", "SENTINEL_MAX_CONNECTIONS", "SENTINEL_MAX_MESSAGE",
    "SENTINEL_MAX_MESSAGE_ROWS", "SENTINEL_MAX_METADATA", "SENTINEL_MAX_NAME", "SENTINEL_MAX_RUN_KEY",
    "SENTINEL_MAX_SURPLUS_FRAMES", "SENTINEL_MAX_SURPLUS_MESSAGES", "SENTINEL_MAX_UNREAD", "SENTINEL_SPOOL_MAX",
    "SENTINEL_STALE_AFTER", "SENTINEL_UNHEALTHY_AFTER", "TRACKER_UPLOAD_INTERVAL",
)  # fmt: skip
LOCAL_UPLOADER_VARIABLES = frozenset(
    (
        *_SETTING_VARIABLES, *_TARGET_VARIABLES, *TOKEN_VARIABLES, *PATH_VARIABLES, "AWS_REGION", "AWS_DEFAULT_REGION",
        "http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
        "REQUEST_METHOD", "XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR", "TMPDIR", "PATH", "LANG", "LC_ALL",
        "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONNOUSERSITE", "PYTHONDONTWRITEBYTECODE",
    )
)  # fmt: skip
"""What a local uploader needs: its settings, and what its interpreter cannot start without.

The job's other variables are not its business: it serves all later jobs, and `/proc` would show them.
"""


class LocalUploaderPaths(NamedTuple):
    """Socket, spool and log of a local uploader.

    `fallback_reason` says why the socket is not in the preferred directory; it is empty where it is.
    """

    socket_path: str
    spool_dir: str
    log_path: str
    fallback_reason: str = ""

    @property
    def url(self) -> str:
        """Its address."""
        return f"ipc://{self.socket_path}"


def default_target(environ: Mapping[str, str]) -> str:
    """Return the target in the environment, else the Sentinel API if there is a token, else a directory."""
    named = environ.get(TARGET_VARIABLE, "")
    if named:
        return named
    if any(environ.get(name) for name in TOKEN_VARIABLES):
        return SENTINEL_TARGET
    return os.path.join(data_home(environ), "runs")


def local_uploader_paths(environ: Mapping[str, str], target: str | None = None) -> LocalUploaderPaths:
    """Return the paths of the local uploader for `target`, or for the target in the environment."""
    environ, target = local_uploader_environ(environ), _absolute_target(target or default_target(environ))
    identity = [target]
    if target == SENTINEL_TARGET:
        identity += [f"{name}={environ.get(name, '')}" for name in _TARGET_VARIABLES[1:]]
        # A token file counts by its name: its content may be replaced.
        identity += [f"{name}={environ[name]}" for name in TOKEN_VARIABLES if environ.get(name)][:1]
    name = sha256("\0".join(identity).encode("utf-8", "surrogateescape")).hex()[:12]
    spools = spools_home(environ)
    spool_dir = os.path.join(spools, name)
    log_path = os.path.join(spools, f"{name}.log")
    socket_path = _read_socket_path(spool_dir)
    if socket_path:
        return LocalUploaderPaths(socket_path, spool_dir, log_path)
    socket_name = f"{name}.sock"
    runtime = runtime_dir(environ, socket_name)
    return LocalUploaderPaths(os.path.join(runtime.path, socket_name), spool_dir, log_path, runtime.fallback_reason)


def write_socket_path(spool_dir: str, socket_path: str) -> None:
    """Write the path of the spool owner's socket into the spool; raises `OSError`.

    A login, a cron job and a batch job of one user share the spool, but have different runtime and temporary
    directories.
    """
    write_atomically(os.path.join(spool_dir, _SOCKET_PATH_FILE), socket_path.encode(), durable=False)


def is_listening(socket_path: str) -> bool:
    """Whether a process of this user listens at a Unix socket; does not wait."""
    import socket

    from sentinel_protocol.common.unix_peer import peer_uid

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)
        try:
            probe.connect(socket_path)
            return peer_uid(probe) == os.getuid()
        except BlockingIOError:
            # A process listens, and its queue of connections is full.
            return os.stat(socket_path).st_uid == os.getuid()
        except (OSError, ValueError):
            return False


def _read_socket_path(spool_dir: str) -> str:
    """Return the path of the spool owner's socket, `""` if no process listens there."""
    try:
        with open(os.path.join(spool_dir, _SOCKET_PATH_FILE), encoding="utf-8") as file:
            path = file.read(MAX_UNIX_PATH_BYTES + 1)
    except (OSError, UnicodeDecodeError):
        return ""
    if not os.path.isabs(path) or socket_dir_error(*os.path.split(path)) or not is_listening(path):
        return ""
    return path


def local_uploader_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a local uploader.

    Its paths are absolute, because the uploader does not run in the job's directory. All variables that it does not
    need are removed, and those that change where Python finds its own modules.
    """
    changed = {name: value for name, value in environ.items() if name in LOCAL_UPLOADER_VARIABLES}
    for name in PATH_VARIABLES:
        if changed.get(name):
            changed[name] = os.path.abspath(changed[name])
    if changed.get(TARGET_VARIABLE):
        changed[TARGET_VARIABLE] = _absolute_target(changed[TARGET_VARIABLE])
    if changed.get("PYTHONPATH"):
        changed["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, changed["PYTHONPATH"].split(os.pathsep)))
    return changed


def _absolute_target(target: str) -> str:
    if "://" in target or target == SENTINEL_TARGET:
        return target
    return os.path.abspath(os.path.expanduser(target))


def spools_home(environ: Mapping[str, str]) -> str:
    """Return the directory of the spools of this user's local uploaders."""
    return os.path.join(state_home(environ), "spool")


def spool_dirs(environ: Mapping[str, str]) -> list[str]:
    """Return the spool directories of all of this user's local uploaders."""
    base = spools_home(environ)
    try:
        names = sorted(os.listdir(base))
    except FileNotFoundError:
        return []
    return [path for name in names if os.path.isdir(path := os.path.join(base, name))]
