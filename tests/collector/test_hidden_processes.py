"""Processes that are alive and cannot be seen: another user's, where `/proc` is mounted with `hidepid`."""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable

import pytest

from sentinel_collector.sensors.interfaces import TreeReading
from sentinel_collector.sensors.process_tree.tree import ProcessTree
from sentinel_protocol.common.clock import SystemClock

OWN, OTHER = 54321, 54322
_CLONE_NEWNS = 0x20000
UNKNOWN = TreeReading(None, None, None, None, None, None)
BURN = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"


def can_mount() -> bool:
    words = ["unshare", "-m", "mount", "-t", "proc", "-o", "hidepid=2", "proc", "/proc"]
    try:
        return subprocess.run(words, capture_output=True, timeout=10).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


pytestmark = pytest.mark.skipif(os.getuid() != 0 or not can_mount(), reason="only root can hide processes")


def in_hiding(hidepid: int, action: Callable[[], None]) -> None:
    """Run `action` in a process that may not see other users' processes."""
    pid = os.fork()
    if not pid:
        try:
            assert ctypes.CDLL(None).unshare(_CLONE_NEWNS) == 0
            subprocess.run(["mount", "--make-rprivate", "/"], check=True)
            subprocess.run(["mount", "-t", "proc", "-o", f"hidepid={hidepid}", "proc", "/proc"], check=True)
            action()
            os._exit(0)
        except BaseException:  # noqa: BLE001 -- it must not run the parent's tests
            traceback.print_exc(file=sys.__stderr__)
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def become_somebody() -> None:
    os.setresgid(OWN, OWN, OWN)
    os.setresuid(OWN, OWN, OWN)


@pytest.mark.parametrize("hidepid", [1, 2])
def test_a_job_of_another_user_is_unknown_until_its_end_tells_its_cpu_time(hidepid: int) -> None:
    def action() -> None:
        job = subprocess.Popen(["sh", "-c", BURN], user=OTHER)
        become_somebody()
        tree = ProcessTree(
            clock=SystemClock(), root_pid=job.pid, own_child=True, adopter_pid=os.getpid(), interval_s=1.0
        )
        for _ in range(3):
            assert tree.root_alive()
            assert tree.read(forks=0, elapsed_s=1.0) == UNKNOWN
        os.waitid(os.P_PID, job.pid, os.WEXITED | os.WNOWAIT)
        usage = []

        def reap() -> object:
            usage.append(os.wait4(job.pid, 0)[2])
            return usage[0]

        last = tree.read(forks=0, elapsed_s=1.0, reap_root=reap)  # type: ignore[arg-type]
        assert (last.user_us, last.system_us) == (round(usage[0].ru_utime * 1e6), round(usage[0].ru_stime * 1e6))
        assert sum((last.user_us or 0, last.system_us or 0)) > 50_000
        assert not tree.root_alive()

    in_hiding(hidepid, action)


@pytest.mark.parametrize("hidepid", [1, 2])
def test_a_child_of_another_user_makes_the_row_unknown_and_its_time_is_counted_later(hidepid: int) -> None:
    """The root is ours, and starts a set-uid program, as with `sudo`."""

    def action() -> None:
        with tempfile.TemporaryDirectory(dir="/tmp") as directory:
            os.chmod(directory, 0o755)
            sudo = shutil.copy(shutil.which("setpriv") or "", directory)
            os.chmod(sudo, 0o4755)
            words = f"{sudo} --reuid {OTHER} --regid {OTHER} --clear-groups sh -c '{BURN}; sleep 0.3'"
            job = subprocess.Popen(["sh", "-c", f"sleep 0.3; {words}; sleep 2"], user=OWN, group=OWN, extra_groups=[])
            os.setegid(OWN)
            os.setgroups([])
            os.seteuid(OWN)
            tree = ProcessTree(clock=SystemClock(), root_pid=job.pid, own_child=True, interval_s=1.0)
            rows: list[TreeReading] = []
            while UNKNOWN not in rows or rows[-1] == UNKNOWN:
                rows.append(tree.read(forks=0, elapsed_s=1.0))
                time.sleep(0.02)
            known = [row for row in rows if row != UNKNOWN]
            assert len(known) > 1
            assert rows[-1] != UNKNOWN
            assert sum((rows[-1].user_us or 0, rows[-1].system_us or 0)) > 50_000
            os.seteuid(0)
            job.kill()
            job.wait()

    in_hiding(hidepid, action)


def test_a_process_that_is_tracked_by_its_pid_is_followed_to_its_end() -> None:
    def action() -> None:
        job = subprocess.Popen(["sleep", "1"], user=OTHER)
        become_somebody()
        tree = ProcessTree(clock=SystemClock(), root_pid=job.pid, own_child=False, interval_s=1.0)
        assert tree.read(forks=0, elapsed_s=1.0) == UNKNOWN
        assert tree.root_alive()

    in_hiding(2, action)
