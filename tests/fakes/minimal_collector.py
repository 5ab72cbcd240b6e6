"""A collector that only runs its job, made of the collector's own parts: `python minimal_collector.py COMMAND [ARG]…`.

It tells its `Events` what it is told: `spawned PID`, `NAME ACTION` for a signal, `stopped` and `continued` for the
job with what `has_ended` says then, `ended`. With `WRAPPER_HANDLERS` it uses handlers instead of `sigtimedwait`.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

from sentinel_collector.job.process import SIGNAL_BASE, Job, JobStartError
from sentinel_collector.job.signals import Action, ReceivedSignal, SignalPolicy, Signals

PATIENCE_S = 20.0
"""Far longer than anything takes; what runs into it has failed."""

WRAPPER = (sys.executable, __file__)

COUNTING_JOB = """
import os, signal, sys
counts = {}
def tell(line):
    fd = os.open(sys.argv[1], os.O_WRONLY)
    os.write(fd, f"job {line}\\n".encode())
    os.close(fd)
signums = {getattr(signal, name) for name in sys.argv[2:]}
for signum in signums:
    signal.signal(signum, lambda *_: None)
signal.pthread_sigmask(signal.SIG_BLOCK, signums)
tell("ready")
while True:
    signum = signal.sigwait(signums)
    counts[signum] = counts.get(signum, 0) + 1
    tell(f"{signal.Signals(signum).name} {counts[signum]}")
"""
"""Tells `job ready`, then `job NAME COUNT` for each of the named signals; the others do what they do by default."""


def counting_job(events_path: str, *names: str) -> list[str]:
    return [sys.executable, "-c", COUNTING_JOB, events_path, *names]


@contextlib.contextmanager
def wrapping(
    job: Sequence[str], environ: Mapping[str, str], prefix: Sequence[str] = ()
) -> "Iterator[subprocess.Popen[bytes]]":
    """A wrapper of `job` in a session without a terminal; nothing of its process group outlives the block."""
    wrapper = subprocess.Popen([*prefix, *WRAPPER, *job], env=environ, start_new_session=True)
    try:
        yield wrapper
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(wrapper.pid, signal.SIGKILL)
        wrapper.wait(PATIENCE_S)


class Events:
    """Lines that processes write into a named pipe, in the order of writing."""

    def __init__(self, path: str) -> None:
        os.mkfifo(path)
        self.path = path
        self.lines: list[str] = []
        self._partial = ""
        # A writer of our own: without one the pipe would end whenever nobody has it open.
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def close(self) -> None:
        os.close(self._fd)

    def wait_for(self, line: str) -> None:
        """Read until the line is there."""
        while line not in self.lines:
            self._read(line)

    def job_pid(self) -> int:
        """Read until the wrapper has told its job's pid."""
        while not (pids := [int(line.split()[1]) for line in self.lines if line.startswith("spawned ")]):
            self._read("spawned")
        return pids[0]

    def _read(self, awaited: str) -> None:
        ready, _, _ = select.select([self._fd], [], [], PATIENCE_S)
        assert ready, f"{awaited!r} is not in {self.lines}"
        self._partial += os.read(self._fd, 4096).decode()
        *whole, self._partial = self._partial.split("\n")
        self.lines += whole


def tell(line: str) -> None:
    path = os.environ.get("WRAPPER_EVENTS")
    if path:
        fd = os.open(path, os.O_WRONLY)
        os.write(fd, f"{line}\n".encode())
        os.close(fd)


def job_environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("WRAPPER_")}


def note_state(job: Job) -> None:
    """Tell a stop and a continuation of the job apart, as nothing in the collector has to."""
    try:
        found = os.waitid(os.P_PID, job.pid, os.WSTOPPED | os.WCONTINUED | os.WNOHANG)
    except ChildProcessError:  # it has ended, and the call is not asked for that
        return
    if found is not None:
        tell(f"{'stopped' if found.si_code == os.CLD_STOPPED else 'continued'} {job.has_ended()}")


def leaves(job: Job, interrupts: SignalPolicy, received: ReceivedSignal) -> bool:
    action = interrupts.decide(received)
    if action is Action.FORWARD:
        job.forward(received.signum)
    if received.signum == signal.SIGCHLD:
        note_state(job)
    else:
        tell(f"{signal.Signals(received.signum).name} {action.name}")
    return action is Action.DETACH


def main() -> int:
    with Signals(with_handlers=True) if "WRAPPER_HANDLERS" in os.environ else Signals() as signals:
        try:
            job = Job.spawn(sys.argv[1:], job_environ(), signals)
        except JobStartError as error:
            print(f"wrapper: {error}", file=sys.stderr)
            return error.exit_code
        tell(f"spawned {job.pid}")
        interrupts = SignalPolicy(job.contains)
        while not job.has_ended():
            if any(leaves(job, interrupts, received) for received in signals.wait(60)):
                return SIGNAL_BASE + signal.SIGINT
        tell("ended")
        job.reap()
        assert job.exit_code is not None
        return job.exit_code


if __name__ == "__main__":
    sys.exit(main())
