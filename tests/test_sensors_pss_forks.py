"""Memory of processes that fork: a child that comes or goes between two readings changes nothing for the tree."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from standins.processes import CostlyClock, MadeUp

from collector.sensors.member import PAGE_KIB, Member
from collector.sensors.process_tree import ProcessTree
from collector.sensors.pss import PssMeter
from protocol.clock import SystemClock


@pytest.fixture
def made_up(tmp_path: Path) -> MadeUp:
    return MadeUp(tmp_path)


def read_as_parent_and_child(
    made_up: MadeUp, clock: CostlyClock, *, is_closed: bool = True
) -> tuple[Member, Member, PssMeter]:
    """A parent of 40,000 KiB and a fork of it with 1,000 of its own are read."""
    made_up.put(1, rss=40_000, pss=40_000)
    made_up.put(2, rss=41_000, pss=21_000, private=1_000, faults=250)
    meter = PssMeter(clock=clock, share=0.01, interval_s=1.0, is_closed=is_closed)
    parent, child = made_up.member(1), made_up.member(2)
    assert meter.measure([parent], 1.0) == 40_000
    made_up.put(1, rss=40_000, pss=20_000, private=0)
    meter.members_changed()
    meter.member_born(parent, child)
    assert meter.measure([parent, child], 1.0) == 41_000
    return parent, child, meter


def test_a_child_that_gave_its_memory_up_leaves_its_parent_whole(made_up: MadeUp) -> None:
    parent, child, meter = read_as_parent_and_child(made_up, CostlyClock(0.0))
    # Its pages are being taken away from it: the parent's share is on its way back from a half.
    made_up.put(2, rss=0, pss=None)
    made_up.put(1, rss=40_000, pss=31_000, private=11_000)
    child.read(made_up.ledger)
    assert meter.measure([parent, child], 1.0) == 40_000
    meter.member_gone(child)
    made_up.put(1, rss=40_000, pss=40_000)
    assert meter.measure([parent], 1.0) == 40_000


def test_a_child_that_is_read_without_its_parent_adds_what_is_its_own(made_up: MadeUp) -> None:
    clock = CostlyClock(0.0)
    parent, child, meter = read_as_parent_and_child(made_up, clock)
    meter.member_gone(child)
    made_up.put(3, rss=40_500, pss=20_500, private=500, faults=125)
    other = made_up.member(3)
    meter.member_born(parent, other)
    # The next reading uses up all there is.
    clock.cost_s = 1.0
    assert meter.measure([parent, other], 1.0) == 40_500
    assert other.pss.kib >= 0
    assert parent.pss.has_forked


def test_a_child_that_no_search_has_seen_does_not_halve_its_parent(made_up: MadeUp) -> None:
    parent, child, meter = read_as_parent_and_child(made_up, CostlyClock(0.0))
    meter.member_gone(child)
    assert meter.measure([parent], 1.0) == 40_000
    assert parent.pss.kib == 20_000


def test_what_others_outside_the_tree_share_stays_theirs(made_up: MadeUp) -> None:
    parent, child, meter = read_as_parent_and_child(made_up, CostlyClock(0.0), is_closed=False)
    made_up.put(1, rss=40_000, pss=10_000, private=0)
    meter.members_changed()
    assert meter.measure([parent, child], 1.0) == 31_000


def test_shared_memory_that_one_process_alone_has_touched_is_not_its_own_twice(made_up: MadeUp) -> None:
    parent, child, meter = read_as_parent_and_child(made_up, CostlyClock(0.0))
    made_up.put(2, rss=51_000, pss=31_000, shared=10_000, shared_pss=10_000, shmem=10_000, private=11_000, faults=2_750)
    child.read(made_up.ledger)
    assert meter.measure([parent, child], 1.0) == 51_000
    meter.members_changed()
    parent.pss.has_forked = True
    assert meter.measure([parent, child], 1.0) == 51_000


FORKING = """
import mmap, os, sys, time

memory = mmap.mmap(-1, 48 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
memory[:: mmap.PAGESIZE] = b"x" * (len(memory) // mmap.PAGESIZE)
print("ready", flush=True)
while True:
    if (pid := os.fork()) == 0:
        time.sleep(0.03)
        os._exit(0)
    os.waitpid(pid, 0)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs Linux' /proc")
def test_a_job_that_forks_all_the_time_has_the_same_memory_in_every_row() -> None:
    clock = SystemClock()
    with subprocess.Popen([sys.executable, "-S", "-c", FORKING], stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "ready\n"
        resident_kib = int(Path(f"/proc/{job.pid}/statm").read_text(encoding="ascii").split()[1]) * PAGE_KIB
        tree = ProcessTree(clock=clock, root_pid=job.pid, own_child=True, interval_s=0.02)
        try:
            rows, met, never = [], set[int](), threading.Event()
            for _ in range(150):
                clock.wait(never, 0.02)
                rows.append(tree.read(forks=0, elapsed_s=0.02).memory_kib)
                met.update(tree.pids)
        finally:
            tree.close()
            job.kill()
    assert len(met) > 20
    # A forked child has some pages of its own, and what is shared with this process is not the job's.
    assert [row for row in rows if not 0.9 * resident_kib < row < 1.1 * resident_kib] == []
