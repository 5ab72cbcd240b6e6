"""The wrapped job: as it would be without a wrapper, from its first descriptor to its exit code."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.minimal_collector import WRAPPER, Events, counting_job, wrapping
from fakes.unprivileged import unprivileged

from sentinel_collector.job.process import Job, JobStartError
from sentinel_collector.job.signals import Signals
from sentinel_protocol.common.errors import SentinelStreamError

PATIENCE_S = 20.0
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def signals() -> Iterator[Signals]:
    with Signals() as opened:
        yield opened


@pytest.fixture
def events(tmp_path: Path) -> Iterator[Events]:
    opened = Events(str(tmp_path / "events"))
    yield opened
    opened.close()


def environ(events: Events) -> dict[str, str]:
    return {**os.environ, "WRAPPER_EVENTS": events.path}


def run(job: Job, signals: Signals) -> int:
    while not job.has_ended():
        assert signals.wait(PATIENCE_S), "the job does not end"
    job.reap()
    assert job.exit_code is not None
    return job.exit_code


def program(path: Path, content: str | bytes, mode: int = 0o755) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(
    ("script", "exit_code"),
    [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -KILL $$", 137), ("kill -TERM $$", 143)],
)
def test_the_exit_code_is_the_jobs(signals: Signals, script: str, exit_code: int) -> None:
    job = Job.spawn(["sh", "-c", script], os.environ, signals)
    assert job.exit_code is None
    assert run(job, signals) == exit_code


def start_error(argv: list[str], signals: Signals) -> tuple[int, str]:
    with pytest.raises(JobStartError) as caught:
        Job.spawn(argv, os.environ, signals)
    assert isinstance(caught.value, SentinelStreamError)
    return caught.value.exit_code, str(caught.value)


def test_a_command_that_is_not_there_is_127(signals: Signals, tmp_path: Path) -> None:
    assert start_error(["no-such-command"], signals) == (127, "no-such-command: command not found")
    missing = str(tmp_path / "missing")
    assert start_error([missing], signals) == (127, f"{missing}: No such file or directory")
    assert start_error([""], signals) == (127, "'': command not found")
    orphaned = program(tmp_path / "orphaned", "#!/no/such/interpreter\n")
    assert start_error([orphaned], signals) == (127, f"{orphaned}: its interpreter or loader was not found")


def test_a_command_that_cannot_be_executed_is_126(signals: Signals, tmp_path: Path) -> None:
    plain = program(tmp_path / "plain", "exit 0\n", mode=0o644)
    assert start_error([plain], signals) == (126, f"{plain}: Permission denied")
    assert start_error([str(tmp_path)], signals) == (126, f"{tmp_path}: Is a directory")
    binary = program(tmp_path / "binary", b"\x00\x01\x02\x03")
    assert start_error([binary], signals) == (126, f"{binary}: Exec format error")


def test_a_directory_of_the_path_that_cannot_be_searched_does_not_turn_127_into_126(
    signals: Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    monkeypatch.setenv("PATH", f"{closed}:{os.environ['PATH']}")
    with unprivileged(), pytest.raises(PermissionError):
        os.posix_spawnp("no-such-command", ["no-such-command"], os.environ)
    with unprivileged():
        error = start_error(["no-such-command"], signals)
    assert error == (127, "no-such-command: command not found")


def test_a_script_without_an_interpreter_runs_in_the_shell(signals: Signals, tmp_path: Path) -> None:
    script = program(tmp_path / "script", 'exit "$1"\n')
    assert run(Job.spawn([script, "9"], os.environ, signals), signals) == 9


def test_a_signal_that_comes_before_the_job_keeps_it_from_starting(signals: Signals, tmp_path: Path) -> None:
    started = tmp_path / "started"
    signal.raise_signal(signal.SIGWINCH)
    signal.raise_signal(signal.SIGINT)
    error = start_error(["touch", str(started)], signals)
    assert error == (130, "touch: not started, SIGINT came first")
    assert not started.exists()


def test_an_ended_job_stays_a_zombie_until_it_is_reaped(signals: Signals) -> None:
    job = Job.spawn(["true"], os.environ, signals)
    signals.wait(PATIENCE_S)
    assert job.has_ended()
    assert job.has_ended()
    assert job.exit_code is None
    assert job.forward(signal.SIGTERM), "a zombie's pid is still its own"
    usage = job.reap()
    assert usage.ru_maxrss > 0
    assert job.reap() is usage
    assert job.has_ended()
    assert not job.forward(signal.SIGTERM), "the pid may be another process by now"
    assert job.exit_code == 0


def test_a_stopped_job_has_not_ended(events: Events) -> None:
    with wrapping(counting_job(events.path), environ(events)) as wrapper:
        events.wait_for("job ready")
        job_pid = events.job_pid()
        os.kill(job_pid, signal.SIGSTOP)
        events.wait_for("stopped False")
        os.kill(job_pid, signal.SIGCONT)
        events.wait_for("continued False")
        os.kill(job_pid, signal.SIGKILL)
        events.wait_for("ended")
        assert wrapper.wait(PATIENCE_S) == 128 + signal.SIGKILL


LOOK_AROUND = """
grep -E '^Sig(Pnd|Blk|Ign|Cgt)' /proc/self/status
ls /proc/self/fd
umask
ulimit -a
nice
pwd
tr '\\0' '\\n' < /proc/self/environ | sort
"""


def without_signals_of_glibc(seen: str) -> str:
    """32 and 33 are glibc's own: its posix_spawn ignores them in every child, and its programs set them anew."""
    found = re.search(r"SigIgn:\t(\w+)", seen)
    assert found is not None
    return seen.replace(found[0], f"SigIgn:\t{int(found[1], 16) & ~(3 << 31):016x}")


@linux_only
@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "nohup",
        "env --ignore-signal=INT,QUIT,USR1,WINCH",
        "env --block-signal=USR2,ALRM",
        "env -i PATH=/usr/bin:/bin LC_ALL=",
        "env -i PATH=/usr/bin:/bin LC_CTYPE=C.UTF-8",
    ],
)
def test_the_job_sees_what_it_would_see_without_us(prefix: str) -> None:
    read_fd, write_fd = os.pipe()
    try:
        direct, wrapped = (
            subprocess.run(
                [*prefix.split(), *wrapper, "sh", "-c", LOOK_AROUND],
                pass_fds=(read_fd, write_fd),
                capture_output=True,
                check=True,
                text=True,
            ).stdout
            for wrapper in ((), WRAPPER)
        )
    finally:
        os.close(read_fd)
        os.close(write_fd)
    assert {str(read_fd), str(write_fd)} <= set(direct.splitlines())
    assert without_signals_of_glibc(wrapped) == without_signals_of_glibc(direct)


@linux_only
def test_an_ignored_hang_up_is_ignored_by_the_wrapper_too(events: Events) -> None:
    job = counting_job(events.path, "SIGUSR1")
    with wrapping(job, environ(events), prefix=["env", "--ignore-signal=HUP"]) as wrapper:
        events.wait_for("job ready")
        os.killpg(wrapper.pid, signal.SIGHUP)
        wrapper.send_signal(signal.SIGUSR1)
        events.wait_for("job SIGUSR1 1")
        wrapper.send_signal(signal.SIGTERM)
        assert wrapper.wait(PATIENCE_S) == 128 + signal.SIGTERM
    assert not [line for line in events.lines if "HUP" in line]


@linux_only
def test_the_exit_code_survives_an_ignored_sigchld() -> None:
    ignoring = ["env", "--ignore-signal=CHLD"]
    assert subprocess.run([*ignoring, *WRAPPER, "sh", "-c", "exit 3"]).returncode == 3
    unaware = "import os, sys; os.waitpid(os.posix_spawnp('true', ['true'], os.environ), 0)"
    assert (
        b"ChildProcessError" in subprocess.run([*ignoring, sys.executable, "-c", unaware], capture_output=True).stderr
    )


def test_our_own_descriptors_do_not_reach_the_job_and_inherited_ones_do(signals: Signals, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    with open(os.devnull) as opened:
        own_fd = os.dup2(opened.fileno(), 50, inheritable=False)
        inherited_fd = os.dup2(opened.fileno(), 60, inheritable=True)
    try:
        assert run(Job.spawn(["sh", "-c", f"ls /dev/fd > {seen}"], os.environ, signals), signals) == 0
    finally:
        os.close(own_fd)
        os.close(inherited_fd)
    assert "60" in seen.read_text().split()
    assert "50" not in seen.read_text().split()


@linux_only
def test_the_job_is_in_our_process_group(signals: Signals) -> None:
    job = Job.spawn(["sleep", "60"], os.environ, signals)
    try:
        assert os.getpgid(job.pid) == os.getpgrp()
        assert os.getsid(job.pid) == os.getsid(0)
    finally:
        assert job.forward(signal.SIGKILL)
        assert run(job, signals) == 128 + signal.SIGKILL


@linux_only
def test_the_job_and_its_descendants_are_recognised(signals: Signals) -> None:
    job = Job.spawn(["sh", "-c", "sh -c 'kill -USR1 $1; exec sleep 60' sh $PPID & wait"], os.environ, signals)
    sender_pid = signals.wait(PATIENCE_S)[0].sender_pid
    try:
        assert sender_pid != job.pid
        assert job.contains(job.pid)
        assert job.contains(sender_pid)
        assert not job.contains(os.getpid())
        assert not job.contains(os.getppid())
        assert not job.contains(0)
    finally:
        os.kill(sender_pid, signal.SIGKILL)
        run(job, signals)
    assert not job.contains(sender_pid)


IMPORTED = """
import sys
import argparse, signal
before = set(sys.modules)
import sentinel_collector.job.process, sentinel_collector.job.signals
print(*sorted(set(sys.modules) - before))
"""


def test_nothing_heavy_is_imported_before_the_job_starts() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {
        "__future__", "errno", "sentinel_collector", "sentinel_collector.job", "sentinel_collector.job.process",
        "sentinel_collector.job.signals", "sentinel_collector.procfs",
        "sentinel_protocol", "sentinel_protocol.common", "sentinel_protocol.common.errors"
    }  # fmt: skip
