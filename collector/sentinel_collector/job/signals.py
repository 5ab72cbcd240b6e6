"""Signals of the wrapper: how they are received, who sent them, and what is done about each.

On Linux the signals are blocked from the start and taken with `sigtimedwait(2)`: none is lost, no handler interrupts
other code, and `siginfo_t` tells whether the terminal sent it. The terminal sends to the whole foreground process
group, so the job has such a signal already. A `kill` of the collector's pid is meant for the job. Elsewhere (macOS)
handlers write to a pipe, and the sender is guessed.

Imported before the job starts: only `signal` and what the interpreter and `argparse` have loaded anyway.
"""

from __future__ import annotations

import os
import signal
from enum import Enum

TYPE_CHECKING = False  # `typing` itself would cost milliseconds of the job's start
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

FORWARDED = frozenset(
    {
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGWINCH,
    }
)
"""Forwarded to the job when sent to the collector."""

CATCHABLE = frozenset(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}

STOP_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
"""End a recording without a job, and the wait for the delivery."""

_SI_KERNEL = 0x80
"""`si_code` of signals from the kernel, such as the terminal driver's (sigaction(2))."""

_MIN_TIMER_S = 1e-5

_SET_BY_PYTHON = frozenset({signal.SIGPIPE, signal.SIGXFSZ})
"""The interpreter ignores them from its start; their earlier dispositions are unknown."""


_HARMLESS_BY_DEFAULT = frozenset(
    {
        signal.SIGCHLD,
        signal.SIGCONT,
        signal.SIGTSTP,
        signal.SIGTTIN,
        signal.SIGTTOU,
        signal.SIGURG,
        signal.SIGWINCH,
    }
)
"""These do not end a program."""


def is_from_terminal(signum: int) -> bool:
    """Whether a signal of the kernel has reached our whole process group."""
    # At a hang-up the session leader alone gets SIGHUP and SIGCONT.
    return signum not in {signal.SIGHUP, signal.SIGCONT} or os.getsid(0) != os.getpid()


class ReceivedSignal:
    """One signal. With `from_terminal` the foreground process group, hence the job, has received it too.

    `sender_pid` is 0 when the sender is the kernel or unknown.
    """

    __slots__ = ("from_terminal", "sender_pid", "signum")

    def __init__(self, signum: int, *, from_terminal: bool, sender_pid: int = 0) -> None:
        self.signum = signum
        self.from_terminal = from_terminal
        self.sender_pid = sender_pid

    def __repr__(self) -> str:
        name = signal.Signals(self.signum).name
        return f"ReceivedSignal({name}, from_terminal={self.from_terminal}, sender_pid={self.sender_pid})"


class Signals:
    """Holds back the forwarded signals and SIGCHLD until `close`. Main thread only, before any other thread starts.

    Signals that were ignored at the start (`nohup`: SIGHUP; a shell's background job: SIGINT and SIGQUIT) stay ignored
    and are never received. SIGCHLD is the exception: while it is ignored, the kernel discards exit codes.

    `original_mask`, `reset_in_children` (to the default) and `ignores_sigchld` are the collector's own initial signal
    state. A child that is started otherwise has the signals blocked.
    """

    def __init__(self, *, with_handlers: bool = not hasattr(signal, "sigtimedwait")) -> None:
        self.ignores_sigchld = signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
        self._is_closed = False
        if self.ignores_sigchld:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        ignored = {signum for signum in FORWARDED if signal.getsignal(signum) is signal.SIG_IGN}
        signums = frozenset((FORWARDED | {signal.SIGCHLD}) - ignored)
        self.original_mask = frozenset(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        self.reset_in_children = _SET_BY_PYTHON
        self._source: _SigtimedwaitSource | _WakeupFdSource = (
            _WakeupFdSource(signums) if with_handlers else _SigtimedwaitSource(signums)
        )

    def __enter__(self) -> Signals:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self, timeout_s: float) -> list[ReceivedSignal]:
        """Return the signals as soon as one arrives, at most after `timeout_s` seconds; empty when none does.

        SIGCHLD means that a child has ended, stopped or continued: check the job.
        """
        return self._source.wait(max(timeout_s, 0.0))

    def close(self) -> None:
        """Restore the original signal state; pending signals are dropped. May be called twice."""
        self._source.close()
        if self.ignores_sigchld and not self._is_closed:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        self._is_closed = True


class BlockedSignals:
    """Blocks every signal that can be caught, for good: `Waiter` takes them with `sigwaitinfo`.

    Signals that are ignored are queued too while they are blocked, and are forwarded: the job decides. The attributes
    are those of `Signals`. `ignored_at_start` are the signals that were ignored before the interpreter started.
    """

    def __init__(self, ignored_at_start: frozenset[int] = frozenset()) -> None:
        self.original_mask = frozenset(signal.pthread_sigmask(signal.SIG_BLOCK, CATCHABLE))
        self.reset_in_children = _SET_BY_PYTHON - ignored_at_start
        self.ignores_sigchld = signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
        if self.ignores_sigchld:
            # Otherwise the kernel would discard the job's exit code.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def wait(self, _timeout_s: float) -> list[ReceivedSignal]:
        """Return the pending signals that end a program; does not wait."""
        received = []
        while (info := signal.sigtimedwait(CATCHABLE, 0)) is not None:
            signum = info.si_signo
            if signum not in _HARMLESS_BY_DEFAULT and signal.getsignal(signum) is not signal.SIG_IGN:
                received.append(ReceivedSignal(signum, from_terminal=False))
        return received


class _SigtimedwaitSource:
    """Blocked signals, taken with `sigtimedwait(2)`: two system calls for a wait in which nothing arrives."""

    def __init__(self, signums: frozenset[signal.Signals]) -> None:
        self._signums = signums
        self._with_timer = signums | {signal.SIGALRM}
        self._previous: set[Any] | None = signal.pthread_sigmask(signal.SIG_BLOCK, self._with_timer)

    def wait(self, timeout_s: float) -> list[ReceivedSignal]:
        received: list[ReceivedSignal] = []
        info = self._wait_for_one(timeout_s)
        while info is not None:
            from_kernel = info.si_code == _SI_KERNEL
            from_terminal = from_kernel and is_from_terminal(info.si_signo)
            sender_pid = 0 if from_kernel else info.si_pid
            received.append(ReceivedSignal(info.si_signo, from_terminal=from_terminal, sender_pid=sender_pid))
            info = signal.sigtimedwait(self._signums, 0)
        return received

    def _wait_for_one(self, timeout_s: float) -> signal.struct_siginfo | None:
        """Wait for one signal, with an interval timer for the timeout.

        CPython 3.11's `sigtimedwait` returns an uninitialised `siginfo` when SIGSTOP and SIGCONT interrupt it (EINTR)
        and the timeout has passed meanwhile. The job would get a signal that nobody sent.
        """
        if timeout_s <= 0:
            return signal.sigtimedwait(self._signums, 0)
        # Less than a microsecond would disarm the timer.
        signal.setitimer(signal.ITIMER_REAL, max(timeout_s, _MIN_TIMER_S))
        info = signal.sigwaitinfo(self._with_timer)
        is_alarm = info.si_signo == signal.SIGALRM
        if not is_alarm or info.si_code != _SI_KERNEL:
            # Not from the timer, which may have expired in between.
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.sigtimedwait({signal.SIGALRM}, 0)
        return None if is_alarm else info

    def close(self) -> None:
        if self._previous is not None:
            self.wait(0)
            signal.pthread_sigmask(signal.SIG_SETMASK, self._previous)
            self._previous = None


class _WakeupFdSource:
    """Handlers that write to a pipe, for systems without `sigtimedwait`."""

    def __init__(self, signums: frozenset[signal.Signals]) -> None:
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)
        self._previous_fd = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        self._handlers = {signum: signal.signal(signum, _noop_handler) for signum in signums}

    def wait(self, timeout_s: float) -> list[ReceivedSignal]:
        import select

        if not select.select([self._read_fd], [], [], timeout_s)[0]:
            return []
        signums = [signum for signum in os.read(self._read_fd, 4096) if signum in self._handlers]
        return [ReceivedSignal(signum, from_terminal=_probably_from_terminal(signum)) for signum in signums]

    def close(self) -> None:
        if not self._handlers:
            return
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers = {}
        signal.set_wakeup_fd(self._previous_fd)
        os.close(self._read_fd)
        os.close(self._write_fd)


def _noop_handler(_signum: int, _frame: FrameType | None) -> None:
    """Do nothing: the interpreter has written the signal number to the wake-up descriptor."""


def _probably_from_terminal(signum: int) -> bool:
    """Guess without `siginfo_t`: a signal that terminals send, while this process is in the foreground."""
    if signum not in {signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH}:
        return False
    try:
        terminal_fd = os.open(os.ctermid(), os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal_fd) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal_fd)


class Action(Enum):
    """The wrapper's reaction to a signal while the job runs."""

    FORWARD = "forward"
    IGNORE = "ignore"
    """The job has received it already, or has sent it."""
    DETACH = "detach"
    """End now with exit code 130 and leave the job running."""


class SignalPolicy:
    """Decides about each signal while a job runs.

    `is_of_job(pid)` tells whether a sender belongs to the job (`Job.contains`). Such a signal is not sent back: a job
    that signals its own process group (`kill 0`) means its children and may ignore the signal meanwhile. A copy that
    comes a moment later would kill it.
    """

    def __init__(self, is_of_job: Callable[[int], bool]) -> None:
        self._is_of_job = is_of_job
        self._terminal_sigints = 0

    def decide(self, received: ReceivedSignal) -> Action:
        """Return the reaction; the terminal's second Ctrl-C is for the collector."""
        if received.signum == signal.SIGCHLD:
            return Action.IGNORE
        if received.from_terminal:
            if received.signum == signal.SIGINT:
                self._terminal_sigints += 1
            is_second = received.signum == signal.SIGINT and self._terminal_sigints > 1
            return Action.DETACH if is_second else Action.IGNORE
        if received.sender_pid and self._is_of_job(received.sender_pid):
            return Action.IGNORE
        return Action.FORWARD
