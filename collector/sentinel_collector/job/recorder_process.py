"""The recorder's process as the waiter sees it: its start and restart, and the lines that the two exchange.

`JobMirror` is the other end. Nothing is opened or imported after the job's start. Imported before it.
"""

from __future__ import annotations

import os
import select
import signal

TYPE_CHECKING = False  # `typing` itself would cost milliseconds of the job's start
if TYPE_CHECKING:
    from collections.abc import Callable
    from resource import struct_rusage

    from sentinel_collector.console import Console
    from sentinel_protocol.common.clock import Clock

GIVE_UP = 3
"""Exit code of a recorder that must not be started again."""
_ANSWER_S = 0.1
_ANSWER_WHILE_IMPORTING_S = 0.3
_LAST_READING_S = 1.0
"""The ended job stays a zombie no longer than this for the recorder's last reading."""
_ANNOUNCEMENT_S = 10.0
"""After the job's end, a recorder has so long to say how long it will take."""
_STOP_S = 3.0
"""Time to end for a recorder that was told not to wait for the delivery."""
_POLL_MS = 20
_SHORT_LIFE_S = 0.7
_LONG_LIFE_S = 60.0
_QUICK_RESTARTS = 100
_FIRST_PAUSE_S = 0.1
_MAX_PAUSE_S = 30.0
_LINE_INTERVAL_S = 10.0
_RESTARTS_AFTER_END = 2
_MAX_UNSENT = 500
_PIPE_BYTES = 1 << 16


class RecorderPipes:
    """Two pipes, which serve all recorders of a run, one after the other. Raises `OSError`."""

    def __init__(self) -> None:
        self.event_read, self.event_write = os.pipe()
        try:
            self.reply_read, self.reply_write = os.pipe()
        except OSError:
            os.close(self.event_read)
            os.close(self.event_write)
            raise
        for fd in (self.event_read, self.event_write, self.reply_read, self.reply_write):
            os.set_blocking(fd, False)


def open_pipes() -> RecorderPipes | None:
    """Open the pipes; `None` when there are too few descriptors."""
    try:
        return RecorderPipes()
    except OSError:
        return None


class RecorderStart:
    """What a recorder has to know when it starts; kept up to date for the next one."""

    def __init__(self, job_pid: int, pipes: RecorderPipes) -> None:
        self.job_pid = job_pid
        self.waiter_pid = os.getpid()
        self.event_fd = pipes.event_read
        self.reply_fd = pipes.reply_write
        self.restarts = 0
        self.pause_s = 0.0
        """The recorder does nothing for so long, because earlier ones ended soon."""
        self.is_silent = False
        """Whether an error was reported a moment ago."""
        self.run_key = ""
        self.excluded: set[int] = set()
        """Uploaders that recorders have started: no part of the job."""
        self.job_ended = False
        """Whether the job has ended: it is a zombie, or was reaped."""
        self.exited: tuple[int, int, int, int] | None = None
        """Of the reaped job: exit code, user and system microseconds, highest resident set in KiB."""


class RecorderProcess:
    """One recorder after the other. `record` runs in each one's process and returns its exit code."""

    def __init__(
        self,
        job_pid: int,
        pipes: RecorderPipes,
        *,
        record: Callable[[RecorderStart], int],
        clock: Clock,
        console: Console,
    ) -> None:
        self.pid = 0
        """0 while there is none."""
        self.is_done = False
        """Whether nothing is left to wait for."""
        self._pipes = pipes
        self._start = RecorderStart(job_pid, pipes)
        self._record = record
        self._clock = clock
        self._console = console
        self._began_at = 0.0
        self._short_lives = self._restarts_after_end = 0
        self._restart_at: float | None = None
        self._line_at = 0.0
        self._is_ready = self._has_read = False
        self._question = 0
        self._answer = (0, 0)
        self._ends_at = 0.0
        self._unsent: list[tuple[int, int, int, int]] = []
        self._poll = select.poll()
        self._poll.register(pipes.reply_read, select.POLLIN)

    def start(self) -> bool:
        """Start a recorder; without a process for it, a start is tried again later."""
        if self.is_done:
            return False
        self._restart_at = None
        self._is_ready = self._has_read = False
        try:
            pid = os.fork()
        except OSError as error:
            self.report(f"cannot start the recorder: {error.strerror}; the job runs, and a start is tried again")
            self._short_lives += 1
            self._restart_at = self._clock.monotonic() + self._pause_after_failure()
            return False
        if not pid:
            self._become_recorder()
        self.pid = pid
        self._began_at = self._clock.monotonic()
        self._flush_unsent()
        return True

    def is_waiting_for_restart(self) -> bool:
        """Start the recorder if a start has failed before and is due; return whether it still is to be started."""
        if self._restart_at is not None and self._clock.monotonic() >= self._restart_at:
            self.start()
        return self._restart_at is not None

    def pause(self) -> None:
        """Wait for a line of the recorder for a moment, and take it in."""
        if self._poll.poll(_POLL_MS):
            self._read_replies()

    def lives(self) -> bool:
        """Whether there is a recorder that has not ended."""
        try:
            return bool(self.pid) and os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False
        except OSError:
            return True

    def ended(self, status: int) -> None:
        """Start the recorder again after its end, unless it is done or has given up."""
        start = self._start
        self._read_replies()
        self.pid = 0
        code = os.waitstatus_to_exitcode(status)
        if code in {0, GIVE_UP}:
            self.is_done = True
            return
        lived_s = self._clock.monotonic() - self._began_at
        self._short_lives = 1 if lived_s > _LONG_LIFE_S else self._short_lives + 1
        start.restarts += 1
        start.pause_s = 0.0 if lived_s >= _SHORT_LIFE_S else self._pause_after_failure()
        if self._short_lives > _QUICK_RESTARTS:
            start.pause_s = _MAX_PAUSE_S
        if start.exited is not None:
            start.pause_s = 0.0
            self._restarts_after_end += 1
            self._ends_at = self._clock.monotonic() + _ANNOUNCEMENT_S
            if self._restarts_after_end > _RESTARTS_AFTER_END:
                self.is_done = True
                self._console.error("the recorder failed again; the run's end may not be recorded")
                return
        reason = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        rest = "" if start.job_ended else "; the job continues"
        start.is_silent = not self.report(f"the recorder {reason} and is started again{rest}")
        self.start()

    def is_for_job_alone(self, signum: int, sender: int) -> bool:
        """Whether nobody but the waiter got this signal, as far as the recorder can tell.

        The recorder is in our process group and cgroup. What it got too, the job got too. It also knows whether the
        sender is a descendant of the job.
        """
        self._question += 1
        if not self.pid or not self.send(b"signal %d %d %d" % (self._question, signum, sender)):
            return True
        deadline = self._clock.monotonic() + (_ANSWER_S if self._is_ready else _ANSWER_WHILE_IMPORTING_S)
        while self._clock.monotonic() < deadline and self.lives():
            self.pause()
            if self._answer[0] == self._question:
                return bool(self._answer[1])
        return True

    def take_orphan(self, pid: int, usage: struct_rusage) -> None:
        """Report an orphan that was reaped. While the recorder does not read, the last ones are kept for it."""
        if pid in self._start.excluded:
            return
        self._unsent.append((pid, *_figures(usage)))
        if len(self._unsent) > _MAX_UNSENT:
            # Nothing is lost but which processes these were.
            (_, user, system, peak), (_, more_user, more_system, more_peak), *rest = self._unsent
            self._unsent = [(0, user + more_user, system + more_system, max(peak, more_peak)), *rest]
        self._flush_unsent()

    def let_read_zombie(self) -> None:
        """Let the recorder read the ended job, which is a zombie; return when it has."""
        self._start.job_ended = True
        if not self.pid and not self.start():
            return
        self.send(b"ended")
        self.resume()
        deadline = self._clock.monotonic() + _LAST_READING_S
        while not self._has_read and self.lives() and self._clock.monotonic() < deadline:
            self.pause()

    def job_exited(self, code: int, usage: struct_rusage) -> None:
        """Report the reaped job."""
        self._start.exited = (code, *_figures(usage))
        self._flush_unsent()
        self.send(b"exited %d %d %d %d" % self._start.exited)
        self._ends_at = self._clock.monotonic() + (_ANNOUNCEMENT_S if self.pid else _STOP_S)

    def detach(self) -> None:
        """Let the recorder end the run now; the job goes on."""
        self.send(b"detach")
        self._ends_at = self._clock.monotonic() + _ANNOUNCEMENT_S

    def stop(self) -> None:
        """Let the recorder end without waiting for the delivery."""
        self.send(b"stop")
        self._ends_at = min(self._ends_at, self._clock.monotonic() + _STOP_S)

    def is_overdue(self) -> bool:
        """Whether the recorder has taken longer than it has announced; reports that."""
        if self._clock.monotonic() < self._ends_at:
            return False
        if self.pid:
            self._console.error(
                f"the recorder does not answer; it is left in the background (process {self.pid})",
            )
        else:
            self._console.error("the recorder cannot be started; the run's end is not recorded")
        return True

    def resume(self) -> None:
        """Continue a recorder that somebody has stopped."""
        try:  # noqa: SIM105 -- contextlib would be an import
            os.kill(self.pid, signal.SIGCONT)
        except OSError:
            pass

    def send(self, line: bytes) -> bool:
        """Send a line now or not at all; return whether it was sent."""
        try:
            os.write(self._pipes.event_write, line + b"\n")
        except OSError:
            return False
        return True

    def report(self, text: str) -> bool:
        """Write a line unless one was written a moment ago; return whether it was written."""
        now = self._clock.monotonic()
        if now < self._line_at:
            return False
        self._line_at = now + _LINE_INTERVAL_S
        self._console.error(text)
        return True

    def _become_recorder(self) -> None:
        """Record until the end; never returns."""
        code = 1
        try:
            # The waiter's end shows as the end of its pipe.
            os.close(self._pipes.event_write)
            os.close(self._pipes.reply_read)
            code = self._record(self._start)
        except BaseException as error:  # noqa: BLE001 -- nothing of the waiter may run in this process
            if not self._start.is_silent:
                self._console.error(f"the recorder failed: {type(error).__name__}: {error}")
        finally:
            os._exit(code)

    def _pause_after_failure(self) -> float:
        return min(_MAX_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(max(self._short_lives - 1, 0), 10))

    def _flush_unsent(self) -> None:
        while self._unsent and self.send(b"reaped %d %d %d %d" % self._unsent[0]):
            del self._unsent[0]

    def _read_replies(self) -> None:
        try:
            data = os.read(self._pipes.reply_read, _PIPE_BYTES)
        except OSError:
            return
        for line in data.splitlines():
            word, *values = line.split()
            if word == b"answer":
                self._answer = (int(values[0]), int(values[1]))
            elif word == b"ready":
                self._is_ready = True
            elif word == b"read":
                self._has_read = True
            elif word == b"exclude":
                self._start.excluded.add(int(values[0]))
            elif word == b"key":
                self._start.run_key = values[0].decode()
            elif word == b"wait":
                self._ends_at = self._clock.monotonic() + int(values[0])
            elif word == b"done":
                self.is_done = True


def _figures(usage: struct_rusage) -> tuple[int, int, int]:
    return round(usage.ru_utime * 1e6), round(usage.ru_stime * 1e6), usage.ru_maxrss
