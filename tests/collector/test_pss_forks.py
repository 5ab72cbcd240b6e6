"""Memory of processes that fork: a child that comes or goes between two readings changes nothing for the tree."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fakes.processes import CostlyClock, FakeProc

from sentinel_collector.sensors.process_tree.process import TrackedProcess
from sentinel_collector.sensors.process_tree.pss_estimator import PssEstimator
from sentinel_collector.sensors.process_tree.pss_state import PAGE_KIB
from sentinel_collector.sensors.process_tree.tree import ProcessTree
from sentinel_protocol.common.clock import SystemClock


@pytest.fixture
def made_up(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path)


def read_as_parent_and_child(
    made_up: FakeProc, clock: CostlyClock, *, is_closed: bool = True
) -> tuple[TrackedProcess, TrackedProcess, PssEstimator]:
    """A parent of 40,000 KiB and a fork of it with 1,000 of its own are read."""
    made_up.put(1, rss=40_000, pss=40_000)
    made_up.put(2, rss=41_000, pss=21_000, private=1_000, faults=250)
    meter = PssEstimator(clock=clock, share=0.01, interval_s=1.0, is_closed=is_closed)
    parent, child = made_up.process(1), made_up.process(2)
    assert meter.update([parent], 1.0) == 40_000
    made_up.put(1, rss=40_000, pss=20_000, private=0)
    meter.on_processes_changed()
    meter.on_process_born(parent, child)
    assert meter.update([parent, child], 1.0) == 41_000
    return parent, child, meter


def test_a_child_that_gave_its_memory_up_leaves_its_parent_whole(made_up: FakeProc) -> None:
    parent, child, meter = read_as_parent_and_child(made_up, CostlyClock(0.0))
    # Its pages are being taken away from it: the parent's share is on its way back from a half.
    made_up.put(2, rss=0, pss=None)
    made_up.put(1, rss=40_000, pss=31_000, private=11_000)
    child.read(made_up.ledger)
    assert meter.update([parent, child], 1.0) == 40_000
    meter.on_process_gone(child)
    made_up.put(1, rss=40_000, pss=40_000)
    assert meter.update([parent], 1.0) == 40_000


def test_a_child_that_is_read_without_its_parent_adds_what_is_its_own(made_up: FakeProc) -> None:
    clock = CostlyClock(0.0)
    parent, child, meter = read_as_parent_and_child(made_up, clock)
    meter.on_process_gone(child)
    made_up.put(3, rss=40_500, pss=20_500, private=500, faults=125)
    other = made_up.process(3)
    meter.on_process_born(parent, other)
    # The next reading uses up all there is.
    clock.cost_s = 1.0
    assert meter.update([parent, other], 1.0) == 40_500
    assert other.pss.reading is not None
    assert parent.pss.has_forked


def test_a_child_that_no_search_has_seen_does_not_halve_its_parent(made_up: FakeProc) -> None:
    parent, child, meter = read_as_parent_and_child(made_up, CostlyClock(0.0))
    meter.on_process_gone(child)
    assert meter.update([parent], 1.0) == 40_000
    assert parent.pss.reading is not None
    assert parent.pss.reading.kib == 20_000


def test_what_others_outside_the_tree_share_stays_theirs(made_up: FakeProc) -> None:
    parent, child, meter = read_as_parent_and_child(made_up, CostlyClock(0.0), is_closed=False)
    made_up.put(1, rss=40_000, pss=10_000, private=0)
    meter.on_processes_changed()
    assert meter.update([parent, child], 1.0) == 31_000


def test_shared_memory_that_one_process_alone_has_touched_is_not_its_own_twice(made_up: FakeProc) -> None:
    parent, child, meter = read_as_parent_and_child(made_up, CostlyClock(0.0))
    made_up.put(2, rss=51_000, pss=31_000, shared=10_000, shared_pss=10_000, shmem=10_000, private=11_000, faults=2_750)
    child.read(made_up.ledger)
    assert meter.update([parent, child], 1.0) == 51_000
    meter.on_processes_changed()
    parent.pss.has_forked = True
    assert meter.update([parent, child], 1.0) == 51_000


def read_as_three_generations(made_up: FakeProc, clock: CostlyClock) -> tuple[list[TrackedProcess], PssEstimator]:
    """A process of 40,000 KiB, a fork of it that has got 60,000 of its own, and a fork of that one."""
    made_up.put(1, rss=40_000, pss=40_000)
    made_up.put(2, rss=40_000, pss=20_000, private=0)
    made_up.put(3, rss=100_000, pss=43_330, private=0)
    meter = PssEstimator(clock=clock, share=0.01, interval_s=1.0, is_closed=True)
    first, second = made_up.process(1), made_up.process(2)
    assert meter.update([first], 1.0) == 40_000
    meter.on_process_born(first, second)
    made_up.put(1, rss=40_000, pss=20_000, private=0)
    made_up.put(2, rss=100_000, pss=80_000, private=60_000, faults=15_000)
    second.read(made_up.ledger)
    assert meter.update([first, second], 1.0) == 100_000
    made_up.put(1, rss=40_000, pss=13_340, private=0)
    made_up.put(2, rss=100_000, pss=43_330, private=0, faults=15_000)
    third = made_up.process(3)
    meter.on_processes_changed()
    meter.on_process_born(second, third)
    return [first, second, third], meter


def test_what_was_forked_and_forked_again_is_there_once(made_up: FakeProc) -> None:
    members, meter = read_as_three_generations(made_up, CostlyClock(0.0))
    assert meter.update(members, 1.0) == 100_000
    # The same when some were read with the others, some without.
    meter.on_processes_changed()
    members[0].pss.has_forked = True
    assert without_reading(meter, members) == 100_000


def test_what_the_first_lent_stays_there_once_when_one_in_between_ends(made_up: FakeProc) -> None:
    members, meter = read_as_three_generations(made_up, CostlyClock(0.0))
    meter.update(members, 1.0)
    meter.on_process_gone(members.pop(1))
    assert without_reading(meter, members) == 100_000
    made_up.put(1, rss=40_000, pss=20_000, private=0)
    made_up.put(3, rss=100_000, pss=80_000, private=60_000)
    assert meter.update(members, 1.0) == 100_000


def test_forked_ones_have_what_the_first_lent_them_when_it_has_ended(made_up: FakeProc) -> None:
    clock = CostlyClock(0.0)
    parent, child, meter = read_as_parent_and_child(made_up, clock)
    made_up.put(3, rss=40_500, pss=13_830, private=500, faults=125)
    other = made_up.process(3)
    meter.on_process_born(parent, other)
    meter.on_processes_changed()
    meter.update([parent, child, other], 1.0)
    meter.on_process_gone(parent)
    assert without_reading(meter, [child, other]) == 41_500


def test_what_the_first_gives_back_stays_with_those_that_it_forked(made_up: FakeProc) -> None:
    parent, child, meter = read_as_parent_and_child(made_up, CostlyClock(0.0))
    made_up.put(1, rss=4_000, pss=4_000)
    parent.read(made_up.ledger)
    parent.pss.has_forked = True
    assert without_reading(meter, [parent, child]) == 41_000
    # Nothing of the child's own changes: the parent's reading says that it is due.
    made_up.put(2, rss=41_000, pss=41_000)
    assert meter.update([parent, child], 1.0) == 45_000


def without_reading(meter: PssEstimator, members: list[TrackedProcess]) -> float:
    """The row at the same moment, when all that could be read has been."""
    now_s = max(member.pss.read_at_s for member in members)
    for member in members:
        member.pss.read_at_s = now_s
    return meter.update(members, 0.0)


def test_pages_of_a_mapped_file_that_it_alone_has_written_are_no_memory_of_its_own(made_up: FakeProc) -> None:
    parent, child, meter = read_as_parent_and_child(made_up, CostlyClock(0.0))
    made_up.put(2, rss=71_000, pss=51_000, shared=30_000, shared_pss=30_000, private=31_000, faults=7_750)
    child.read(made_up.ledger)
    assert meter.update([parent, child], 1.0) == 71_000
    parent.pss.has_forked = True
    assert without_reading(meter, [parent, child]) == 71_000


def test_a_child_about_to_begin_a_program_has_its_parents_memory_itself(made_up: FakeProc) -> None:
    made_up.put(1, rss=40_000, pss=40_000)
    made_up.put(2, rss=40_000, pss=40_000)
    meter = PssEstimator(clock=CostlyClock(0.0), share=0.01, interval_s=1.0, is_closed=True)
    parent, child = made_up.process(1), made_up.process(2)
    meter.update([parent], 1.0)
    meter.on_processes_changed()
    meter.on_process_born(parent, child)
    assert meter.update([parent, child], 1.0) == 40_000
    made_up.put(2, rss=9_000, pss=9_000, faults=2_250)
    child.read(made_up.ledger)
    assert meter.update([parent, child], 1.0) == 49_000


def test_who_writes_to_what_it_shares_leaves_the_others_more_of_it(made_up: FakeProc) -> None:
    parent, child, meter = read_as_parent_and_child(made_up, CostlyClock(0.0))
    assert child.pss.reading is not None
    assert child.pss.reading.exclusive_anon_kib == 1_000
    # Of the parent's own memory nothing changes: that its share does, the child's reading says.
    made_up.put(1, rss=40_000, pss=40_000)
    made_up.put(2, rss=41_000, pss=41_000, faults=10_250)
    child.read(made_up.ledger)
    assert meter.update([parent, child], 1.0) == 81_000
    assert parent.pss.reading is not None
    assert parent.pss.reading.anon_pss_kib == 40_000


def test_an_orphan_that_nobody_saw_being_forked_makes_the_others_be_read(made_up: FakeProc) -> None:
    made_up.put(1, rss=40_000, pss=40_000)
    meter = PssEstimator(clock=CostlyClock(0.0), share=0.01, interval_s=1.0, is_closed=True)
    lender = made_up.process(1)
    assert meter.update([lender], 1.0) == 40_000
    made_up.put(1, rss=40_000, pss=20_000, private=0)
    made_up.put(2, rss=40_000, pss=20_000, private=0)
    orphan = made_up.process(2)
    meter.on_processes_changed()
    meter.on_process_born(None, orphan)
    assert meter.update([lender, orphan], 1.0) == 40_000


def test_what_others_outside_the_tree_have_is_theirs_also_while_a_child_comes(made_up: FakeProc) -> None:
    made_up.put(1, rss=40_000, pss=10_000, private=0)
    made_up.put(2, rss=40_000, pss=8_000, private=0)
    meter = PssEstimator(clock=CostlyClock(0.0), share=0.01, interval_s=1.0)
    parent, child = made_up.process(1), made_up.process(2)
    assert meter.update([parent], 1.0) == 10_000
    meter.on_processes_changed()
    meter.on_process_born(parent, child)
    assert without_reading(meter, [parent, child]) == 10_000
    made_up.put(1, rss=40_000, pss=8_000, private=0)
    assert meter.update([parent, child], 1.0) == 16_000
    meter.on_process_gone(child)
    assert without_reading(meter, [parent]) == 16_000


GENERATIONS = """
import mmap, os, sys, time

def fill(mib):
    memory = mmap.mmap(-1, mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory[:: mmap.PAGESIZE] = b"x" * (len(memory) // mmap.PAGESIZE)
    return memory

def wait():
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(600)

first = fill(40)
if os.fork() == 0:
    sys.stdin.buffer.raw.read(1)
    second = fill(20)
    for _ in range(2):
        if os.fork() == 0:
            wait()
    wait()
wait()
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs Linux' /proc")
def test_three_generations_of_real_processes_are_what_the_kernel_says() -> None:
    command = [sys.executable, "-S", "-c", GENERATIONS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as job:
        assert job.stdin is not None
        assert job.stdout is not None
        assert int(job.stdout.readline()) == job.pid
        tree = ProcessTree(clock=SystemClock(), root_pid=job.pid, own_child=True, interval_s=1.0)
        try:
            tree.read(forks=0, elapsed_s=1.0)
            assert len(tree.pids) == 2
            job.stdin.write(b"x")
            job.stdin.flush()
            pids = {job.pid, *(int(job.stdout.readline()) for _ in range(3))}
            rows = [tree.read(forks=0, elapsed_s=1.0).memory_kib for _ in range(4)]
            assert set(tree.pids) == pids
            rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii") for pid in pids]
        finally:
            for pid in tree.pids:
                os.kill(pid, signal.SIGKILL)
            tree.close()
    truth_kib = sum(int(rollup.partition("\nPss:")[2].split()[0]) for rollup in rollups)
    # What is shared with this process is not the job's.
    assert rows == [pytest.approx(truth_kib, rel=0.02)] * len(rows)


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
                clock.wait_for(never, 0.02)
                rows.append(tree.read(forks=0, elapsed_s=0.02).memory_kib)
                met.update(tree.pids)
        finally:
            tree.close()
            job.kill()
    assert len(met) > 20
    # A forked child has some pages of its own, and what is shared with this process is not the job's.
    assert [row for row in rows if row is None or not 0.9 * resident_kib < row < 1.1 * resident_kib] == []


def test_shared_memory_that_nobody_has_alone_takes_nothing_from_what_a_process_has_alone(made_up: FakeProc) -> None:
    parent, _, meter = read_as_parent_and_child(made_up, CostlyClock(0.0))
    made_up.put(
        3, rss=280_000, pss=117_000, shared=200_000, shared_pss=41_000, shmem=41_000, private=75_000, faults=70_000
    )
    worker = made_up.process(3)
    meter.on_process_born(parent, worker)
    meter.update([parent, worker], 1.0)
    assert worker.pss.reading is not None
    assert 72_000 <= worker.pss.reading.exclusive_anon_kib <= 76_000
