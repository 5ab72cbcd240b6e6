"""Signals: told apart by sender, each reaches the job once, and all is given back."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.minimal_collector import WRAPPER, Events, counting_job, wrapping
from fakes.terminal import Terminal

from sentinel_collector.job.signals import FORWARDED, Action, ReceivedSignal, SignalPolicy, Signals

PATIENCE_S = 20.0
WAYS = [pytest.param({}, id="blocked"), pytest.param({"WRAPPER_HANDLERS": "1"}, id="handlers")]
needs_sigtimedwait = pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="the terminal is guessed here")

RESTORES_SIGINT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""
STARTS_IN_A_GROUP_OF_ITS_OWN = """
import os, signal, sys
def tell(line):
    fd = os.open(sys.argv[1], os.O_WRONLY)
    os.write(fd, f"guard {line}\\n".encode())
    os.close(fd)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ, setpgroup=0, setsigdef=[signal.SIGTTOU])
os.tcsetpgrp(0, pid)
tell(f"started {pid}")
status = os.waitpid(pid, os.WUNTRACED)[1]
assert os.WIFSTOPPED(status)
tell("stopped")
os.killpg(pid, signal.SIGCONT)
assert os.WIFCONTINUED(os.waitpid(pid, os.WCONTINUED)[1])
tell("continued")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.fixture
def events(tmp_path: Path) -> Iterator[Events]:
    opened = Events(str(tmp_path / "events"))
    yield opened
    opened.close()


def environ(events: Events, **more: str) -> dict[str, str]:
    return {**os.environ, "WRAPPER_EVENTS": events.path, **more}


def nobody(_pid: int) -> bool:
    return False


@pytest.mark.parametrize("with_handlers", [False, True])
def test_what_arrives_during_a_wait_is_returned_and_nothing_afterwards(with_handlers: bool) -> None:
    with Signals(with_handlers=with_handlers) as signals:
        assert signals.wait(0) == []
        for signum in sorted(FORWARDED - {signal.SIGWINCH}):
            signal.raise_signal(signum)
        received = {one.signum: one.from_terminal for one in signals.wait(PATIENCE_S)}
        assert received == dict.fromkeys(FORWARDED - {signal.SIGWINCH}, False)
        assert signals.wait(0) == []


@pytest.mark.parametrize("with_handlers", [False, True])
def test_the_end_of_a_child_ends_a_wait(with_handlers: bool) -> None:
    with Signals(with_handlers=with_handlers) as signals:
        child = subprocess.Popen(["true"])
        received = signals.wait(PATIENCE_S)
        assert [one.signum for one in received] == [signal.SIGCHLD]
        assert child.wait(PATIENCE_S) == 0


@needs_sigtimedwait
def test_the_sender_of_a_signal_is_known() -> None:
    with Signals() as signals:
        sender = subprocess.Popen(["sh", "-c", f"exec kill -USR1 {os.getpid()}"])
        first = signals.wait(PATIENCE_S)[0]
        assert (first.signum, first.sender_pid) == (signal.SIGUSR1, sender.pid)
        sender.wait(PATIENCE_S)


@pytest.mark.parametrize("with_handlers", [False, True])
def test_close_gives_masks_and_handlers_back_and_drops_what_is_pending(with_handlers: bool) -> None:
    before = {signum: signal.getsignal(signum) for signum in FORWARDED | {signal.SIGCHLD}}
    mask_before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    descriptors_before = os.listdir("/dev/fd")
    signals = Signals(with_handlers=with_handlers)
    assert signals.original_mask == mask_before
    signal.raise_signal(signal.SIGTERM)
    signals.close()
    signals.close()
    assert {signum: signal.getsignal(signum) for signum in before} == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask_before
    assert os.listdir("/dev/fd") == descriptors_before


@pytest.mark.parametrize("with_handlers", [False, True])
def test_an_ignored_signal_stays_ignored_but_for_sigchld(with_handlers: bool) -> None:
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    child = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with Signals(with_handlers=with_handlers) as signals:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGUSR1)
            assert [one.signum for one in signals.wait(PATIENCE_S)] == [signal.SIGUSR1]
            assert signal.getsignal(signal.SIGCHLD) is not signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, hangup)
        signal.signal(signal.SIGCHLD, child)


def test_the_second_interrupt_of_the_terminal_is_for_us() -> None:
    interrupts = SignalPolicy(nobody)
    assert interrupts.decide(ReceivedSignal(signal.SIGINT, from_terminal=True)) is Action.IGNORE
    assert interrupts.decide(ReceivedSignal(signal.SIGWINCH, from_terminal=True)) is Action.IGNORE
    assert interrupts.decide(ReceivedSignal(signal.SIGQUIT, from_terminal=True)) is Action.IGNORE
    assert interrupts.decide(ReceivedSignal(signal.SIGINT, from_terminal=True)) is Action.DETACH


def test_what_kill_sends_is_forwarded_however_often() -> None:
    interrupts = SignalPolicy(nobody)
    for signum in [*sorted(FORWARDED), signal.SIGINT, signal.SIGINT]:
        assert interrupts.decide(ReceivedSignal(signum, from_terminal=False, sender_pid=4711)) is Action.FORWARD
    assert interrupts.decide(ReceivedSignal(signal.SIGCHLD, from_terminal=False, sender_pid=4711)) is Action.IGNORE


def test_what_the_job_sends_is_not_sent_back() -> None:
    interrupts = SignalPolicy({4711}.__contains__)
    assert interrupts.decide(ReceivedSignal(signal.SIGTERM, from_terminal=False, sender_pid=4711)) is Action.IGNORE
    assert interrupts.decide(ReceivedSignal(signal.SIGTERM, from_terminal=False, sender_pid=4712)) is Action.FORWARD


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH"])
@pytest.mark.parametrize("more", WAYS)
def test_a_signal_for_the_wrapper_reaches_the_job_once(events: Events, name: str, more: dict[str, str]) -> None:
    fence = "SIGUSR2" if name != "SIGUSR2" else "SIGUSR1"
    job = counting_job(events.path, name, fence)
    with wrapping(job, environ(events, **more)) as wrapper:
        events.wait_for("job ready")
        wrapper.send_signal(signal.Signals[name])
        events.wait_for(f"{name} FORWARD")
        events.wait_for(f"job {name} 1")
        wrapper.send_signal(signal.Signals[fence])
        events.wait_for(f"job {fence} 1")
        os.kill(events.job_pid(), signal.SIGKILL)
        assert wrapper.wait(PATIENCE_S) == 128 + signal.SIGKILL
    assert f"job {name} 2" not in events.lines


@pytest.mark.parametrize(
    ("keys", "name"), [(b"\x03", "SIGINT"), (b"\x1c", "SIGQUIT"), (b"", "SIGWINCH")], ids=["int", "quit", "winch"]
)
@pytest.mark.parametrize("more", WAYS)
def test_a_signal_of_the_terminal_reaches_the_job_once(
    events: Events, keys: bytes, name: str, more: dict[str, str]
) -> None:
    job = counting_job(events.path, name, "SIGUSR1")
    with Terminal([*WRAPPER, *job], environ(events, **more)) as terminal:
        events.wait_for("job ready")
        if keys:
            terminal.type(keys)
        else:
            terminal.resize(33, 99)
        events.wait_for(f"{name} IGNORE")
        events.wait_for(f"job {name} 1")
        os.kill(terminal.process.pid, signal.SIGUSR1)
        events.wait_for("job SIGUSR1 1")
        os.kill(terminal.process.pid, signal.SIGTERM)
        assert terminal.wait() == 128 + signal.SIGTERM
    assert f"job {name} 2" not in events.lines


@needs_sigtimedwait
def test_a_second_ctrl_c_ends_the_wrapper_and_not_the_job(events: Events) -> None:
    job = counting_job(events.path, "SIGINT", "SIGHUP", "SIGUSR1")
    # The shell stands for the one that a person types into: the session goes on after the wrapper.
    shell = ["sh", "-c", 'trap "" INT; trap : USR1; "$@"; echo code=$?; read line; kill $line; exit 5', "sh"]
    defaults = [sys.executable, "-c", RESTORES_SIGINT]
    with Terminal([*shell, *defaults, *WRAPPER, *job], environ(events)) as terminal:
        events.wait_for("job ready")
        terminal.type(b"\x03")
        events.wait_for("job SIGINT 1")
        events.wait_for("SIGINT IGNORE")
        terminal.type(b"\x03")
        events.wait_for("SIGINT DETACH")
        terminal.wait_for(b"code=130")
        events.wait_for("job SIGINT 2")
        job_pid = events.job_pid()
        os.kill(job_pid, signal.SIGUSR1)
        events.wait_for("job SIGUSR1 1")
        terminal.type(b"%d\n" % job_pid)
        assert terminal.wait() == 5


@needs_sigtimedwait
def test_a_hang_up_that_only_the_session_leader_hears_of_is_forwarded(events: Events) -> None:
    job = counting_job(events.path, "SIGHUP", "SIGUSR1")
    with Terminal([*WRAPPER, *job], environ(events)) as terminal:
        events.wait_for("job ready")
        terminal.hang_up()
        events.wait_for("SIGHUP FORWARD")
        events.wait_for("job SIGHUP 1")
        os.kill(terminal.process.pid, signal.SIGUSR1)
        events.wait_for("job SIGUSR1 1")
        os.kill(terminal.process.pid, signal.SIGTERM)
        assert terminal.wait() == 128 + signal.SIGTERM
    assert "job SIGHUP 2" not in events.lines


@needs_sigtimedwait
def test_a_signal_of_the_job_to_its_own_group_does_not_come_back(events: Events) -> None:
    job = ["sh", "-c", 'trap "" TERM; kill -TERM 0; exec "$@"', "sh", *counting_job(events.path, "SIGTERM")]
    with wrapping(job, environ(events)) as wrapper:
        events.wait_for("SIGTERM IGNORE")
        events.wait_for("job ready")
        wrapper.send_signal(signal.SIGTERM)
        events.wait_for("job SIGTERM 1")
        wrapper.send_signal(signal.SIGUSR1)
        assert wrapper.wait(PATIENCE_S) == 128 + signal.SIGUSR1
    assert "job SIGTERM 2" not in events.lines


def test_ctrl_z_stops_the_wrapper_and_it_goes_on(events: Events) -> None:
    job = counting_job(events.path, "SIGUSR1")
    # Only in a session with somebody else's group in it does the kernel let a terminal stop a group.
    guard = [sys.executable, "-c", STARTS_IN_A_GROUP_OF_ITS_OWN, events.path]
    with Terminal([*guard, *WRAPPER, *job], environ(events)) as terminal:
        events.wait_for("job ready")
        terminal.type(b"\x1a")
        events.wait_for("guard stopped")
        events.wait_for("guard continued")
        wrapper_pid = int(next(line for line in events.lines if line.startswith("guard started")).split()[-1])
        os.kill(wrapper_pid, signal.SIGUSR1)
        events.wait_for("job SIGUSR1 1")
        os.kill(wrapper_pid, signal.SIGTERM)
        assert terminal.wait() == 128 + signal.SIGTERM


PAUSED = """
import sys
import time
from sentinel_collector.job.signals import Signals
with Signals() as signals:
    for _ in range(3):
        print("waiting", flush=True)
        print(signals.wait(0.3), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_pause_longer_than_the_wait_is_no_signal() -> None:
    with subprocess.Popen([sys.executable, "-c", PAUSED], stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout is not None
        for _ in range(3):
            assert waiting.stdout.readline() == "waiting\n"
            _until_asleep(waiting.pid)
            waiting.send_signal(signal.SIGSTOP)
            # Longer than the wait: its time is over when it goes on.
            time.sleep(0.5)
            waiting.send_signal(signal.SIGCONT)
            assert waiting.stdout.readline() == "[]\n"
        assert waiting.wait() == 0


ALARMED = """
import os, signal
from sentinel_collector.job.signals import Signals
with Signals() as signals:
    os.kill(os.getpid(), signal.SIGALRM)
    print(signals.wait(60), signal.getitimer(signal.ITIMER_REAL))
    signal.setitimer(signal.ITIMER_REAL, 0)
"""


@needs_sigtimedwait
def test_an_alarm_that_somebody_sends_leaves_no_timer_behind_that_could_end_the_collector() -> None:
    done = subprocess.run([sys.executable, "-c", ALARMED], capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout) == (0, "[] (0.0, 0.0)\n"), done.stderr


def _until_asleep(pid: int) -> None:
    while b") S " not in Path(f"/proc/{pid}/stat").read_bytes():
        time.sleep(0.01)
