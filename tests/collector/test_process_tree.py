"""The process tree against real processes: what the rows add up to is what the kernel says."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.cpu_burner import BURN
from locations import SOURCE_PATH, TESTS

from sentinel_collector.procfs import FdBudget
from sentinel_collector.sensors.interfaces import TreeReading
from sentinel_collector.sensors.process_tree.children import children_by_parent
from sentinel_collector.sensors.process_tree.tree import ProcessTree
from sentinel_protocol.common.clock import SystemClock

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs Linux' /proc")


class Run:
    """What `sampled_run.py` printed."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.rows = [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]
        self.cpu_s = self.total("process_utime") + self.total("process_stime")
        self.root_s: float = found["root_s"]
        self.reaped_s: float = found["reaped_s"]
        self.group_s: float | None = found["group_s"]
        self.peak_mib: float = found["peak_mib"]
        self.exit_code: int = found["exit_code"]

    def total(self, column: str) -> float:
        return float(sum(row[column] for row in self.rows))

    def cpu_before_the_end(self) -> float:
        return float(sum(row["process_utime"] + row["process_stime"] for row in self.rows[:-1]))


def sampled(code: str, *arguments: str, adopt: bool = False, interval: float = 0.05, pss_share: float = 0.01) -> Run:
    command = [sys.executable, str(TESTS / "sampled_run.py"), "--interval", str(interval)]
    command += ["--pss-share", str(pss_share)]
    command += ["--adopt"] if adopt else []
    command += ["--", sys.executable, "-S", "-c", BURN + code, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": SOURCE_PATH}
    )
    assert done.returncode == 0, done.stderr
    return Run(json.loads(done.stdout.splitlines()[-1]))


def agrees(seen: float, truth: float) -> bool:
    return abs(seen - truth) <= max(0.03, truth * 0.01)


WAITED_FOR = {
    "one busy process": "burn(.25)",
    "children that come and go": "for i in range(12): os.waitpid(child(burn, .02 + .005 * (i % 3)), 0)",
    "nested children that die across borders": """
def nested(depth):
    burn(.06)
    if depth:
        pid = child(nested, depth - 1)
        burn(.02)
        os.waitpid(pid, 0)
nested(4)
""",
    "a child of a thread": """
def work():
    os.waitpid(child(burn, .25), 0)
thread = threading.Thread(target=work)
thread.start()
thread.join()
""",
    "two busy threads": """
threads = [threading.Thread(target=burn, args=(.3,)) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
""",
    "an exec": """
burn(.1)
code = "import time\\nwhile time.process_time() < .25: pass"
os.execv(sys.executable, [sys.executable, "-S", "-c", code])
""",
    "a name with parentheses": """
open("/proc/self/comm", "w").write(") R 1 (x ")
os.waitpid(child(burn, .2), 0)
""",
}


@pytest.mark.parametrize("code", WAITED_FOR.values(), ids=WAITED_FOR.keys())
def test_a_run_adds_up_to_the_kernels_total(code: str) -> None:
    run = sampled(code)
    assert run.exit_code == 0
    assert run.cpu_s == pytest.approx(run.root_s, abs=2e-5)
    assert run.group_s is None or agrees(run.cpu_s, run.group_s)
    assert len(run.rows) >= 2
    # Counted as it happened, not only by the exact total at the end.
    assert run.cpu_before_the_end() > 0


def test_a_job_shorter_than_the_interval_has_one_exact_row() -> None:
    run = sampled("burn(.05)", interval=0.5)
    assert len(run.rows) == 1
    assert run.cpu_s == pytest.approx(run.root_s, abs=2e-5)
    assert run.rows[0]["process_memory_mib"] > 1


def test_a_daemon_stays_in_the_tree_of_a_sub_reaper() -> None:
    run = sampled(
        """
def daemon():
    os.setsid()
    child(burn, .3)
os.waitpid(child(daemon), 0)
""",
        adopt=True,
    )
    assert agrees(run.cpu_s, run.reaped_s)
    assert run.reaped_s > run.root_s + 0.25
    assert run.group_s is None or agrees(run.cpu_s, run.group_s)


def test_a_child_that_nobody_waits_for_is_counted_once() -> None:
    run = sampled("child(burn, .15)\nburn(.3)", adopt=True)
    assert agrees(run.cpu_s, run.reaped_s)
    assert run.reaped_s > run.root_s + 0.1


def test_children_that_are_reaped_automatically_are_kept_and_swallow_nothing() -> None:
    run = sampled(
        """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for i in range(3): child(burn, .1)
burn(.3)
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
time.sleep(.2)
for i in range(5): os.waitpid(child(burn, .03), 0)
"""
    )
    # What the kernel handed to nobody can be seen in part only, and what it handed on is seen in whole.
    assert run.cpu_s >= run.root_s - 2e-5
    assert run.group_s is None or run.cpu_s <= run.group_s + 0.03


def test_bytes_of_children_that_came_and_went_are_counted_once(tmp_path: Path) -> None:
    run = sampled(
        """
def write(name):
    with open(name, "wb") as file:
        file.write(b"x" * (1 << 20))
        file.flush()
        os.fsync(file.fileno())
for i in range(8): os.waitpid(child(write, f"{sys.argv[1]}/{i}"), 0)
with open("/proc/self/io") as io:
    written = [line for line in io if line.startswith("write_bytes")][0].split()[1]
open(sys.argv[1] + "/truth", "w").write(written)
""",
        str(tmp_path),
    )
    truth = int((tmp_path / "truth").read_text())
    # The note of the truth itself dirties a page.
    assert truth <= run.total("process_disk_write_bytes") <= truth + 65536


def test_memory_is_shared_out() -> None:
    waiting = """
def wait():
    time.sleep(.4)
pids = [child(wait) for _ in range(3)]
[os.waitpid(pid, 0) for pid in pids]
"""
    # The interpreters themselves, whatever their version.
    base = sampled(waiting, pss_share=0.5)
    run = sampled("block = bytearray(os.urandom(1 << 20) * 48)" + waiting, pss_share=0.5)
    with_all = [row["process_memory_mib"] for row in run.rows if row["process_children"] == 3]
    assert with_all
    assert 48 <= sorted(with_all)[len(with_all) // 2] <= 48 * 1.6
    # While the array is made, the bytes that it is made of are there as well.
    assert run.peak_mib - base.peak_mib == pytest.approx(2 * 48, abs=2)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts Python programs that say a line when they are ready, and kills their groups at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def run(code: str) -> subprocess.Popen[bytes]:
        job = subprocess.Popen(
            [sys.executable, "-S", "-c", BURN + code],
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(job)
        assert job.stdout is not None
        assert job.stdout.readline() == b"ready\n"
        return job

    yield run
    for job in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.communicate()


def go_on(job: subprocess.Popen[bytes]) -> None:
    assert job.stdin is not None
    assert job.stdout is not None
    job.stdin.write(b"\n")
    job.stdin.flush()
    assert job.stdout.readline() == b"done\n"


def tree_of(pid: int, *, own_child: bool = False, budget: FdBudget | None = None) -> ProcessTree:
    return ProcessTree(clock=SystemClock(), root_pid=pid, own_child=own_child, interval_s=1.0, budget=budget)


def cpu_us(reading: TreeReading) -> int:
    assert reading.user_us is not None
    assert reading.system_us is not None
    return reading.user_us + reading.system_us


def test_attaching_leaves_out_what_was_used_before(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    job = start("burn(.3)\nsaid('ready')\nburn(.1)\nsaid('done')")
    tree = tree_of(job.pid)
    assert cpu_us(tree.read(forks=0, elapsed_s=1)) <= 30_000
    go_on(job)
    assert 80_000 <= cpu_us(tree.read(forks=0, elapsed_s=1)) <= 150_000
    assert tree.root_alive()
    job.kill()
    os.waitid(os.P_PID, job.pid, os.WEXITED | os.WNOWAIT)
    assert not tree.root_alive()
    job.wait()
    assert not tree.root_alive()
    assert tree.read(forks=0, elapsed_s=1).children == 0
    tree.close()


@pytest.mark.skipif(os.uname().machine not in {"x86_64", "aarch64"}, reason="knows the number of exit(2) there only")
def test_a_process_whose_main_thread_has_ended_still_runs(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    job = start(
        f"""
import ctypes
number = {60 if os.uname().machine == "x86_64" else 93}
def work():
    while open("/proc/self/stat").read().rpartition(") ")[2][0] != "Z":
        time.sleep(.01)
    burn(.1)
    print("ready", flush=True)
    child(time.sleep, 60)
    print("done", flush=True)
    time.sleep(60)
threading.Thread(target=work).start()
ctypes.CDLL(None).syscall(number, 0)
"""
    )
    assert job.stdout is not None
    assert job.stdout.readline() == b"done\n"
    tree = tree_of(job.pid, own_child=True)
    reading = tree.read(forks=0, elapsed_s=1)
    assert Path(f"/proc/{job.pid}/stat").read_text().rpartition(") ")[2][0] == "Z"
    assert tree.root_alive()
    assert reading.children == 1
    assert cpu_us(reading) >= 100_000
    tree.close()


def test_an_orphan_is_tracked_on_after_its_parents_end(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    job = start(
        """
def parent():
    child(lambda: (burn(.05), print("ready", flush=True), time.sleep(60)))
    time.sleep(60)
child(parent)
time.sleep(60)
"""
    )
    tree = tree_of(job.pid, own_child=True)
    reading = tree.read(forks=0, elapsed_s=1)
    assert reading.children == 2
    parent, orphan = sorted(pid for pid in tree.pids if pid != job.pid)
    os.kill(parent, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while f"\nPPid:\t{parent}\n" in Path(f"/proc/{orphan}/status").read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    tree.read(forks=0, elapsed_s=1)
    assert orphan in tree.pids
    tree.close()


def test_no_more_descriptors_are_kept_than_allowed(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    job = start("for i in range(6): child(time.sleep, 60)\nprint('ready', flush=True)\ntime.sleep(60)")
    tree = tree_of(job.pid, own_child=True, budget=FdBudget(5))
    for _ in range(3):
        assert tree.read(forks=0, elapsed_s=1).children == 6
    kept = [
        link for link in map(_link, os.listdir("/proc/self/fd")) if any(f"/proc/{pid}/" in link for pid in tree.pids)
    ]
    assert len(kept) == 5
    tree.close()
    assert not [link for link in map(_link, os.listdir("/proc/self/fd")) if f"/proc/{job.pid}/" in link]


def test_nobody_is_looked_for_while_the_kernel_counts_no_fork(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    job = start("said('ready')\nchild(time.sleep, 60)\nsaid('done')")
    tree = tree_of(job.pid, own_child=True)
    for _ in range(4):
        tree.read(forks=7, elapsed_s=1)
    go_on(job)
    assert tree.read(forks=7, elapsed_s=1).children == 0
    assert tree.read(forks=8, elapsed_s=1).children == 1
    tree.close()


def test_a_counter_that_stands_still_is_found_out(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    job = start("said('ready')\nchild(time.sleep, 60)\nsaid('done')")
    tree = tree_of(job.pid, own_child=True)
    for _ in range(4):
        tree.read(forks=7, elapsed_s=1)
    go_on(job)
    assert [tree.read(forks=7, elapsed_s=1).children for _ in range(60)][-1] == 1
    tree.close()


def test_an_excluded_child_is_no_part_of_the_tree(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    job = start("print('ready', flush=True)\ntime.sleep(60)")
    other = start("print('ready', flush=True)\ntime.sleep(60)")
    tree = ProcessTree(clock=SystemClock(), root_pid=job.pid, own_child=True, adopter_pid=os.getpid(), interval_s=1.0)
    tree.exclude(other.pid)
    tree.read(forks=0, elapsed_s=1)
    assert list(tree.pids) == [job.pid]
    tree.close()


def test_parents_are_found_without_the_kernels_lists(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    job = start("pid = child(time.sleep, 60)\nprint('ready', flush=True)\ntime.sleep(60)")
    found = children_by_parent("/proc")
    assert job.pid in found[os.getpid()]
    assert len(found[job.pid]) == 1


def _link(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="needs root to become somebody else")
def test_another_users_tree_is_read_as_far_as_allowed(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    job = start("child(time.sleep, 60)\nprint('ready', flush=True)\ntime.sleep(60)")
    code = """
import json, os, resource, sys
from sentinel_collector.sensors.interfaces import TreeReading
from sentinel_collector.sensors.process_tree.tree import ProcessTree
from sentinel_protocol.common.clock import SystemClock
import sentinel_collector.sensors.process_tree.children, sentinel_collector.sensors.process_tree.pss_estimator
os.setgid(65534)
os.setuid(65534)
tree = ProcessTree(clock=SystemClock(), root_pid=int(sys.argv[1]), own_child=False, interval_s=1.0)
print(json.dumps(tree.read(forks=0, elapsed_s=1)))
print(json.dumps(tree.read(forks=0, elapsed_s=1)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(job.pid)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": SOURCE_PATH},
    )
    assert (done.returncode, done.stderr) == (0, "")
    for line in done.stdout.splitlines():
        _user, _system, children, memory_kib, read, written = json.loads(line)
        assert children == 1
        assert memory_kib > 1000
        assert (read, written) == (None, None)
