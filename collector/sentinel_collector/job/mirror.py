"""The recorder's view of the job, which is the waiter's child: what the waiter reports, and what `/proc` shows."""

import contextlib
import os
import select
import signal
import threading
from collections.abc import Iterator
from math import ceil
from typing import NamedTuple

from sentinel_collector.job.process import ancestors_include
from sentinel_collector.job.recorder_process import RecorderStart
from sentinel_collector.job.signals import CATCHABLE, Action, ReceivedSignal
from sentinel_collector.procfs import STAT_START, STAT_STATE, has_ended, read_stat
from sentinel_protocol.common.clock import Clock

_PIPE_BYTES = 1 << 16
_POLL_S = 0.1
"""Between two looks at a job or a waiter that no line of the waiter tells about."""
_ANSWERING_POLL_S = 0.005
_MAX_WAIT_S = 10.0
_REAP_S = 5.0
_SIGNAL_GRACE_S = 0.015
"""A service manager signals the processes of a cgroup one after the other."""
_GRACE_STEP_S = 0.001
_SEEN_S = 2.0
_STOPPED = frozenset({b"T", b"t"})


class Usage(NamedTuple):
    """The part of `struct_rusage` that is used: CPU seconds with those of reaped children, and the peak in KiB."""

    ru_utime: float
    ru_stime: float
    ru_maxrss: int


class JobMirror:
    """`Job` and `Signals` of a recorder; `exit_code` is `None` until `reap`, and stays so when the waiter is gone.

    The recorder blocks all signals. Those that it receives tell whether a signal went to the whole process group.
    """

    def __init__(self, start: RecorderStart, *, clock: Clock) -> None:
        self.pid = start.job_pid
        self.adopter_pid = start.waiter_pid
        self.exit_code: int | None = None
        self.run_key = start.run_key
        self.is_waiter_gone = False
        self._start = start
        self._clock = clock
        self._fd, self._reply_fd = start.event_fd, start.reply_fd
        self._has_ended = start.job_ended
        self._exited = start.exited
        self._is_waiter_stopped = False
        self._reaped: list[tuple[int, Usage]] = []
        self._events: list[ReceivedSignal] = []
        self._is_detached = False
        self._seen: dict[tuple[int, int], float] = {}
        """When a signal was received, by its number and sender."""
        self._job_start = _start_ticks(self.pid)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def announce_run_key(self, run_key: str) -> None:
        """Tell the waiter the run's key: later recorders cannot derive it once the job is reaped."""
        self.run_key = run_key
        self._reply(f"key {run_key}")

    def announce_ready(self) -> None:
        """Tell the waiter that questions are answered at once."""
        self._reply("ready")

    def announce_wait(self, limit_s: float) -> None:
        """Tell the waiter how long the end may take."""
        self._reply(f"wait {ceil(limit_s)}")

    def announce_done(self) -> None:
        """Tell the waiter that there is nothing left to wait for."""
        self._reply("done")

    def announce_excluded(self, pid: int) -> None:
        """Tell the waiter of a process that is no part of the job, though it may become the waiter's child."""
        self._reply(f"exclude {pid}")

    def pause(self, seconds: float) -> None:
        """Do nothing but answer questions for so long, or until the job ends."""
        deadline = self._clock.monotonic() + seconds
        while not self._has_ended and (left_s := deadline - self._clock.monotonic()) > 0:
            self.wait(left_s)

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Answer the waiter's questions in a thread while this one imports, which can take long."""
        is_over = False

        def answer() -> None:
            # Where memory runs out, questions have no answer.
            with contextlib.suppress(Exception):
                while not is_over:
                    self._read_events(_ANSWERING_POLL_S)

        thread = threading.Thread(target=answer, name="answering", daemon=True)
        # There may be no thread.
        with contextlib.suppress(RuntimeError):
            thread.start()
        try:
            yield
        finally:
            is_over = True
            if thread.ident is not None:
                thread.join()

    def contains(self, pid: int) -> bool:
        """Whether `pid` is the job or a descendant."""
        return ancestors_include(pid, self.pid, self.adopter_pid)

    def decide(self, received: ReceivedSignal) -> Action:
        """Return the reaction to what `wait` has returned: the waiter forwards, and says when to detach."""
        return Action.DETACH if self._is_detached and received.signum == signal.SIGINT else Action.IGNORE

    def has_ended(self) -> bool:
        """Whether the job has ended; looks for itself, because the waiter may be stopped."""
        if not self._has_ended and not self._job_runs():
            self._has_ended = True
        return self._has_ended

    def reap(self) -> Usage | None:
        """Let the waiter reap the job; return its exact totals, `None` when the waiter does not answer."""
        if self._exited is None and not self.is_waiter_gone:
            self._reply("read")
            deadline = self._clock.monotonic() + _REAP_S
            while self._exited is None and not self.is_waiter_gone and self._clock.monotonic() < deadline:
                self._read_events(_POLL_S)
        if self._exited is None:
            return None
        self.exit_code, user_us, system_us, peak_kib = self._exited
        return Usage(user_us / 1e6, system_us / 1e6, peak_kib)

    def take_reaped(self) -> list[tuple[int, Usage]]:
        """Return the orphans that the waiter has reaped since the last call, with their exact totals."""
        self._read_events(0)
        reaped, self._reaped = self._reaped, []
        return reaped

    def wait(self, timeout_s: float) -> list[ReceivedSignal]:
        """Return as soon as the waiter reports something, at most after `timeout_s` seconds.

        SIGCHLD means that the job has ended, SIGTERM that the user does not want to wait any longer.
        """
        timeout_s = min(max(timeout_s, 0.0), _POLL_S if self.is_waiter_gone or self._is_waiter_stopped else _MAX_WAIT_S)
        self._read_events(timeout_s)
        self._note_signals()
        if self.is_waiter_gone and not self._has_ended and not self._job_runs():
            self._job_has_ended()
        if self._is_waiter_stopped and not self._is_job_stopped():
            # The job runs again, and its parent stopped after that.
            with contextlib.suppress(OSError):
                os.kill(self.adopter_pid, signal.SIGCONT)
        events, self._events = self._events, []
        return events

    def _read_events(self, timeout_s: float) -> None:
        if not self._poll.poll(ceil(timeout_s * 1000)) or self.is_waiter_gone:
            return
        try:
            data = os.read(self._fd, _PIPE_BYTES)
        except BlockingIOError:
            return
        if not data:
            self.is_waiter_gone = True
            self._poll.unregister(self._fd)
            return
        for line in data.splitlines():
            self._take(line.split())

    def _take(self, words: list[bytes]) -> None:
        """Take one line; what a killed recorder has left of a line means nothing."""
        word, *values = words or [b""]
        if word == b"signal":
            number, signum, sender = map(int, values)
            self._reply(f"answer {number} {int(self._is_for_job_alone(signum, sender))}")
        elif word == b"reaped":
            pid, user_us, system_us, peak_kib = map(int, values)
            self._reaped.append((pid, Usage(user_us / 1e6, system_us / 1e6, peak_kib)))
        elif word == b"ended":
            self._job_has_ended()
        elif word == b"exited":
            code, user_us, system_us, peak_kib = map(int, values)
            self._exited = (code, user_us, system_us, peak_kib)
            self._job_has_ended()
        elif word == b"stopped":
            self._is_waiter_stopped = True
        elif word == b"continued":
            self._is_waiter_stopped = False
        elif word == b"detach":
            self._is_detached = True
            self._events.append(ReceivedSignal(signal.SIGINT, from_terminal=True))
        elif word == b"stop":
            self._events.append(ReceivedSignal(signal.SIGTERM, from_terminal=False))

    def _job_has_ended(self) -> None:
        self._has_ended = True
        self._events.append(ReceivedSignal(signal.SIGCHLD, from_terminal=False))

    def _is_for_job_alone(self, signum: int, sender: int) -> bool:
        """Whether a signal that the waiter got was not sent to this process too, nor by the job's descendants."""
        if sender and self.contains(sender):
            return False
        deadline = self._clock.monotonic() + _SIGNAL_GRACE_S
        while True:
            self._note_signals()
            if self._seen.pop((signum, sender), None) is not None:
                return False
            if self._clock.monotonic() >= deadline:
                return True
            select.select([], [], [], _GRACE_STEP_S)

    def _note_signals(self) -> None:
        now = self._clock.monotonic()
        if self._seen:
            self._seen = {key: at for key, at in self._seen.items() if now - at < _SEEN_S}
        while (info := signal.sigtimedwait(CATCHABLE, 0)) is not None:
            self._seen[info.si_signo, info.si_pid] = now

    def _job_runs(self) -> bool:
        return bool(self._job_start) and _start_ticks(self.pid) == self._job_start

    def _is_job_stopped(self) -> bool:
        try:
            return read_stat(self.pid, STAT_STATE + 1)[STAT_STATE] in _STOPPED
        except (OSError, ValueError):
            return False

    def _reply(self, line: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self._reply_fd, line.encode() + b"\n")


def _start_ticks(pid: int) -> bytes:
    """Return when a running process was started, in ticks after boot; empty when it has ended."""
    try:
        fields = read_stat(pid, STAT_START + 1)
    except (OSError, ValueError):
        return b""
    return b"" if has_ended(fields) else fields[STAT_START]
