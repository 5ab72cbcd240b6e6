"""This user's own uploader: found or started, one for all collectors, gone when it has delivered everything."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from fakes.process_harness import COLLECTOR, DEADLINE_S, UPLOADER, Home, wait_until

from sentinel_collector.delivery.local_uploader import LocalUploaderSupervisor
from sentinel_protocol.common.local_uploader import (
    LOCAL_UPLOADER_VARIABLES,
    LocalUploaderPaths,
    local_uploader_paths,
)


@pytest.fixture
def place(home: Home) -> LocalUploaderPaths:
    return local_uploader_paths(home.environ)


class Starter:
    """Starts agents as a collector does, in this process."""

    def __init__(self, home: Home, place: LocalUploaderPaths) -> None:
        self.place = place
        self.warnings: list[str] = []
        self.started: list[int] = []
        self.agent = LocalUploaderSupervisor(
            place, environ=home.environ, warn=self.warnings.append, on_started=self.started.append
        )
        self.now = 1000.0

    def ensure(self, later_s: float = 0.0) -> None:
        self.now += later_s
        self.agent.ensure_running(self.now)

    def close(self) -> None:
        for pid in self.started:
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)
        wait_until(self._reaped, "agents are gone")

    def _reaped(self) -> bool:
        for pid in self.started:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                continue
        return not any(psutil.pid_exists(pid) for pid in self.started)


@pytest.fixture
def starter(home: Home, place: LocalUploaderPaths) -> Iterator[Starter]:
    made = Starter(home, place)
    yield made
    made.close()


def ready(place: LocalUploaderPaths) -> bool:
    try:
        return "uploader ready" in Path(place.log_path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return False


def test_an_agent_is_started_once_and_found_from_then_on(starter: Starter) -> None:
    starter.ensure()
    (pid,) = starter.started
    # While it starts nobody else is, however often we look.
    starter.ensure(10.0)
    starter.ensure(100.0)
    assert starter.started == [pid]
    wait_until(lambda: ready(starter.place), "the agent listens")
    starter.ensure(1000.0)
    assert starter.started == [pid]
    assert os.getsid(pid) == pid
    assert Path(starter.place.log_path).stat().st_mode & 0o777 == 0o600
    assert Path(starter.place.socket_path).parent.stat().st_mode & 0o777 == 0o700


def test_a_killed_agent_s_socket_does_no_harm(starter: Starter) -> None:
    starter.ensure()
    wait_until(lambda: ready(starter.place), "the agent listens")
    os.kill(starter.started[0], signal.SIGKILL)
    wait_until(lambda: is_over(starter.started[0]), "the agent is dead")
    assert Path(starter.place.socket_path).exists(), "there is no stale socket to try"
    Path(starter.place.log_path).write_text("")
    starter.ensure(1000.0)
    assert len(starter.started) == 2
    wait_until(lambda: ready(starter.place), "the second agent listens")
    starter.ensure(1000.0)
    assert len(starter.started) == 2


def test_an_agent_gets_none_of_the_descriptors_that_our_parent_gave_us(starter: Starter) -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)  # noqa: FBT003 -- the standard library takes it so
    starter.ensure()
    wait_until(lambda: ready(starter.place), "the agent listens")
    os.close(write)
    # The pipe ends: the agent does not hold it open.
    assert os.read(read, 1) == b""
    os.close(read)
    targets = [os.readlink(f"/proc/{starter.started[0]}/fd/{fd}") for fd in (0, 1, 2)]
    assert targets == ["/dev/null", starter.place.log_path, starter.place.log_path]


def test_an_agent_holds_no_directory_and_finds_what_was_named_from_there(home: Home) -> None:
    work = home.directory / "work"
    work.mkdir()
    (work / "token").write_text("secret")
    environ = home.environ | {"SENTINEL_TARGET": "out", "SENTINEL_API_TOKEN_FILE": "token", "PYTHONPATH": "lib"}
    done = home.collector("--interval", "0.1", "--", "true", env=environ, cwd=work)
    assert f"delivered to {work}/out/" in done.stderr
    here = os.getcwd()
    os.chdir(work)
    try:
        place = local_uploader_paths(environ)
    finally:
        os.chdir(here)
    (pid,) = agents(place)
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    seen = dict(line.split("=", 1) for line in Path(f"/proc/{pid}/environ").read_text().split("\0") if line)
    assert seen["SENTINEL_API_TOKEN_FILE"] == f"{work}/token"
    assert seen["PYTHONPATH"] == f"{work}/lib"


CAP_SYS_NICE, CAP_SYS_RESOURCE = 23, 24


def has_capability(number: int) -> bool:
    """Root has not always all of them (`capabilities(7)`)."""
    _, _, found = Path("/proc/self/status").read_text(encoding="utf-8").partition("CapEff:")
    return bool(int(found.split()[0], 16) >> number & 1)


FIRST_JOBS = """
import os, resource, signal, subprocess, sys
for name in ("AS", "CPU", "DATA", "FSIZE", "NOFILE", "NPROC"):
    number = getattr(resource, f"RLIMIT_{name}")
    least = {"NOFILE": 64, "NPROC": 5000, "CPU": 500}.get(name, 1 << 31)
    resource.setrlimit(number, (least, least if sys.argv[1] == "hard" else resource.getrlimit(number)[1]))
os.nice(7)
if sys.argv[1] == "hard":
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
open("/proc/self/oom_score_adj", "w").write("300")
os.umask(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
os.environ["SECRET_OF_THE_JOB"] = os.environ["LD_PRELOAD"] = ""
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_an_agent_keeps_nothing_of_the_first_job(home: Home, place: LocalUploaderPaths) -> None:
    words = (COLLECTOR, "--interval", "0.1", "--", "true")
    done = home.run(sys.executable, "-c", FIRST_JOBS, "hard" if has_capability(CAP_SYS_RESOURCE) else "soft", *words)
    assert done.returncode == 0, done.stderr
    (pid,) = agents(place)
    for name in ("AS", "CPU", "DATA", "FSIZE", "NOFILE", "NPROC"):
        soft, hard = resource.prlimit(pid, getattr(resource, f"RLIMIT_{name}"))
        assert soft == hard, name
        assert hard == resource.RLIM_INFINITY or name == "NOFILE" or not has_capability(CAP_SYS_RESOURCE), name
    assert os.sched_getaffinity(pid) == os.sched_getaffinity(0)
    assert os.sched_getscheduler(pid) == os.SCHED_OTHER
    if has_capability(CAP_SYS_NICE):
        assert os.getpriority(os.PRIO_PROCESS, pid) == 0
    if has_capability(CAP_SYS_RESOURCE):
        assert resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] > 1024
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "0\n"
    seen = {line.partition("=")[0] for line in Path(f"/proc/{pid}/environ").read_text().split("\0") if line}
    assert seen <= LOCAL_UPLOADER_VARIABLES | {"PWD", "OLDPWD", "SHLVL", "_"}
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not agents(place), "a signal that the job ignores and blocks ends it")


def test_an_agent_with_hard_limits_of_an_earlier_job_is_replaced(home: Home, place: LocalUploaderPaths) -> None:
    small = "import os, resource, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
    small += "os.execv(sys.argv[1], sys.argv[1:])"
    serve = (UPLOADER, "serve", "--bind", place.url, "--spool", place.spool_dir, "--exit-when-idle", "60")
    Path(place.socket_path).parent.mkdir(mode=0o700)
    limited = home.start(sys.executable, "-c", small, *serve)
    wait_until(lambda: Path(place.socket_path).exists(), "it listens")
    done = home.collector("--interval", "0.1", "--", "true")
    assert "delivered to" in done.stderr
    assert limited.wait(DEADLINE_S) == -signal.SIGKILL
    (pid,) = agents(place)
    home.collector("--interval", "0.1", "--", "true")
    assert agents(place) == [pid]


def test_what_an_earlier_agent_said_is_not_put_into_the_mouth_of_this_one(
    home: Home, place: LocalUploaderPaths
) -> None:
    log = Path(place.log_path)
    log.parent.mkdir(parents=True)
    log.write_text("the one before has failed\n")
    broken = Home(home.directory, home.runtime, {})
    broken.environ["SENTINEL_SPOOL_MAX"] = "nonsense"
    starter = Starter(broken, place)
    assert starter.agent.last_log_line() == ""
    starter.ensure()
    wait_until(lambda: all(is_over(pid) for pid in starter.started), "the agent ends")
    assert "nonsense" in starter.agent.last_log_line()
    assert log.read_text().startswith("the one before has failed\n")
    starter.close()


def test_an_agent_that_cannot_be_started_is_told_once(home: Home, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    place = LocalUploaderPaths(f"{tmp_path}/file/x.sock", str(tmp_path / "spool"), str(tmp_path / "log"))
    starter = Starter(home, place)
    for _ in range(5):
        starter.ensure(1000.0)
    assert len(starter.warnings) == 1
    assert "cannot start an uploader" in starter.warnings[0]
    assert starter.started == []


def test_an_agent_that_ends_at_once_is_tried_again_with_pauses(home: Home, place: LocalUploaderPaths) -> None:
    broken = Home(home.directory, home.runtime, {})
    broken.environ["SENTINEL_SPOOL_MAX"] = "nonsense"
    starter = Starter(broken, place)
    for _ in range(60):
        starter.ensure(1.0)
        wait_until(lambda: all(is_over(pid) for pid in starter.started), "the agent ends")
    assert 4 <= len(starter.started) <= 8
    assert "nonsense" in starter.agent.last_log_line()
    starter.close()


def is_over(pid: int) -> bool:
    """A child can be waited for, or was: a zombie whose other threads are still ending cannot."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    except ChildProcessError:
        return True


def agents(place: LocalUploaderPaths) -> list[int]:
    return [
        process.pid
        for process in psutil.process_iter(["cmdline", "status"])
        if place.url in (process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def test_two_collectors_at_once_share_one_agent(home: Home, place: LocalUploaderPaths) -> None:
    words = (COLLECTOR, "--interval", "0.1", "--quiet", "--")
    both = [home.start(*words, "sleep", "0.5") for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=DEADLINE_S)
        assert (process.returncode, err) == (0, "")
    # The other one finds the spool taken and leaves, while this one serves both.
    wait_until(lambda: len(agents(place)) == 1, "one agent is left")
    wait_until(lambda: len(home.local_runs()) == 2, "both runs are there")
    assert {run["state"] for run in home.local_runs()} == {"finished"}


def test_what_lies_in_the_job_s_directory_is_not_taken_for_the_agent(home: Home) -> None:
    for name in ("sentinel_uploader", "sentinel_protocol", "sentinel_collector"):
        (home.directory / name).mkdir()
        (home.directory / name / "__init__.py").write_text("raise SystemExit('taken')")
        (home.directory / name / "__main__.py").write_text("raise SystemExit('taken')")
    done = home.collector("--interval", "0.1", "--", "true")
    assert done.returncode == 0
    assert "delivered to" in done.stderr


def test_a_killed_agent_is_started_again_in_the_middle_of_a_run(home: Home, place: LocalUploaderPaths) -> None:
    output = home.directory / "rows.csv"
    job = home.start(COLLECTOR, "--interval", "0.1", "--output", str(output), "--", "cat", stdin=subprocess.PIPE)
    first = wait_until(lambda: agents(place), "an agent is there")
    wait_until(lambda: [run for run in home.status() if run["rows_waiting"] > 2], "rows are with the agent")
    os.kill(first[0], signal.SIGKILL)
    wait_until(lambda: set(agents(place)) - set(first), "another agent is there")
    _, err = job.communicate("", timeout=DEADLINE_S)
    assert job.returncode == 0, err
    (run,) = home.local_runs()
    assert home.local_rows(run) == output.read_text().splitlines()[1:]


def test_both_commands_find_each_other_where_the_runtime_directory_is_too_deep(home: Home) -> None:
    deep = home.directory / ("x" * 100)
    deep.mkdir()
    # The processes of this home are recognised by their runtime directory.
    deep_home = Home(home.directory, deep, home.environ)
    deep_home.environ["TMPDIR"] = str(home.runtime)
    place = local_uploader_paths(deep_home.environ)
    try:
        agent = deep_home.start(UPLOADER, "serve", "--exit-when-idle", "60")
        wait_until(lambda: Path(place.socket_path).exists(), "the agent listens")
        done = deep_home.collector("-v", "--interval", "0.1", "--", "true")
        assert done.returncode == 0
        assert "1 sample delivered to" in done.stderr
        assert place.socket_path in done.stderr
        agent.terminate()
        agent.wait(DEADLINE_S)
        done = deep_home.collector("-v", "--interval", "0.1", "--", "true")
        assert "longer than the 107 bytes of a Unix socket's path" in done.stderr
        assert "1 sample delivered to" in done.stderr
    finally:
        deep_home.close()
    assert len(deep_home.local_runs()) == 2
    assert Path(place.socket_path).parent.stat().st_mode & 0o777 == 0o700


def test_an_agent_is_found_from_where_the_runtime_directory_is_another(home: Home, place: LocalUploaderPaths) -> None:
    home.start(UPLOADER, "serve", "--exit-when-idle", "60")
    elsewhere = home.runtime / "elsewhere"
    elsewhere.mkdir()
    environ = home.environ | {"XDG_RUNTIME_DIR": str(elsewhere)}
    wait_until(lambda: local_uploader_paths(environ) == place, "the agent says where it listens")
    done = home.collector("-v", "--interval", "0.1", "--", "true", env=environ)
    assert "1 sample delivered to" in done.stderr
    assert f"this user's uploader: {place.socket_path}" in done.stderr
    assert list(elsewhere.iterdir()) == []


def test_a_spool_that_is_taken_is_told_with_its_owner(home: Home, place: LocalUploaderPaths) -> None:
    owner = home.start_uploader("--bind", "tcp://127.0.0.1:*", "--spool", place.spool_dir)
    Path(place.spool_dir, "socket").unlink()
    done = home.collector("--interval", "0.1", "--wait", "0", "--", "true")
    assert f"is in use by another uploader (process {owner.pid})" in done.stderr


def test_an_agent_leaves_when_it_is_idle_and_leaves_nothing_behind(home: Home, place: LocalUploaderPaths) -> None:
    agent = home.start(UPLOADER, "serve", "--exit-when-idle", "1")
    wait_until(lambda: Path(place.socket_path).exists(), "the agent listens")
    done = home.collector("--interval", "0.1", "--", "true")
    assert "delivered to" in done.stderr
    agent.communicate(timeout=DEADLINE_S)
    assert agent.returncode == 0
    assert not Path(place.socket_path).exists()
