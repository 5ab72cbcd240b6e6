"""A cgroup of the run's own: exact, harmless to the job, and gone afterwards."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from fakes.cpu_burner import BURN
from fakes.process_harness import COLLECTOR, Home, busy, python, wait_until
from fakes.unprivileged import unprivileged
from locations import SOURCE_PATH, TESTS

from sentinel_collector.console import Console, Verbosity
from sentinel_collector.sampling.cpu_source import CpuTimeSource
from sentinel_collector.sensors.cgroup.accounting import RunCgroupScope
from sentinel_collector.sensors.cgroup.hierarchy import CgroupMount, find_mounts
from sentinel_collector.sensors.cgroup.run_cgroup import CgroupUnavailableError, enter_cgroup, remove_stale
from sentinel_collector.settings import pre_start_settings
from sentinel_protocol.common.settings.sources import SettingsFile

SHOW_CGROUPS = ("cat", "/proc/self/cgroup")


def usable() -> list[CgroupMount]:
    """The hierarchies in which a cgroup can be made here, by trying."""
    found = []
    for place in find_mounts():
        if place.is_v2 or place.controllers == {"cpuacct"}:
            path = f"{place.directory}/sentinel-stream-test-{os.getpid()}"
            try:
                os.mkdir(path)
            except OSError:
                continue
            if os.path.exists(f"{path}/{'cpu.stat' if place.is_v2 else 'cpuacct.usage'}"):
                found.append(place)
            os.rmdir(path)
    return found


USABLE = usable()
needs_cgroup = pytest.mark.skipif(not USABLE, reason="no cgroup can be made here")


def proc_with(directory: Path, place: CgroupMount) -> Path:
    """A `/proc` in which that hierarchy is the only one."""
    own = directory / "proc/self"
    own.mkdir(parents=True)
    below = place.directory[len(place.top) :] or "/"
    names = ",".join(sorted(place.controllers))
    kind = "cgroup2" if place.is_v2 else "cgroup"
    (own / "cgroup").write_text(f"{0 if place.is_v2 else 2}:{names}:{below}\n")
    (own / "mountinfo").write_text(f"30 20 0:5 / {place.top} rw - {kind} {kind} rw,{names}\n")
    (own / "stat").symlink_to("/proc/self/stat")
    (own / "ns").symlink_to("/proc/self/ns")
    return directory / "proc"


def accounted(proc: Path | str, code: str, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(TESTS / "accounted_run.py"), str(proc), "--"]
    done = subprocess.run(
        [*command, sys.executable, "-S", "-c", BURN + code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": SOURCE_PATH},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@needs_cgroup
@pytest.mark.parametrize("place", USABLE, ids=lambda place: "v2" if place.is_v2 else "v1")
@pytest.mark.parametrize("code", ["burn(.3)", "for i in range(8): os.waitpid(child(burn, .04), 0)", ""])
def test_rows_add_up_to_the_cgroups_total_and_to_the_kernels(place: CgroupMount, code: str, tmp_path: Path) -> None:
    run = accounted(proc_with(tmp_path, place), code)
    seen = run["user_s"] + run["system_s"]
    assert run["accounting"] == "cgroup"
    assert run["path"].startswith(place.directory)
    # Between the last row and this reading nobody is left to use anything.
    assert seen == pytest.approx(run["group_s"] - run["own_s"], abs=5e-5)
    # The end of a process is charged to its cgroup after `wait4` has its figures.
    assert seen == pytest.approx(run["job_user_s"] + run["job_system_s"], abs=0.003)
    assert run["own_s"] < 0.02
    assert not os.path.exists(run["path"])


@needs_cgroup
def test_user_and_system_time_are_told_apart() -> None:
    run = accounted("/proc", "burn(.2)\nfor i in range(400_000): os.stat('/')")
    assert run["system_s"] > 0.05
    assert run["user_s"] == pytest.approx(run["job_user_s"], abs=0.06)


@needs_cgroup
def test_children_that_are_reaped_automatically_are_counted(tmp_path: Path) -> None:
    truth = tmp_path / "truth"
    run = accounted(
        "/proc",
        """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
def work():
    burn(.03)
    with open(sys.argv[1], "a") as file:
        file.write(f"{time.process_time()}\\n")
for i in range(10):
    child(work)
    time.sleep(.04)
while True:
    try: os.waitpid(-1, 0)
    except ChildProcessError: break
""",
        str(truth),
    )
    used_s = run["job_user_s"] + run["job_system_s"] + sum(map(float, truth.read_text().split()))
    assert used_s > 0.3
    # A child's end comes after its own note.
    assert used_s - 0.001 <= run["user_s"] + run["system_s"] <= used_s * 1.03 + 0.01


@needs_cgroup
@pytest.mark.parametrize("place", USABLE, ids=lambda place: "v2" if place.is_v2 else "v1")
def test_a_job_that_leaves_the_cgroup_is_counted_by_the_ledger(place: CgroupMount, tmp_path: Path) -> None:
    leaving = "open(sys.argv[1], 'w').write(str(os.getpid()))\n"
    door = f"{place.directory}/cgroup.procs"
    run = accounted(proc_with(tmp_path, place), f"burn(.15)\n{leaving}burn(.3)", door)
    seen = run["user_s"] + run["system_s"]
    assert run["group_s"] - run["own_s"] < run["job_user_s"] + run["job_system_s"] - 0.25, "it did not leave"
    assert run["accounting"] == "proc"
    assert seen == pytest.approx(run["job_user_s"] + run["job_system_s"], abs=0.001)


class Counter:
    name = "cgroup"

    def __init__(self, *growths: tuple[int, int] | None) -> None:
        self._growths = list(growths)

    def growth_us(self) -> tuple[int, int] | None:
        return self._growths.pop(0)


def test_the_exact_counter_is_trusted_until_the_ledger_finds_more() -> None:
    cpu = CpuTimeSource(Counter((500_000, 7), (3, 100_000), (0, 0)))
    # Children that nobody waited for: the counter knows more.
    assert cpu.growth_us((100_000, 0)) == (500_000, 7)
    assert cpu.growth_us((500_000, 10_000)) == (3, 100_000)
    assert cpu.name == "cgroup"
    # Somebody has left: all that the ledger found so far is shown at last.
    assert cpu.growth_us((400_000, 30_000)) == (499_997, -60_007)
    assert cpu.name == "proc"
    assert cpu.growth_us((1, 2)) == (1, 2)


def test_a_counter_that_goes_bad_is_replaced_by_the_ledger() -> None:
    cpu = CpuTimeSource(Counter((5, 5), None))
    assert [cpu.growth_us((4, 4)), cpu.growth_us((7, 7)), cpu.growth_us((9, 9))] == [(5, 5), (7, 7), (9, 9)]
    assert cpu.name == "proc"


@needs_cgroup
def test_collector_uses_the_cgroup_says_so_and_removes_it(home: Home) -> None:
    summary = home.directory / "summary.json"
    done = home.collector(
        "-v", "--summary-json", str(summary), "--", *python("print(open('/proc/self/cgroup').read())")
    )

    assert f"sentinel-stream.{pid_namespace()}." in done.stdout
    path = said_path(done.stderr)
    assert not os.path.exists(path)
    assert json.loads(summary.read_bytes())["accounting"] == "cgroup"
    (run,) = home.local_runs()
    assert (run["accounting"], run["scope"]) == ("cgroup", "host")


@needs_cgroup
def test_collector_within_a_collector_counts_for_both(home: Home) -> None:
    home.start_uploader()
    words = ["-v", "--connect", home.address]
    done = home.collector(*words, "--summary-json", "s.json", "--", COLLECTOR, *words, "--", *busy(0.3))

    assert done.returncode == 0
    outer_path, inner_path = sorted((path for path in said_paths(done.stderr)), key=len)
    assert os.path.dirname(inner_path) == outer_path
    assert not os.path.exists(outer_path)
    statistics = json.loads((home.directory / "s.json").read_bytes())["statistics"]
    # The inner collector is part of the outer one's job.
    assert statistics["process_utime"]["total"] + statistics["process_stime"]["total"] > 0.3


@needs_cgroup
@pytest.mark.parametrize("how", ["flag", "environment", "file"])
def test_accounting_by_proc_makes_no_cgroup(home: Home, how: str) -> None:
    file = home.directory / "settings.toml"
    file.write_text('accounting = "proc"\n')
    words = {"flag": ["--accounting", "proc"], "environment": [], "file": ["--config", str(file)]}[how]
    env = {"SENTINEL_ACCOUNTING": "proc"} if how == "environment" else {}
    done = home.collector("-v", *words, "--", *SHOW_CGROUPS, env=env)

    assert "sentinel-stream" not in done.stdout
    assert "CPU time is read" not in done.stderr
    (run,) = home.local_runs()
    assert run["accounting"] == "proc"


def test_a_wrong_file_is_no_affair_of_what_comes_before_the_job(tmp_path: Path) -> None:
    defaults = {"accounting": "auto", "scope": "auto"}
    file = tmp_path / "settings.toml"
    file.write_text('accounting = "sideways"\n')
    assert pre_start_settings({}, SettingsFile(str(file)), "accounting", "scope") == defaults
    file.write_text('scope = "host"\nscopes = 1\n')
    found = pre_start_settings({"accounting": "proc"}, SettingsFile(str(file)), "accounting", "scope")
    assert found == {"accounting": "proc", "scope": "host"}


def test_a_running_process_is_never_moved(home: Home) -> None:
    job = home.start(*python("import time; time.sleep(60)"))
    before = Path(f"/proc/{job.pid}/cgroup").read_text()
    collector = home.start(
        COLLECTOR, "--accounting", "cgroup", "--interval", "0.1", "--output", "rows.csv", "--pid", str(job.pid)
    )
    output = home.directory / "rows.csv"
    wait_until(lambda: output.exists() and output.read_bytes().count(b"\n") > 1, "a row")
    assert Path(f"/proc/{job.pid}/cgroup").read_text() == before
    job.kill()
    _out, err = collector.communicate(timeout=60)
    assert "a running process cannot be put into a cgroup: CPU time is read from /proc" in err
    (run,) = home.local_runs()
    assert run["accounting"] == "proc"


@needs_cgroup
def test_a_killed_collectors_cgroup_is_removed_by_the_next_and_a_living_ones_is_not(home: Home) -> None:
    home.start_uploader()
    words = ("-v", "--accounting", "cgroup", "--connect", home.address, "--")
    sleeping = python("import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    killed, living = (home.start(COLLECTOR, *words, *sleeping) for _ in range(2))
    pids, paths = [], []
    for collector in (killed, living):
        assert collector.stdout is not None
        pids.append(int(collector.stdout.readline()))
        paths.append(own_cgroup(pids[-1]))
        # Neither the collector nor anything else is in there with the job.
        assert Path(f"{paths[-1]}/cgroup.procs").read_text().split() == [str(pids[-1])]
    killed.kill()
    killed.wait()
    home.collector(*words, "true")
    assert [os.path.isdir(path) for path in paths] == [True, True], "its job still runs there"
    os.kill(pids[0], signal.SIGKILL)
    wait_until(lambda: is_empty(paths[0]), "the orphaned job is gone")
    home.collector(*words, "true")
    assert [os.path.isdir(path) for path in paths] == [False, True]
    os.kill(pids[1], signal.SIGKILL)
    living.communicate(timeout=60)
    assert not os.path.isdir(paths[1])


@needs_cgroup
@pytest.mark.parametrize("words", [["--accounting", "proc", "--", "true"], ["--pid", "PID"]])
def test_a_killed_collectors_cgroup_is_removed_also_by_one_that_needs_none(home: Home, words: list[str]) -> None:
    killed = home.start(COLLECTOR, "--", *python("import os, time; print(os.getpid(), flush=True); time.sleep(60)"))
    assert killed.stdout is not None
    pid = int(killed.stdout.readline())
    path = own_cgroup(pid)
    killed.kill()
    killed.wait()
    assert os.path.isdir(path)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_empty(path), "the orphaned job is gone")
    watched = home.start("sleep", "0.2")
    home.collector(*(word.replace("PID", str(watched.pid)) for word in words))
    assert not os.path.isdir(path)


def can_unshare_pids() -> bool:
    try:
        return subprocess.run(["unshare", "-pf", "true"], capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@needs_cgroup
@pytest.mark.skipif(not can_unshare_pids(), reason="no pid name space can be made here")
@pytest.mark.parametrize("inside", ["killed", "next"])
def test_a_killed_collectors_cgroup_is_removed_from_another_pid_name_space(home: Home, inside: str) -> None:
    home.start_uploader()
    enter = ("unshare", "-pf", "--kill-child", "--mount-proc")
    words = (COLLECTOR, "-v", "--accounting", "cgroup", "--connect", home.address, "--")
    first, second = (enter, ()) if inside == "killed" else ((), enter)
    killed = home.start(*first, *words, "cat", "/proc/self/cgroup", "-", stdin=subprocess.PIPE)
    assert killed.stdout is not None
    mount = min(USABLE, key=lambda mount: mount.is_v2)
    wait_until(lambda: left_in(mount, home), "the cgroup is made")
    (path,) = left_in(mount, home)
    home.run(*second, *words, "true")
    assert os.path.isdir(path), "its collector lives"
    for pid in Path(f"{path}/cgroup.procs").read_text().split():
        collector = psutil.Process(int(pid)).parent()
        assert collector is not None
        collector.kill()
    killed.kill()
    killed.communicate(timeout=60)
    wait_until(lambda: is_empty(path), "the orphaned job is gone")
    home.run(*second, *words, "true")
    assert not os.path.isdir(path)


def left_in(mount: CgroupMount, home: Home) -> list[str]:
    """The cgroups of runs of this home with a process in them, which is the job."""
    found = []
    for name in os.listdir(mount.directory):
        path = f"{mount.directory}/{name}"
        with contextlib.suppress(OSError, psutil.Error):
            pids = Path(f"{path}/cgroup.procs").read_text().split() if name.startswith("sentinel-stream.") else []
            jobs = [psutil.Process(int(pid)) for pid in pids]
            if any(job.environ()["HOME"] == str(home.directory) and job.name() == "cat" for job in jobs):
                found.append(path)
    return found


@needs_cgroup
def test_daemons_that_outlive_the_job_keep_the_cgroup_until_the_next_start(home: Home) -> None:
    home.start_uploader()
    words = ("-v", "--accounting", "cgroup", "--connect", home.address, "--")
    daemon = "sleep 60 >/dev/null 2>&1 & echo $!"
    done = home.collector(*words, "sh", "-c", daemon)
    pid, path = int(done.stdout), said_path(done.stderr)
    try:
        assert Path(f"{path}/cgroup.procs").read_text().split() == [str(pid)]
    finally:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_empty(path), "the daemon is gone")
    home.collector(*words, "true")
    assert not os.path.isdir(path)


@needs_cgroup
def test_a_command_that_cannot_be_started_leaves_no_cgroup(home: Home) -> None:
    place = min(USABLE, key=lambda place: place.is_v2)
    collector = home.start(COLLECTOR, "--accounting", "cgroup", "--", "no-such-command")
    collector.communicate(timeout=60)
    assert collector.returncode == 127
    assert [name for name in os.listdir(place.directory) if f".{collector.pid}." in name] == []


def test_without_the_right_to_make_one_the_ledger_has_to_do(capfd: pytest.CaptureFixture[str]) -> None:
    with unprivileged(), RunCgroupScope("cgroup") as accounting:
        assert accounting.spawn_inside(lambda: 7) == 7
        assert accounting.counter is None
        accounting.report(Console(Verbosity.NORMAL))
    assert "no cgroup for the run, CPU time is read from /proc: " in capfd.readouterr().err
    with unprivileged(), RunCgroupScope("auto") as accounting:
        accounting.spawn_inside(lambda: None)
        accounting.report(Console(Verbosity.NORMAL))
        assert capfd.readouterr().err == ""
        accounting.report(Console(Verbosity.VERBOSE))
    assert "CPU time is read from /proc: " in capfd.readouterr().err


def made_up(directory: Path, *, is_v2: bool, controllers: str = "", **files: str) -> CgroupMount:
    directory.mkdir()
    for name, content in files.items():
        (directory / name.replace("__", ".")).write_text(content)
    return CgroupMount(
        controllers=frozenset(filter(None, controllers.split(","))),
        is_v2=is_v2,
        top=str(directory),
        directory=str(directory),
    )


@pytest.mark.parametrize(
    ("controllers", "files", "reason"),
    [
        ("cpu,cpuacct", {}, "cpuacct is mounted together with cpu"),
        ("", {"cgroup__subtree_control": "cpu memory\n"}, "{} enables cpu, memory for its children"),
        ("", {"cgroup__type": "threaded\n"}, "{} is threaded"),
        ("", {"cpu__max": "50000 100000\n"}, "the job would not see {}/cpu.max"),
        ("", {"cpu__max": "max 100000\n", "memory__max": "1073741824\n"}, "the job would not see {}/memory.max"),
        ("", {"memory__max": "max\n", "memory__high": "1073741824\n"}, "the job would not see {}/memory.high"),
    ],
)
def test_no_cgroup_is_made_where_the_job_would_notice(
    tmp_path: Path, controllers: str, files: dict[str, str], reason: str
) -> None:
    tree = tmp_path / "tree"
    place = made_up(tree, is_v2=not controllers, controllers=controllers, **files)
    with pytest.raises(CgroupUnavailableError) as caught:
        enter_cgroup(proc=str(proc_with(tmp_path, place)))
    assert str(caught.value) == reason.format(tree)
    assert [path for path in tree.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("is_v2", [True, False])
def test_a_cgroup_without_a_counter_is_removed_again(tmp_path: Path, is_v2: bool) -> None:
    tree = tmp_path / "tree"
    place = made_up(tree, is_v2=is_v2, controllers="" if is_v2 else "cpuacct")
    with pytest.raises(CgroupUnavailableError, match="No such file"):
        enter_cgroup(proc=str(proc_with(tmp_path, place)))
    assert list(tree.iterdir()) == []


def test_without_cgroups_there_is_a_reason(tmp_path: Path) -> None:
    with pytest.raises(CgroupUnavailableError, match="no cgroup hierarchy counts CPU time here"):
        enter_cgroup(proc=str(tmp_path))


def test_only_what_is_certainly_stale_is_removed(tmp_path: Path) -> None:
    own_start = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    namespace = pid_namespace()
    kept = [
        f"sentinel-stream.{namespace}.{os.getpid()}.{own_start}",
        f"sentinel-stream.1.{os.getpid()}.1",
        "sentinel-stream.other",
        f"other.{namespace}.1.1",
    ]
    stale = [f"sentinel-stream.{namespace}.{os.getpid()}.1", f"sentinel-stream.{namespace}.999999999.7"]
    for name in (*kept, *stale):
        (tmp_path / name).mkdir()
    (tmp_path / stale[0] / stale[1]).mkdir()
    # Of another pid name space: its collector holds it.
    held = os.open(tmp_path / kept[1], os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)
    remove_stale(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
    os.close(held)
    remove_stale(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == sorted(set(kept) - {kept[1]})
    remove_stale(str(tmp_path / "missing"))


def test_nothing_heavy_is_imported_before_the_job_starts() -> None:
    code = (
        "import argparse, signal, sys; before = set(sys.modules); import sentinel_collector.sensors.cgroup.accounting;"
        "import sentinel_collector.sensors.cgroup.container_view; print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": SOURCE_PATH}
    )
    assert {
        name for name in done.stdout.split() if not name.startswith(("sentinel_collector", "sentinel_protocol"))
    } <= {
        "__future__",
        "resource",
    }


def pid_namespace() -> str:
    return os.readlink("/proc/self/ns/pid").partition("[")[2].rstrip("]")


def said_paths(stderr: str) -> list[str]:
    mark = "CPU time is read from /"
    return ["/" + line.partition(mark)[2] for line in stderr.splitlines() if mark in line]


def said_path(stderr: str) -> str:
    (path,) = said_paths(stderr)
    return path


def own_cgroup(pid: int) -> str:
    """Directory of the run's cgroup that the process is in."""
    with contextlib.suppress(StopIteration):
        line = next(
            line for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if "/sentinel-stream." in line
        )
        place = min(USABLE, key=lambda place: place.is_v2)
        return place.top + line.split(":", 2)[2]
    raise AssertionError(f"{pid} is in no cgroup of a run")


def is_empty(path: str) -> bool:
    """Nothing runs in there any more; somebody else's collector may have removed it already."""
    try:
        return not Path(f"{path}/cgroup.procs").read_text()
    except OSError:
        return True
