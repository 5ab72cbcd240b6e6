"""The waiter and the recorder: whatever becomes of one of them, the job is what it would be without them."""

import itertools
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from fakes.process_harness import (
    COLLECTOR,
    DEADLINE_S,
    Home,
    busy,
    has_state,
    job_of,
    python,
    recorder_of,
    recorders_of,
    rows_of_file,
    timestamps,
    wait_until,
)
from fakes.terminal import Terminal

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the waiter needs sigwaitinfo")

COUNTS = """
import os, signal, sys, time
signums = [int(n) for n in signal.valid_signals() if n not in (9, 19)]
signal.pthread_sigmask(signal.SIG_BLOCK, signums)
def tell(line): os.write(1, f"{line}\\n".encode())
tell("ready")
while True:
    signum = signal.sigwaitinfo(signums).si_signo
    if signum == signal.SIGUSR2 and sys.argv[1:] == ["end"]: os._exit(7)
    tell(int(signum))
"""
"""Writes the number of each signal that it gets."""
TOLD_TO_END = """
import sys
print("ready", flush=True)
sys.stdin.readline()
print("out")
print("err", file=sys.stderr)
sys.exit(7)
"""


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def with_rows(home: Home, *words: str, interval_s: float = 0.1) -> tuple[list[str], Path]:
    output = home.directory / "rows.csv"
    return [
        COLLECTOR,
        "--connect",
        home.address,
        "--interval",
        str(interval_s),
        "--output",
        str(output),
        *words,
    ], output


def rows(output: Path) -> list[str]:
    return rows_of_file(output) if output.exists() and output.stat().st_size else []


def only_run(home: Home) -> dict[str, object]:
    (run,) = wait_until(lambda: [run for run in home.local_runs() if "status" in run], "the run is delivered")
    return dict(run)


def bare(home: Home, job: Sequence[str], text: str) -> tuple[int, str, str]:
    process = home.start(*job, stdin=subprocess.PIPE)
    out, err = process.communicate(text, timeout=DEADLINE_S)
    return process.returncode, out, err


def streams_of_job(err: str) -> str:
    return "".join(line for line in err.splitlines(keepends=True) if not line.startswith("sentinel-collector: "))


@pytest.mark.timeout(180)
def test_recorder_that_is_killed_each_second_loses_the_rows_around_the_kills_only(home: Home) -> None:
    home.start_uploader("--target", str(home.runs))
    words, _ = with_rows(home, "--wait", "30")
    job = python(TOLD_TO_END)
    process = home.start(*words, "--", *job, stdin=subprocess.PIPE)
    assert read_line(process) == "ready"
    killed: list[float] = []
    began = time.monotonic()
    while time.monotonic() - began < 10:
        time.sleep(1)
        os.kill(recorder_of(process.pid), signal.SIGKILL)
        killed.append(time.time())
        wait_until(lambda: recorders_of(process.pid), "another recorder")
    time.sleep(1)
    out, err = process.communicate("\n", timeout=DEADLINE_S)

    code, bare_out, bare_err = bare(home, job, "\n")
    assert (
        (process.returncode, "ready\n" + out, streams_of_job(err))
        == (code, bare_out, bare_err)
        == (7, "ready\nout\n", "err\n")
    )
    run = only_run(home)
    assert (run["status"], run["exit_code"]) == ("failed", 7)
    delivered = home.local_rows(run)
    assert len(killed) >= 8
    times = timestamps(delivered)
    assert times == sorted(set(times))
    gaps = [(a, b) for a, b in itertools.pairwise(times) if b - a > 0.25]
    assert all(any(a - 0.3 <= at <= b for at in killed) for a, b in gaps), (gaps, killed)
    assert all(b - a < 2.0 for a, b in gaps), gaps
    assert "was killed by signal 9 and is started again; the job continues" in err


def test_job_lives_on_and_is_recorded_when_the_waiter_is_killed(home: Home) -> None:
    home.start_uploader("--target", str(home.runs))
    words, output = with_rows(home, "--wait", "30")
    ended = home.directory / "ended"
    job = ["sh", "-c", f"sleep 2; : > {ended}; exit 7"]
    process = home.start(*words, "--", *job)
    wait_until(lambda: len(rows(output)) >= 3, "rows are taken")
    recorder = recorder_of(process.pid)
    process.kill()
    assert process.wait(DEADLINE_S) == -signal.SIGKILL
    before = len(rows(output))
    wait_until(lambda: len(rows(output)) > before + 3, "it is recorded on")
    wait_until(ended.exists, "the job ends")
    run = only_run(home)
    assert (run["status"], run["exit_code"]) == ("finished", None)
    assert home.local_rows(run) == rows(output)
    wait_until(lambda: not Path(f"/proc/{recorder}").exists() or has_state(recorder, "Z"), "the recorder ends")


def test_stopped_recorder_neither_delays_signals_nor_the_end_and_the_run_is_delivered(home: Home) -> None:
    home.start_uploader("--target", str(home.runs))
    words, output = with_rows(home, "--wait", "30")
    process = home.start(*words, "--", *python(COUNTS), "end")
    assert read_line(process) == "ready"
    wait_until(lambda: len(rows(output)) >= 3, "rows are taken")
    recorder = recorder_of(process.pid)
    os.kill(recorder, signal.SIGSTOP)
    wait_until(lambda: has_state(recorder, "T"), "the recorder is stopped")
    process.send_signal(signal.SIGTERM)
    assert read_line(process) == str(int(signal.SIGTERM))
    process.send_signal(signal.SIGUSR2)
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 7
    run = only_run(home)
    assert (run["status"], run["exit_code"]) == ("failed", 7)
    assert home.local_rows(run) == rows(output)


def test_recorder_that_cannot_be_imported_leaves_the_job_alone(home: Home) -> None:
    # Another interpreter's packages would be in the way in the same manner.
    code = "import sys; sys.modules['msgspec'] = None; from sentinel_collector.cli import main; sys.exit(main())"
    process = home.start(*python(code), "--", "sh", "-c", "echo out; sleep 1; exit 7")
    out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out) == (7, "out\n")
    lines = err.splitlines()
    assert 1 <= len(lines) <= 4, err
    assert all("msgspec" in line or "is started again" in line or "failed again" in line for line in lines), err


def test_recorder_that_dies_at_the_end_is_started_again_and_the_run_gets_its_exit_code(home: Home) -> None:
    words, output = with_rows(home, "--wait", "30")
    process = home.start(*words, "--", "sh", "-c", "sleep 1; exit 7")
    wait_until(lambda: len(rows(output)) >= 3, "rows are taken")
    first, job = recorder_of(process.pid), job_of(process.pid)
    wait_until(lambda: not Path(f"/proc/{job}").exists(), "the job was reaped")
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: recorders_of(process.pid) not in ([], [first]), "another recorder")
    home.start_uploader("--target", str(home.runs))
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 7
    run = only_run(home)
    assert (run["status"], run["exit_code"]) == ("failed", 7)


def test_signal_ends_the_wait_for_a_delivery_at_any_time(home: Home) -> None:
    words, output = with_rows(home, "--wait", "50")
    process = home.start(*words, "--", "sh", "-c", "exit 7")
    wait_until(lambda: rows(output), "the last row is taken")
    wait_until(lambda: len(recorders_of(process.pid)) == 1, "there is a recorder")
    began = time.monotonic()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 7
    assert time.monotonic() - began < 10


ALL = sorted(int(number) for number in signal.valid_signals() if number not in {signal.SIGKILL, signal.SIGSTOP})


def test_every_signal_for_the_waiter_reaches_the_job_once(home: Home) -> None:
    process = home.start(COLLECTOR, "--quiet", "--connect", home.address, "--wait", "0", "--", *python(COUNTS))
    assert read_line(process) == "ready"
    for signum in ALL:
        process.send_signal(signum)
        assert read_line(process) == str(signum)
    for pid in (job_of(process.pid), process.pid):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1, signal.SIGRTMIN + 3, signal.SIGALRM])
@pytest.mark.parametrize("whole", ["group", "cgroup"])
def test_signal_for_everybody_reaches_the_job_once(home: Home, signum: int, whole: str) -> None:
    words = [COLLECTOR, "--quiet", "--connect", home.address, "--wait", "0", "--interval", "0.1"]
    process = home.start(*words, "--", *python(COUNTS), start_new_session=True)
    assert read_line(process) == "ready"
    for _ in range(5):
        if whole == "group":
            os.killpg(process.pid, signum)
        else:
            # As service managers do: one after the other, in the order of the pids.
            for pid in sorted([process.pid, job_of(process.pid), recorder_of(process.pid)]):
                os.kill(pid, signum)
        assert read_line(process) == str(int(signum))
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGUSR2)
    assert read_line(process) == str(int(signal.SIGUSR2))
    os.killpg(process.pid, signal.SIGKILL)


def test_signal_that_the_recorder_got_earlier_does_not_hide_one_for_the_waiter(home: Home) -> None:
    words = [COLLECTOR, "--quiet", "--connect", home.address, "--wait", "0", "--interval", "0.1"]
    process = home.start(*words, "--", *python(COUNTS))
    assert read_line(process) == "ready"
    other = subprocess.Popen(["sh", "-c", f"kill -TERM {recorder_of(process.pid)}"])
    other.wait(DEADLINE_S)
    process.send_signal(signal.SIGTERM)
    assert read_line(process) == str(int(signal.SIGTERM))
    for pid in (job_of(process.pid), process.pid):
        os.kill(pid, signal.SIGKILL)


STOPS = "import os, signal, sys\nprint('ready', flush=True)\nos.kill(os.getpid(), int(sys.argv[1]))\nsys.exit(7)"


@pytest.mark.parametrize("signum", [signal.SIGSTOP, signal.SIGTSTP])
@pytest.mark.parametrize("whole", [False, True])
def test_job_that_stops_itself_is_shown_as_stopped(home: Home, signum: int, whole: bool) -> None:
    words = [COLLECTOR, "--quiet", "--connect", home.address, "--wait", "0", "--"]
    # Its parent, in another group of the session, makes the group one that may be stopped.
    process = home.start(*words, *python(STOPS), str(int(signum)), process_group=0)
    assert read_line(process) == "ready"
    found = os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    assert found is not None
    assert (found.si_code, found.si_status) == (os.CLD_STOPPED, signum)
    if whole:
        os.killpg(process.pid, signal.SIGCONT)
    else:
        os.kill(process.pid, signal.SIGCONT)
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 7


def test_waiter_goes_on_when_only_the_job_is_continued(home: Home) -> None:
    words = [COLLECTOR, "--quiet", "--connect", home.address, "--wait", "0", "--interval", "0.1", "--"]
    process = home.start(*words, *python(STOPS), str(int(signal.SIGSTOP)), process_group=0)
    assert read_line(process) == "ready"
    wait_until(lambda: has_state(process.pid, "T"), "the collector is stopped")
    os.kill(job_of(process.pid), signal.SIGCONT)
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 7


SHOW_SIGNALS = (
    "grep -E '^Sig(Blk|Ign|Cgt)|^NSpgid' /proc/self/status | grep -v NSpgid; ulimit -a; umask; pwd; ls /proc/self/fd"
)


@pytest.mark.parametrize(
    "prefix",
    [[], ["env", "--ignore-signal=PIPE,XFSZ,CHLD"], ["env", "--ignore-signal"], ["env", "--block-signal=USR2,ALRM"]],
)
def test_job_finds_signals_and_limits_as_the_command_found_them(home: Home, prefix: list[str]) -> None:
    direct = home.run(*prefix, "sh", "-c", SHOW_SIGNALS)
    wrapped = home.run(
        *prefix, COLLECTOR, "--quiet", "--connect", home.address, "--wait", "0", "--", "sh", "-c", SHOW_SIGNALS
    )
    assert wrapped.stdout == direct.stdout
    assert wrapped.returncode == direct.returncode == 0


def test_nothing_of_the_job_is_held_open_by_us(home: Home) -> None:
    read_fd, write_fd = os.pipe()
    process = home.start(
        COLLECTOR, "--connect", home.address, "--wait", "20", "--", "sh", "-c", f"exec <&- >&- {write_fd}>&-; sleep 30",
        stdin=subprocess.PIPE, pass_fds=[write_fd],
    )  # fmt: skip
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as inherited:
        assert inherited.read() == b""
    assert process.stdout is not None
    assert process.stdout.read() == ""
    assert process.stdin is not None

    def write_until_told() -> bool:
        assert process.stdin is not None
        try:
            os.write(process.stdin.fileno(), b"x")
        except BrokenPipeError:
            return True
        return False

    wait_until(write_until_told, "the writer is told")
    assert process.poll() is None
    for pid in (job_of(process.pid), process.pid):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("limit", [3, 4, 5, 7, 9, 12, 16, 24, 32, 64])
def test_exit_code_is_the_job_s_under_any_limit_of_descriptors(home: Home, limit: int) -> None:
    limited = ["sh", "-c", 'ulimit -n "$0"; exec "$@"', str(limit)]
    # Three descriptors are too few for a program that needs libraries.
    job = ["/bin/sh", "-c", "exit 7"] if limit == 3 else ["/bin/sleep", "0.2"]
    direct = home.run(*limited, *job)
    done = home.run(*limited, COLLECTOR, "--connect", home.address, "--wait", "0", "--", *job)
    assert done.returncode == direct.returncode, done.stderr
    assert done.stderr.count("sentinel-collector: ") >= 1


def test_exit_code_is_the_job_s_where_there_is_no_process_for_a_recorder(home: Home) -> None:
    def limit() -> None:
        os.setgid(65534)
        os.setuid(54321)
        resource.setrlimit(resource.RLIMIT_NPROC, (2, 2))

    if os.getuid():
        pytest.skip("needs root to be another user, who has no processes")
    home.directory.chmod(0o777)
    done = home.run("/bin/sh", "-c", "exit 7", preexec_fn=limit)
    assert done.returncode == 7


ORPHANS = """
import os, sys, time
for _ in range(int(sys.argv[1])):
    if os.fork() == 0:
        if os.fork() == 0:
            end = time.process_time() + 0.05
            while time.process_time() < end: pass
        os._exit(0)
    os.wait()
time.sleep(3)
"""


def test_orphans_are_reaped_at_once_and_their_usage_is_kept(home: Home) -> None:
    summary = home.directory / "summary.json"
    home.start_uploader("--target", str(home.runs))
    words = [
        COLLECTOR,
        "--connect",
        home.address,
        "--interval",
        "60",
        "--accounting",
        "proc",
        "--summary-json",
        str(summary),
    ]
    process = home.start(*words, "--wait", "30", "--", *python(ORPHANS), "10")
    seen = 0
    while process.poll() is None:
        zombies = [pid for pid in _children(process.pid) if has_state_or_gone(pid, "Z")]
        seen = max(seen, len(zombies))
        time.sleep(0.02)
    assert seen <= 3
    run = only_run(home)
    statistics = run["statistics"]
    assert isinstance(statistics, dict)
    used = statistics["process_utime"]["total"] + statistics["process_stime"]["total"]
    assert 0.5 <= used <= 1.2


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def has_state_or_gone(pid: int, letter: str) -> bool:
    try:
        return has_state(pid, letter)
    except OSError:
        return False


def test_processes_that_the_job_leaves_running_are_named(home: Home) -> None:
    home.start_uploader("--target", str(home.runs))
    words, _ = with_rows(home, "--wait", "30")
    done = home.run(*words, "--", "sh", "-c", "sleep 20 >/dev/null 2>&1 & sleep 0.5; echo $!")
    (line,) = [line for line in done.stderr.splitlines() if "left" in line and "running" in line]
    pid = int(done.stdout)
    assert f"sleep ({pid})" in line
    os.kill(pid, signal.SIGKILL)


def test_ctrl_c_reaches_a_job_that_has_a_process_group_of_its_own(home: Home) -> None:
    code = "import os\nos.setpgrp()\n" + COUNTS.replace('tell("ready")', 'tell("ready")\nsignums = [signal.SIGINT]')
    with Terminal(
        [COLLECTOR, "--quiet", "--connect", home.address, "--wait", "0", "--", *python(code)], home.environ
    ) as terminal:
        terminal.wait_for(b"ready")
        terminal.type(b"\x03")
        terminal.wait_for(b"2\r\n")
        os.kill(job_of(terminal.process.pid), signal.SIGKILL)
        assert terminal.wait() == 128 + signal.SIGKILL


def test_alarm_that_was_set_before_the_command_is_the_job_s(home: Home) -> None:
    prefix = python("import os, signal, sys\nsignal.alarm(1)\nos.execvp(sys.argv[1], sys.argv[1:])")
    done = home.run(*prefix, COLLECTOR, "--quiet", "--connect", home.address, "--wait", "0", "--", "sleep", "20")
    assert done.returncode == 128 + signal.SIGALRM


def test_figures_of_the_waiter_and_the_recorder_are_not_the_job_s(home: Home) -> None:
    words, output = with_rows(home, "--wait", "0", "--accounting", "proc")
    done = home.run(*words, "--", *busy(0.5))
    assert done.returncode == 0
    assert all(row.split(",")[22] == "0" for row in rows(output))
