"""The waiter: the job's parent. It waits, forwards signals, reaps, and ends with the job's exit code.

Everything else is done by the recorder, a child that is forked right after the job was started. The recorder may be
missing, hang or be killed: the waiter starts it again and needs nothing of it. After the job's start the waiter imports
nothing, opens nothing, and has no thread and no timer. (A timer that was set before we were started is the job's.)

Needs `sigwaitinfo` (Linux). Imported before the job starts.
"""

from __future__ import annotations

import gc
import os
import signal
import sys

from sentinel_collector.job.process import SIGNAL_BASE
from sentinel_collector.job.recorder_process import RecorderProcess, open_pipes
from sentinel_collector.job.signals import CATCHABLE, STOP_SIGNALS, BlockedSignals, is_from_terminal
from sentinel_collector.job.streams import JobStreams
from sentinel_collector.job.subreaper import set_subreaper

TYPE_CHECKING = False  # `typing` itself would cost milliseconds of the job's start
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sentinel_collector.console import Console
    from sentinel_collector.job.process import Job
    from sentinel_collector.job.recorder_process import RecorderStart
    from sentinel_protocol.common.clock import Clock

_OF_OWN_USE = frozenset({signal.SIGCHLD, signal.SIGXCPU, signal.SIGXFSZ, signal.SIGPIPE, signal.SIGSYS})
"""From the kernel these concern the waiter's own children, system calls and CPU time."""
_OF_TIMERS = frozenset({signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGIO})
"""From the kernel these come of a timer or descriptor that was set up before we were started."""


def wait_for(
    spawn: Callable[[BlockedSignals], Job],
    *,
    record: Callable[[RecorderStart], int],
    written_paths: Iterable[str | None],
    clock: Clock,
    console: Console,
) -> int:
    """Start the job and its recorder, and return the job's exit code. Raises what `spawn` raises.

    `record` runs in the recorder's process. `written_paths` are files that it writes to.
    """
    # The launcher has done it for nothing.
    options = sys._xoptions  # noqa: SLF001 -- documented
    if "sentinel-subreaper" not in options:
        set_subreaper()
    ignored = str(options.get("sentinel-ignored", ""))
    signals = BlockedSignals(frozenset(int(number) for number in ignored.split(",") if number))
    streams = JobStreams(written_paths)
    pipes = open_pipes()
    job = spawn(signals)
    try:
        streams.release()
    except OSError as error:
        console.error(f"cannot let go of the job's streams: {error.strerror}")
    # Where the job's descriptors filled the limit, there is room now.
    pipes = pipes or open_pipes()
    if pipes is None:
        console.error("too few descriptors for a recorder; the job runs and is not recorded")
    recorder = None if pipes is None else RecorderProcess(job.pid, pipes, record=record, clock=clock, console=console)
    # Pages that the two processes share stay shared, and the waiter does not grow.
    gc.freeze()
    gc.disable()
    return Waiter(job, recorder, console).run()


class Waiter:
    """Waits for one job, and for its recorder where there is one."""

    def __init__(self, job: Job, recorder: RecorderProcess | None, console: Console) -> None:
        self._job = job
        self._recorder = recorder
        self._console = console
        self._terminal_sigints = 0
        self._is_detached = self._is_told_to_stop = False

    def run(self) -> int:
        """Wait for the job, then for the recorder; return the job's exit code, 130 after the second Ctrl-C."""
        if self._recorder is not None:
            self._recorder.start()
        while self._job.exit_code is None and not self._is_detached:
            self._guarded(self._wait_for_signal)
        self._guarded(self._await_recorder)
        return SIGNAL_BASE + signal.SIGINT if self._is_detached else self._job.exit_code or 0

    def _guarded(self, step: Callable[[], None]) -> None:
        """A defect, or memory that ran out, must not cost the job its parent."""
        try:
            step()
        except Exception as error:  # noqa: BLE001
            self._console.error(f"unexpected {type(error).__name__} in the waiter: {error}")

    def _wait_for_signal(self) -> None:
        recorder = self._recorder
        while recorder is not None and recorder.is_waiting_for_restart():
            # CPython 3.11's sigtimedwait cannot be trusted when it waits (see job/signals.py).
            info = signal.sigtimedwait(CATCHABLE, 0)
            if info is not None:
                self._handle(info)
                return
            recorder.pause()
        self._handle(signal.sigwaitinfo(CATCHABLE))

    # Children

    def _children_changed(self) -> None:
        """Reap what has ended: the job, the recorder, and the job's orphans; stop with the job."""
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                break
            except OSError:
                self._poll_children()
                break
            if found is None:
                break
            if found.si_pid == self._job.pid:
                self._end_job()
            elif self._recorder is not None and found.si_pid == self._recorder.pid:
                self._recorder.ended(os.waitpid(found.si_pid, 0)[1])
            else:
                _, _, usage = os.wait4(found.si_pid, os.WNOHANG)
                if self._recorder is not None:
                    self._recorder.take_orphan(found.si_pid, usage)
        if self._job.exit_code is None:
            self._stop_with_job()

    def _poll_children(self) -> None:
        """The same in a sandbox without `waitid`: the job is reaped before the recorder can read its zombie."""
        if self._job.exit_code is None and self._job.poll():
            self._end_job()
        if self._recorder is not None and self._recorder.pid:
            pid, status = os.waitpid(self._recorder.pid, os.WNOHANG)
            if pid:
                self._recorder.ended(status)

    def _end_job(self) -> None:
        """Let the recorder read the job's zombie, then reap it."""
        if self._recorder is not None:
            self._recorder.let_read_zombie()
        usage = self._job.reap()
        if self._recorder is not None:
            self._recorder.job_exited(self._job.exit_code or 0, usage)

    def _stop_with_job(self) -> None:
        """Stop like the job, so that the shell sees it stopped; go on when somebody continues us."""
        try:
            found = os.waitid(os.P_PID, self._job.pid, os.WSTOPPED | os.WNOHANG)
        except OSError:
            return
        # A job that is traced stops for its tracer.
        if found is None or found.si_code != os.CLD_STOPPED:
            return
        # The recorder continues us when the job runs again before we have stopped.
        if self._recorder is not None:
            self._recorder.send(b"stopped")
        _stop(found.si_status)
        if self._recorder is not None:
            self._recorder.send(b"continued")

    # Signals

    def _handle(self, info: signal.struct_siginfo) -> None:
        if info.si_signo == signal.SIGCHLD:
            self._children_changed()
        if info.si_code > 0:
            self._handle_of_kernel(info.si_signo)
        elif self._is_for_job(info.si_signo, info.si_pid):
            self._forward(info.si_signo)

    def _handle_of_kernel(self, signum: int) -> None:
        if signum in _OF_OWN_USE:
            return
        if signum in _OF_TIMERS or not is_from_terminal(signum) or not self._is_in_our_group():
            self._forward(signum)
        if signum == signal.SIGINT:
            self._terminal_sigints += 1
            if self._terminal_sigints > 1:
                self._detach()

    def _is_in_our_group(self) -> bool:
        """Whether the job is in our process group, to which the terminal has sent the signal."""
        try:
            return os.getpgid(self._job.pid) == os.getpgid(0)
        except OSError:
            return True

    def _is_for_job(self, signum: int, sender: int) -> bool:
        """Whether a signal that a process has sent is to be forwarded. What the job sends is not for itself."""
        if sender in {os.getpid(), self._job.pid}:
            return False
        if self._recorder is None:
            return True
        return sender != self._recorder.pid and self._recorder.is_for_job_alone(signum, sender)

    def _forward(self, signum: int) -> None:
        if self._job.exit_code is None:
            self._job.forward(signum)

    def _detach(self) -> None:
        self._is_detached = True
        self._console.warn(detached_message(self._job.pid))
        if self._recorder is not None:
            self._recorder.detach()

    # The end

    def _await_recorder(self) -> None:
        """Wait until the recorder has delivered, for as long as it has announced; a stop signal ends the wait."""
        recorder = self._recorder
        if recorder is None:
            return
        # Signals until now were for the job: a Ctrl-C that ended it must not end the delivery as well.
        while (info := signal.sigtimedwait(CATCHABLE, 0)) is not None:
            if info.si_signo == signal.SIGCHLD:
                self._check_children()
        while not recorder.is_done and (recorder.is_waiting_for_restart() or recorder.lives()):
            if recorder.is_overdue():
                return
            recorder.pause()
            while (info := signal.sigtimedwait(CATCHABLE, 0)) is not None:
                if self._ends_wait(info.si_signo):
                    return

    def _ends_wait(self, signum: int) -> bool:
        """Handle a signal after the job's end; whether it is the second that asks to end."""
        if signum == signal.SIGCHLD:
            self._check_children()
        elif signum == signal.SIGTSTP:
            _stop(signum)
        elif signum in STOP_SIGNALS:
            if self._is_told_to_stop or self._recorder is None:
                return True
            self._is_told_to_stop = True
            self._recorder.stop()
        return False

    def _check_children(self) -> None:
        # A detached job is not reaped: whoever becomes its parent does that.
        if not self._is_detached:
            self._children_changed()


def detached_message(job_pid: int) -> str:
    """Return the message for a collector that ends before its job."""
    return f"the job continues (process {job_pid}), but is no longer recorded"


def _stop(signum: int) -> None:
    """Stop this process as the signal does by default; returns when it is continued."""
    if signum == signal.SIGSTOP or signal.getsignal(signum) is not signal.SIG_DFL:
        os.kill(os.getpid(), signal.SIGSTOP)
        return
    os.kill(os.getpid(), signum)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signum})
    # Here the process stops, unless its process group is orphaned.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signum})
