"""The wrapped job: its start, the signals sent to it, and its exit code.

Imported before the job starts: only what the interpreter, `argparse` and `signal` have loaded anyway.
"""

from __future__ import annotations

import errno
import os
import signal

from sentinel_collector.job.signals import SignalPolicy
from sentinel_collector.procfs import STAT_PARENT, read_stat
from sentinel_protocol.common.errors import SentinelStreamError

TYPE_CHECKING = False  # `typing` itself would cost milliseconds of the job's start
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from resource import struct_rusage

    from sentinel_collector.job.signals import Action, BlockedSignals, ReceivedSignal, Signals

NOT_FOUND = 127
NOT_EXECUTABLE = 126
SIGNAL_BASE = 128
"""Exit code of a job that signal N killed: 128 + N, as in shells."""

_HARMLESS_BEFORE_START = (signal.SIGCHLD, signal.SIGWINCH)


class JobStartError(SentinelStreamError):
    """The job could not be started. `exit_code` is a shell's: 127 not found, 126 not executable.

    It is 128 + N when signal N came before the job existed. With `lacks_process` there is no process for it.
    """

    def __init__(self, text: str, *, exit_code: int, lacks_process: bool = False) -> None:
        super().__init__(text)
        self.exit_code = exit_code
        self.lacks_process = lacks_process


class Job:
    """A direct child process. It stays a zombie until `reap`, so its pid is not reused.

    `exit_code` is `None` until then.
    """

    started_pid = 0
    """The job of this process, 0 before its start."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.exit_code: int | None = None
        self._usage: struct_rusage | None = None
        Job.started_pid = pid
        self._policy = SignalPolicy(self.contains)

    @classmethod
    def spawn(cls, argv: Sequence[str], environ: Mapping[str, str], signals: Signals | BlockedSignals) -> Job:
        """Start `argv`, looked up in our own `PATH`. Raises `JobStartError`.

        The job gets our process group, standard streams and inherited descriptors, and the signal mask and ignored
        signals that we were started with. It may have ended when this returns.
        """
        # The terminal sent these to a process group without the job: the job would not get them.
        early = [one.signum for one in signals.wait(0) if one.signum not in _HARMLESS_BEFORE_START]
        if early:
            name = _signal_name(early[0])
            raise JobStartError(f"{argv[0]}: not started, {name} came first", exit_code=SIGNAL_BASE + early[0])
        if not argv[0]:  # Python's own error has another text
            raise JobStartError("'': command not found", exit_code=NOT_FOUND)
        job_environ = _as_inherited(environ)
        try:
            return cls(_spawn(argv[0], argv, job_environ, signals))
        except OSError as error:
            script = _script_without_interpreter(argv[0]) if error.errno == errno.ENOEXEC else None
            if script is None:
                raise _start_error(argv[0], error) from error
        return cls(_spawn("/bin/sh", ["/bin/sh", script, *argv[1:]], job_environ, signals))

    def contains(self, pid: int) -> bool:
        """Whether `pid` is the job or a descendant; False when the process is gone or there is no `/proc`."""
        return ancestors_include(pid, self.pid, os.getpid())

    def decide(self, received: ReceivedSignal) -> Action:
        """Return the reaction to a signal while the job runs."""
        return self._policy.decide(received)

    def forward(self, signum: int) -> bool:
        """Send the signal to the job; False when it was reaped or runs as another user (`sudo`)."""
        if self._usage is not None:  # the pid may be reused
            return False
        try:
            os.kill(self.pid, signum)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def has_ended(self) -> bool:
        """Whether the job has ended (a stopped job has not). It stays a zombie, so `/proc` still has its CPU times.

        Without `waitid` (macOS before Python 3.13) the job is reaped here.
        """
        if self._usage is not None:
            return True
        if hasattr(os, "waitid"):
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        return self._wait(os.WNOHANG)

    def poll(self) -> bool:
        """Reap the job if it has ended; return whether it has."""
        return self._usage is not None or self._wait(os.WNOHANG)

    def reap(self) -> struct_rusage:
        """Wait for the job's end, set `exit_code`, and return the resource usage of job and waited-for children."""
        while self._usage is None:
            self._wait(0)
        return self._usage

    def _wait(self, options: int) -> bool:
        pid, status, usage = os.wait4(self.pid, options)
        if pid == 0:
            return False
        code = os.waitstatus_to_exitcode(status)
        self.exit_code = code if code >= 0 else SIGNAL_BASE - code
        self._usage = usage
        return True


def _spawn(path: str, argv: Sequence[str], environ: Mapping[str, str], signals: Signals | BlockedSignals) -> int:
    try:
        pipe = os.pipe()
    except OSError:
        # posix_spawn needs no descriptor. It ignores signals 32 and 33 in the child, and cannot ignore SIGCHLD.
        mask, defaults = signals.original_mask, signals.reset_in_children
        return os.posix_spawnp(path, tuple(argv), environ, setsigmask=mask, setsigdef=defaults)
    return _fork_and_exec(path, argv, environ, signals, pipe)


def _fork_and_exec(
    path: str,
    argv: Sequence[str],
    environ: Mapping[str, str],
    signals: Signals | BlockedSignals,
    pipe: tuple[int, int],
) -> int:
    """Start a program with our initial signal state; raises `OSError` when it cannot be executed."""
    read_fd, write_fd = pipe
    try:
        pid = os.fork()
        if not pid:
            _exec(path, argv, environ, signals, write_fd)
        os.close(write_fd)
        write_fd = -1
        # An exec closes the child's end.
        error = os.read(read_fd, 16)
    finally:
        os.close(read_fd)
        if write_fd >= 0:
            os.close(write_fd)
    if error:
        os.waitpid(pid, 0)
        raise OSError(int(error), os.strerror(int(error)), path)
    return pid


def _exec(
    path: str, argv: Sequence[str], environ: Mapping[str, str], signals: Signals | BlockedSignals, error_fd: int
) -> None:
    """Become the program; never returns."""
    try:
        restore_signals(signals.original_mask, signals.reset_in_children, ignores_sigchld=signals.ignores_sigchld)
        os.execvpe(path, list(argv), environ)  # noqa: S606 -- the job
    except OSError as error:
        os.write(error_fd, b"%d" % (error.errno or errno.EINVAL))
    except BaseException:  # noqa: BLE001 -- nothing of the parent may run in this process
        os.write(error_fd, b"%d" % errno.ENOMEM)
    finally:
        os._exit(NOT_FOUND)


def restore_signals(mask: Iterable[int], defaults: Iterable[int], *, ignores_sigchld: bool) -> None:
    """Give this process the signal state that we were started with, before it becomes another program."""
    for signum in defaults:
        signal.signal(signum, signal.SIG_DFL)
    if ignores_sigchld:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    if callable(signal.getsignal(signal.SIGINT)):
        # The interpreter's own handler would swallow a signal that comes before the exec.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _signal_name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:  # most real-time signals
        return f"signal {signum}"


def _as_inherited(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Remove the `LC_CTYPE` that the interpreter adds to its environment in the C locale (PEP 538)."""
    if environ.get("LC_CTYPE") not in {"C.UTF-8", "C.utf8", "UTF-8"}:
        return environ
    try:
        with open("/proc/self/environ", "rb") as file:
            inherited = b"\0" + file.read()
    except OSError:
        return environ
    if b"\0LC_CTYPE=" in inherited:
        return environ
    return {name: value for name, value in environ.items() if name != "LC_CTYPE"}


def _found(name: str) -> str | None:
    """Return the file that `name` refers to, executable or not."""
    if "/" in name:
        return name if os.path.lexists(name) else None
    candidates = (os.path.join(directory or ".", name) for directory in os.get_exec_path())
    return next((path for path in candidates if os.path.lexists(path)), None)


def _script_without_interpreter(name: str) -> str | None:
    """Return the path of a text file without `#!`, which `/bin/sh` runs as with execvp(3); `None` for a binary."""
    path = _found(name)
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            return None if b"\0" in file.read(256) else path
    except OSError:
        return None


def _start_error(name: str, error: OSError) -> JobStartError:
    if error.errno in {errno.EAGAIN, errno.ENOMEM}:
        return JobStartError(str(error.strerror), exit_code=NOT_EXECUTABLE, lacks_process=True)
    path = _found(name)
    # EACCES may also come from a directory in PATH without search permission.
    if path is None and error.errno in {errno.ENOENT, errno.EACCES}:
        reason = "No such file or directory" if "/" in name else "command not found"
        return JobStartError(f"{name}: {reason}", exit_code=NOT_FOUND)
    if error.errno == errno.ENOENT:
        return JobStartError(f"{name}: its interpreter or loader was not found", exit_code=NOT_FOUND)
    reason = "Is a directory" if path is not None and os.path.isdir(path) else os.strerror(error.errno or 0)
    return JobStartError(f"{name}: {reason}", exit_code=NOT_EXECUTABLE)


def ancestors_include(pid: int, job_pid: int, adopter_pid: int) -> bool:
    """Whether `pid` is the job or a descendant, by the parents up to `adopter_pid`.

    The job's orphans are that process' children too, once they are adopted.
    """
    while pid > 1 and pid != adopter_pid:
        parent_pid = _parent(pid)
        if pid == job_pid or parent_pid == adopter_pid:
            return True
        pid = parent_pid
    return False


def _parent(pid: int) -> int:
    """Return the parent's pid; 0 when the process is gone."""
    try:
        return int(read_stat(pid, STAT_PARENT + 1)[STAT_PARENT])
    except (OSError, ValueError):
        return 0
