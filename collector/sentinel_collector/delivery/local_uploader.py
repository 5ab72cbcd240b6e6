"""Finds this user's own uploader, and starts one when none runs."""

import contextlib
import os
import select
import signal
from collections.abc import Callable, Mapping

from sentinel_collector.delivery.process_limits import is_limited, reset_limits
from sentinel_collector.procfs import STAT_STATE, read_file, read_stat
from sentinel_protocol.common.errors import UsageError
from sentinel_protocol.common.interpreter import module_words
from sentinel_protocol.common.local_uploader import LocalUploaderPaths, is_listening, local_uploader_environ
from sentinel_protocol.common.paths import make_private_dir, make_socket_dir

EXIT_WHEN_IDLE_S = 10.0
"""The uploader exits when everything is delivered and no collector has connected for this long."""
_FIRST_RETRY_S = 1.0
_MAX_RETRY_S = 30.0
_MAX_LOG_BYTES = 1 << 20
_LOCK_FILE = "lock"
"""Holds the number of the process that owns the spool."""
_END_PAUSES = 100
_END_PAUSE_MS = 2
_USAGE_ERROR = 2
"""Exit code of an uploader whose settings cannot be used."""
_STDERR = 2
_SHELL = "/bin/sh"
_EXEC_IN_ROOT_DIR = 'read -r _ && cd / && exec "$@" </dev/null'
"""The uploader outlives the job, whose directory must stay removable; posix_spawn cannot change the directory.

It waits for a line until the limits of its process are raised.
"""


class LocalUploaderSupervisor:
    """Keeps this user's own uploader running. Two starts at once are harmless: the spool's lock lets one run.

    `on_started` gets the pid of each uploader that is started: a child of this process, but not part of the job.
    """

    def __init__(
        self,
        paths: LocalUploaderPaths,
        *,
        environ: Mapping[str, str],
        warn: Callable[[str], None],
        on_started: Callable[[int], None],
    ) -> None:
        self._paths = paths
        self._environ = environ
        self._warn = warn
        self._on_started = on_started
        self._retry_s = _FIRST_RETRY_S
        self._due_at = 0.0
        self._children: list[int] = []
        self._exited_with_usage_error = False
        self._is_failing = False
        self._limits_checked = False
        self._log_offset: int | None = None
        """Offset in the log, which all uploaders append to, of the first line of an uploader that we started."""
        self._make_socket_dir()

    def ensure_running(self, now: float) -> None:
        """Start an uploader if none listens; cheap when called often. `now` is monotonic seconds."""
        if now < self._due_at:
            return
        self._due_at = now + self._retry_s
        self._reap()
        if is_listening(self._paths.socket_path) and not self._end_limited():
            self._retry_s = _FIRST_RETRY_S
            return
        if self._children:
            # It may still be starting, and a second one would find the spool locked.
            return
        self._retry_s = min(_MAX_RETRY_S, self._retry_s * 2)
        try:
            self._start()
            self._is_failing = False
        except (OSError, UsageError) as error:
            self._report_failure(error)

    @property
    def cannot_start(self) -> bool:
        """Whether an uploader cannot start because settings or directories are wrong."""
        self._reap()
        return self._is_failing or self._exited_with_usage_error

    def last_log_line(self) -> str:
        """Return the last line that an uploader started here has logged, empty when there is none."""
        if self._log_offset is None:
            return ""
        try:
            with open(self._paths.log_path, "rb") as file:
                file.seek(self._log_offset)
                lines = file.read()[-2000:].decode("utf-8", "replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""

    def _end_limited(self) -> bool:
        """End an uploader that an earlier job's hard limits would keep from its work; True when that was done.

        It may be killed at any moment: what it has acknowledged is in its spool.
        """
        if self._limits_checked:
            return False
        self._limits_checked = True
        with contextlib.suppress(OSError, ValueError):
            pid = int(read_file(os.path.join(self._paths.spool_dir, _LOCK_FILE), 32))
            # The number may be of another pid name space.
            words = read_file(f"/proc/{pid}/cmdline").split(b"\0")
            if os.fsencode(self._paths.url) in words and is_limited(pid):
                os.kill(pid, signal.SIGKILL)
                return _has_ended(pid)
        return False

    def _make_socket_dir(self) -> None:
        """Make the private directory before connecting, so that no other user can put a socket there."""
        try:
            make_socket_dir(os.path.dirname(self._paths.socket_path))
        except UsageError as error:
            self._report_failure(error)

    def _report_failure(self, error: Exception) -> None:
        if not self._is_failing:
            self._is_failing = True
            self._warn(f"cannot start an uploader: {error}; keeping the samples")

    def _start(self) -> None:
        make_socket_dir(os.path.dirname(self._paths.socket_path))
        make_private_dir(os.path.dirname(self._paths.log_path))
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        log = os.open(self._paths.log_path, flags, 0o600)
        try:
            if os.fstat(log).st_size > _MAX_LOG_BYTES:
                os.ftruncate(log, 0)
                self._log_offset = 0
            elif self._log_offset is None:
                self._log_offset = os.fstat(log).st_size
            pid = self._spawn(log)
        finally:
            os.close(log)
        self._children.append(pid)
        self._on_started(pid)

    def _spawn(self, log: int) -> int:
        command = [*module_words("sentinel_uploader", self._environ), "serve"]
        command += ["--bind", self._paths.url, "--spool", self._paths.spool_dir]
        command += ["--exit-when-idle", f"{EXIT_WHEN_IDLE_S:g}"]
        stdin, go = os.pipe()
        try:
            pid = self._spawn_waiting(command, stdin=stdin, log=log)
            reset_limits(pid)
            os.write(go, b"\n")
        finally:
            os.close(stdin)
            os.close(go)
        return pid

    def _spawn_waiting(self, command: list[str], *, stdin: int, log: int) -> int:
        return os.posix_spawn(
            _SHELL,
            [_SHELL, "-c", _EXEC_IN_ROOT_DIR, _SHELL, *command],
            local_uploader_environ(self._environ),
            file_actions=[
                (os.POSIX_SPAWN_DUP2, stdin, 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
                *((os.POSIX_SPAWN_CLOSE, fd) for fd in _inherited_fds()),
            ],
            # A session of its own: the terminal's signals must not reach the uploader.
            setsid=True,
            setsigmask=[],
            setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
        )

    def _reap(self) -> None:
        for pid in list(self._children):
            try:
                ended, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                ended, status = pid, 0
            if ended:
                self._children.remove(pid)
                self._exited_with_usage_error = os.waitstatus_to_exitcode(status) == _USAGE_ERROR


def _has_ended(pid: int) -> bool:
    for _ in range(_END_PAUSES):
        try:
            if read_stat(pid, STAT_STATE + 1)[STAT_STATE] in b"ZX":
                return True
        except (OSError, ValueError):
            return True
        select.poll().poll(_END_PAUSE_MS)
    return False


def _inherited_fds() -> list[int]:
    """Return inheritable descriptors beyond stderr: a reader of such a pipe must not wait for the uploader's end."""
    try:
        names = os.listdir("/dev/fd")
    except OSError:
        return []
    found = []
    for fd in (int(name) for name in names):
        with contextlib.suppress(OSError):
            if fd > _STDERR and os.get_inheritable(fd):
                found.append(fd)
    return found
