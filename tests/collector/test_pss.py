"""Memory of a tree: what is read when, and what stands in meanwhile, against a made-up /proc and real processes."""

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

import pytest
from fakes.fake_procfs import CostlyClock, FakeProc
from fakes.process_harness import Home, rows_of_file

from sentinel_collector.sensors.process_tree.process import TrackedProcess
from sentinel_collector.sensors.process_tree.pss_estimator import DEFAULT_SHARE, PssEstimator
from sentinel_collector.sensors.process_tree.pss_state import PAGE_KIB
from sentinel_collector.settings import SETTINGS
from sentinel_protocol.wire.sample import COLUMNS


@pytest.fixture
def made_up(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path)


def test_the_first_reading_is_pss_and_a_change_of_rss_moves_it(made_up: FakeProc) -> None:
    made_up.put(1, rss=100_000, pss=97_000)
    member = made_up.process(1)
    meter = PssEstimator(clock=CostlyClock(0.01), share=0.01, interval_s=1.0)
    assert meter.update([member], 1.0) == 97_000
    # Its own pages nearly all: no reason to pay for another reading.
    made_up.put(1, rss=104_000, pss=1)
    member.read(made_up.ledger)
    assert meter.update([member], 1.0) == 101_000
    assert meter.peak_kib == 200_000


def test_readings_keep_to_the_budget(made_up: FakeProc) -> None:
    members = []
    for pid in range(1, 5):
        made_up.put(pid, rss=40_000, pss=20_000, faults=1_000_000)
        members.append(made_up.process(pid))
    clock = CostlyClock(0.01)
    meter = PssEstimator(clock=clock, share=0.01, interval_s=1.0)
    for _ in range(100):
        meter.on_processes_changed()
        meter.update(members, 1.0)
    # A hundred seconds allow one second, and the budget saved up at the start is a few intervals' worth.
    assert clock.time_s <= 2 * (1.0 + 0.025 + 0.01)
    assert clock.time_s >= 0.9


def test_a_process_that_stands_still_is_read_once_in_a_while_and_seen_as_soon_as_it_moves(made_up: FakeProc) -> None:
    made_up.put(1, rss=40_000, pss=20_000)
    member = made_up.process(1)
    clock = CostlyClock(0.001)
    meter = PssEstimator(clock=clock, share=0.01, interval_s=1.0)
    assert meter.update([member], 1.0) == 20_000
    reading_s = clock.time_s
    made_up.put(1, rss=40_000, pss=15_000)
    sums = [meter.update([member], 1.0) for _ in range(30)]
    # Others outside may have come to share its pages, which nothing but a reading tells.
    assert sums == [20_000] * 9 + [15_000] * 21
    assert clock.time_s == pytest.approx(4 * reading_s)
    made_up.put(1, rss=41_000, pss=15_000)
    member.read(made_up.ledger)
    assert meter.update([member], 1.0) == 16_000


def two_that_share(made_up: FakeProc, pss: int) -> None:
    for pid in (1, 2):
        made_up.put(pid, rss=40_000, pss=20_000 + pss, faults=9, shared=20_000, shared_pss=pss, private=0)


def test_those_that_stand_still_are_read_again_at_once_where_their_last_reading_failed(made_up: FakeProc) -> None:
    two_that_share(made_up, 10_000)
    members = [made_up.process(pid) for pid in (1, 2)]
    meter = PssEstimator(clock=CostlyClock(1e-4), share=0.01, interval_s=1.0)
    sums = [meter.update(members, 1.0) for _ in range(9)]
    assert sums == [60_000] * 9
    for pid in (1, 2):
        (made_up.proc / str(pid) / "smaps_rollup").write_text("")
    sums = [meter.update(members, 1.0) for _ in range(4)]
    assert sums[-1] < 60_000, "they were due"
    two_that_share(made_up, 10_000)
    assert [meter.update(members, 1.0) for _ in range(5)] == [60_000] * 5


def test_one_that_stands_still_is_read_again_at_once_where_the_other_shares_more_than_was_thought(
    made_up: FakeProc,
) -> None:
    two_that_share(made_up, 20_000)
    members = [made_up.process(pid) for pid in (1, 2)]
    meter = PssEstimator(clock=CostlyClock(1e-4), share=0.01, interval_s=1.0)
    for _ in range(10):
        meter.update(members, 1.0)
    two_that_share(made_up, 10_000)
    assert meter.update(members, 1.0) == 60_000
    two_that_share(made_up, 18_000)
    # The first one's reading stood beside a share of the other that did not hold any more.
    assert meter.update(members, 1.0) == 68_000


@pytest.mark.parametrize("seed", range(20))
def test_a_tree_that_stands_still_for_a_while_has_the_sums_of_one_that_is_looked_at_each_time(
    made_up: FakeProc, seed: int
) -> None:
    choice = random.Random(seed)
    rss = dict.fromkeys(range(1, choice.randint(2, 5)), 40_000)

    def put(pid: int) -> None:
        shared = choice.choice([0, rss[pid] // 2])
        own, borrowed = (rss[pid] - shared) // choice.choice([1, 1, 2]), shared // choice.choice([1, 2, 4])
        made_up.put(pid, rss=rss[pid], pss=own + borrowed, faults=9, shared=shared, shared_pss=borrowed)
        if choice.random() < 0.1:
            (made_up.proc / str(pid) / "smaps_rollup").write_text("")

    for pid in rss:
        put(pid)
    sides = []
    for _ in range(2):
        members = [made_up.process(pid) for pid in rss]
        sides.append((PssEstimator(clock=CostlyClock(1e-4), share=0.01, interval_s=1.0), members))
    shortened = 0
    for _ in range(60):
        if choice.random() < 0.1:
            pid = choice.choice(list(rss))
            rss[pid] += PAGE_KIB * choice.choice([0, 0, 1, -500, 5000])
            put(pid)
        sums = []
        for meter, members in sides:
            for member in members:
                member.read(made_up.ledger)
            if meter is sides[1][0]:
                meter._last_seen = []
            else:
                shortened += meter._idle_until_s > 0
            sums.append(meter.update(members, 1.0))
        assert sums[0] == sums[1]
    assert shortened > 5


def test_a_process_that_shares_is_read_again_when_others_come(made_up: FakeProc) -> None:
    made_up.put(1, rss=40_000, pss=20_000)
    member = made_up.process(1)
    meter = PssEstimator(clock=CostlyClock(0.0), share=0.01, interval_s=1.0)
    assert meter.update([member], 1.0) == 20_000
    made_up.put(1, rss=40_000, pss=13_000)
    assert meter.update([member], 1.0) == 20_000
    meter.on_processes_changed()
    assert meter.update([member], 1.0) == 13_000


def test_a_parent_is_read_again_after_a_fork_but_not_after_an_exec(made_up: FakeProc) -> None:
    made_up.put(1, rss=400_000, pss=400_000)
    made_up.put(2, rss=2_000, pss=500)
    made_up.put(3, rss=390_000, pss=200_000)
    parent, program, worker = (made_up.process(pid) for pid in (1, 2, 3))
    meter = PssEstimator(clock=CostlyClock(0.0), share=0.01, interval_s=1.0)
    meter.update([parent], 1.0)
    made_up.put(1, rss=400_000, pss=200_000)
    meter.on_processes_changed()
    meter.on_process_born(parent, program)
    assert meter.update([parent, program], 1.0) == 400_500
    meter.on_processes_changed()
    meter.on_process_born(parent, worker)
    assert meter.update([parent, program, worker], 1.0) == 400_500


def test_pages_that_a_new_process_has_not_touched_are_its_parents(made_up: FakeProc) -> None:
    made_up.put(1, rss=40_000, pss=40_000)
    made_up.put(2, rss=40_000, pss=10_000, faults=500)
    members = [made_up.process(1), made_up.process(2)]
    # The first reading is always allowed; it uses up what there is.
    meter = PssEstimator(clock=CostlyClock(0.01), share=1e-9, interval_s=1.0)
    assert meter.update(members, 1.0) == 40_000 + 500 * PAGE_KIB
    assert PssEstimator(clock=CostlyClock(0.01), share=0.0, interval_s=1.0).update(members, 1.0) == 80_000


def test_rss_stands_in_where_pss_is_not_to_be_had(made_up: FakeProc) -> None:
    made_up.put(1, rss=40_000, pss=None)
    member = made_up.process(1)
    meter = PssEstimator(clock=CostlyClock(0.0), share=0.01, interval_s=1.0)
    assert meter.update([member], 1.0) == 40_000
    made_up.put(1, rss=44_000, pss=1)
    member.read(made_up.ledger)
    # Asked once, and never again.
    assert meter.update([member], 1.0) == 44_000


def test_a_pid_of_another_start_time_is_another_process(made_up: FakeProc) -> None:
    made_up.put(1, rss=40_000, pss=1)
    member = made_up.process(1)
    assert member.is_alive()
    stat = made_up.proc / "1/stat"
    stat.write_text(stat.read_text().replace(" 55 ", " 56 "))
    assert not member.is_alive()
    assert not member.read(made_up.ledger)


def test_a_torn_stat_line_says_nothing_new(made_up: FakeProc) -> None:
    made_up.put(1, rss=40_000, pss=1)
    member = made_up.process(1)
    (made_up.proc / "1/stat").write_text("1 (a")
    assert member.read(made_up.ledger)
    assert member.rss_kib == 40_000
    (made_up.proc / "1/stat").unlink()
    assert not member.read(made_up.ledger)


def test_a_damaged_list_of_children_names_those_that_can_be_read(made_up: FakeProc) -> None:
    made_up.put(1, rss=40_000, pss=1)
    member = made_up.process(1)
    (made_up.proc / "1/task/1").mkdir(parents=True)
    (made_up.proc / "1/task/1/children").write_bytes(b"12 -3 \xe6\x93s 45 ")
    assert member.children() == [12, 45]


def started(made_up: FakeProc, *pids: int) -> tuple[list[TrackedProcess], PssEstimator, CostlyClock]:
    """Members whose PSS has all been read, which has used up the budget."""
    members = [made_up.process(pid) for pid in pids]
    # 25 ms are there at first: for each an equal part of it, and the last goes a little beyond.
    clock = CostlyClock(0.0251 / len(pids))
    meter = PssEstimator(clock=clock, share=0.01, interval_s=1.0)
    meter.update(members, 0.0)
    assert all(member.pss.reading is not None for member in members)
    return members, meter, clock


def without_budget(made_up: FakeProc, members: list[TrackedProcess], meter: PssEstimator, clock: CostlyClock) -> float:
    """The next row, which no reading of PSS is left for."""
    spent_s = clock.time_s
    for member in members:
        assert member.read(made_up.ledger)
    memory_kib = meter.update(members, 0.0)
    assert clock.time_s == spent_s, "PSS was read"
    return memory_kib


def test_shared_pages_touched_since_are_there_once_and_own_ones_each_time(made_up: FakeProc) -> None:
    for pid in range(1, 5):
        made_up.put(pid, rss=10_000, pss=7_000, shared=4_000, shared_pss=1_000)
    members, meter, clock = started(made_up, 1, 2, 3, 4)
    # Each touches 5,000 of its own; of the same shared memory they have got up to 20,000, 40,000, 60,000, and 0.
    for pid, touched in (1, 20_000), (2, 40_000), (3, 60_000), (4, 0):
        made_up.put(pid, rss=15_000 + touched, pss=1, shared=4_000 + touched)
    assert without_budget(made_up, members, meter, clock) == 4 * (6_000 + 5_000) + 4_000 + 60_000


@pytest.mark.parametrize(("share", "private", "together"), [(100_000, 0, 200_000), (200_000, 200_000, 400_000)])
def test_shared_pages_of_a_process_that_was_read_later_are_the_others_unless_nobody_else_has_them(
    made_up: FakeProc, share: int, private: int, together: int
) -> None:
    made_up.put(1, rss=200_000, pss=200_000, shared=200_000, shared_pss=200_000, private=200_000)
    members = [made_up.process(1)]
    # One reading uses up the budget of some rows.
    meter = PssEstimator(clock=CostlyClock(0.03), share=0.01, interval_s=1.0)
    assert meter.update(members, 1.0) == 200_000
    for pid in (1, 2):
        made_up.put(pid, rss=200_000, pss=share, shared=200_000, shared_pss=share, private=private)
    members.append(made_up.process(2))
    meter.on_processes_changed()
    sums, read = [], set()
    for _ in range(12):
        sums.append(meter.update(members, 1.0))
        read.add(tuple(member.pss.read_at_s > 1.0 for member in members))
    assert (False, True) in read, "one was read, the other not yet again"
    assert sums == [together] * 12


def test_shared_memory_that_workers_are_getting_to_is_there_once_until_it_is_given_back(made_up: FakeProc) -> None:
    def put(touched: int, common: int = 300_000) -> None:
        """Both workers have got so far in what the first process has all of."""
        for pid, shared in (1, common), (2, touched), (3, touched):
            share = touched // 3 + shared - touched
            alone = 4_000 + common - touched if pid == 1 else 4_000
            made_up.put(pid, rss=4_000 + shared, pss=4_000 + share, shared=shared, shared_pss=share, private=alone)

    put(0)
    members = [made_up.process(1)]
    # The budget of a row is one reading.
    meter = PssEstimator(clock=CostlyClock(0.01), share=0.01, interval_s=1.0)
    assert meter.update(members, 1.0) == 304_000
    members += [made_up.process(pid) for pid in (2, 3)]
    meter.on_processes_changed()
    sums = []
    for row in range(1, 21):
        put(min(300_000, 70_000 * row))
        for member in members:
            member.read(made_up.ledger)
        sums.append(meter.update(members, 1.0))
    # A worker that was not read yet may have no more than what the others are known to have.
    assert 250_000 < min(sums) <= max(sums) <= 312_000
    assert sums[-5:] == [312_000] * 5
    put(30_000, 30_000)
    for member in members:
        member.read(made_up.ledger)
    assert meter.update(members, 1.0) <= 12_000 + 30_000 * 1.5


def test_what_was_touched_before_the_first_row_is_there_although_all_have_been_read_since(
    made_up: FakeProc, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(shared: int) -> None:
        for pid in (1, 2):
            pss = 4_000 + shared // 2
            made_up.put(pid, rss=4_000 + shared, pss=pss, shared=shared, shared_pss=shared // 2, private=4_000)

    put(0)
    members = [made_up.process(1)]
    meter = PssEstimator(clock=CostlyClock(0.0), share=0.01, interval_s=1.0)
    assert meter.update(members, 1.0) == 4_000
    put(100_000)
    members[0].read(made_up.ledger)
    members.append(made_up.process(2))
    meter.on_processes_changed()
    read_file, order = TrackedProcess.read_file, []

    def touched_in_between(member: TrackedProcess, name: str) -> bytes:
        if name == "smaps_rollup":
            order.append(member.pid)
            if len(order) == 2:
                put(104_000)
        return read_file(member, name)

    monkeypatch.setattr(TrackedProcess, "read_file", touched_in_between)
    assert meter.update(members, 1.0) == pytest.approx(108_000, rel=0.05)
    assert sorted(order[:2]) == [1, 2]


def test_pages_touched_little_by_little_are_no_rush_after_one_that_did_not_end(made_up: FakeProc) -> None:
    made_up.put(1, rss=200_000, pss=200_000, shared=200_000, shared_pss=200_000, private=200_000)
    made_up.put(2, rss=200_000, pss=100_000, shared=200_000, shared_pss=100_000, private=0)
    (made_up.proc / "2" / "smaps_rollup").write_text("")
    members = [made_up.process(1)]
    meter = PssEstimator(clock=CostlyClock(1e-4), share=0.01, interval_s=1.0)
    meter.update(members, 1.0)
    members.append(made_up.process(2))
    meter.on_processes_changed()
    rushes = []
    for row in range(200):
        shared = 200_000 + row * 4_000
        made_up.put(1, rss=shared, pss=shared, shared=shared, shared_pss=shared, private=shared)
        members[0].read(made_up.ledger)
        meter.update(members, 1.0)
        rushes.append(meter._is_in_burst())
    assert rushes == [True] * 10 + [False] * 190


def test_small_processes_that_come_and_go_leave_the_sum_of_a_pool_alone(made_up: FakeProc) -> None:
    for pid in range(1, 5):
        made_up.put(pid, rss=204_000, pss=54_000, shared=200_000, shared_pss=50_000, private=4_000)
    members = [made_up.process(pid) for pid in range(1, 5)]
    meter = PssEstimator(clock=CostlyClock(0.01), share=0.01, interval_s=1.0)
    for _ in range(10):
        meter.update(members, 1.0)
    for row in range(40):
        shared = 10_000 if row % 2 else 0
        made_up.put(9, rss=4_000 + shared, pss=4_000 + shared, shared=shared, shared_pss=shared, private=4_000 + shared)
        small = made_up.process(9)
        meter.on_processes_changed()
        assert meter.update([*members, small], 1.0) == pytest.approx(216_000 + 4_000 + shared, rel=0.05)
        meter.on_process_gone(small)


def test_shared_pages_that_are_touched_between_two_readings_of_a_row_are_there_once(
    made_up: FakeProc, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up.put(1, rss=200_000, pss=200_000, shared=200_000, shared_pss=200_000)
    made_up.put(2, rss=300_000, pss=300_000)
    members = [made_up.process(pid) for pid in (1, 2)]
    read_file, order = TrackedProcess.read_file, []

    def touched_in_between(member: TrackedProcess, name: str) -> bytes:
        if name == "smaps_rollup":
            order.append(member.pid)
            if order == [1, 2]:
                made_up.put(1, rss=200_000, pss=100_000, shared=200_000, shared_pss=100_000, private=0)
                made_up.put(2, rss=500_000, pss=400_000, shared=200_000, shared_pss=100_000, private=300_000)
        return read_file(member, name)

    monkeypatch.setattr(TrackedProcess, "read_file", touched_in_between)
    meter = PssEstimator(clock=CostlyClock(0.0), share=0.01, interval_s=1.0)
    assert meter.update(members, 1.0) == 500_000
    assert order[:2] == [1, 2]
    for member in members:
        member.read(made_up.ledger)
    assert meter.update(members, 1.0) == 500_000
    assert order[2:] == [1, 2], "both once more"


def test_shares_that_were_read_are_not_counted_again_when_others_touch_the_same(made_up: FakeProc) -> None:
    # The first was read when it had touched all of it, the second when it had touched nothing.
    made_up.put(1, rss=80_000, pss=80_000, shared=60_000, shared_pss=60_000)
    made_up.put(2, rss=20_000, pss=20_000)
    members, meter, clock = started(made_up, 1, 2)
    made_up.put(2, rss=80_000, pss=1, shared=60_000)
    assert without_budget(made_up, members, meter, clock) == 100_000


def test_pages_shared_with_others_outside_the_tree_stay_theirs_when_some_more_are_touched(made_up: FakeProc) -> None:
    made_up.put(1, rss=100_000, pss=20_000, shared=90_000, shared_pss=10_000)
    members, meter, clock = started(made_up, 1)
    made_up.put(1, rss=100_400, pss=1, shared=90_400)
    assert without_budget(made_up, members, meter, clock) == 20_400


def test_shared_pages_given_back_take_their_part_of_the_share_with_them(made_up: FakeProc) -> None:
    made_up.put(1, rss=50_000, pss=30_000, shared=40_000, shared_pss=20_000)
    members, meter, clock = started(made_up, 1)
    made_up.put(1, rss=20_000, pss=1, shared=10_000)
    assert without_budget(made_up, members, meter, clock) == 10_000 + 5_000


def test_a_process_not_read_yet_has_the_others_shared_pages(made_up: FakeProc) -> None:
    made_up.put(1, rss=50_000, pss=50_000, shared=30_000, shared_pss=30_000)
    members, meter, clock = started(made_up, 1)
    made_up.put(2, rss=60_000, pss=1, shared=40_000, faults=500)
    members.append(made_up.process(2))
    assert without_budget(made_up, members, meter, clock) == 20_000 + 500 * PAGE_KIB + 40_000


def test_processes_that_touch_different_files_are_put_right_by_the_next_reading(made_up: FakeProc) -> None:
    for pid in (1, 2):
        made_up.put(pid, rss=10_000, pss=10_000)
    members, meter, clock = started(made_up, 1, 2)
    for pid in (1, 2):
        made_up.put(pid, rss=60_000, pss=60_000, shared=50_000, shared_pss=50_000)
    assert without_budget(made_up, members, meter, clock) == 70_000
    clock.cost_s = 0.0
    # Nothing that was read says that they share; that they may is enough.
    assert meter.update(members, 30.0) == 120_000


def test_who_was_read_alone_is_read_again_at_once_when_another_turns_out_to_share(made_up: FakeProc) -> None:
    made_up.put(1, rss=60_000, pss=60_000, shared=50_000, shared_pss=50_000)
    made_up.put(2, rss=10_000, pss=10_000)
    members, meter, clock = started(made_up, 1, 2)
    clock.cost_s = 0.0
    made_up.put(1, rss=60_000, pss=35_000, shared=50_000, shared_pss=25_000)
    made_up.put(2, rss=60_000, pss=35_000, shared=50_000, shared_pss=25_000)
    members[1].read(made_up.ledger)
    # Nothing of the first's own has changed; reading the second shows that it is due as well.
    assert meter.update(members, 30.0) == 35_000 + 35_000


def test_a_process_that_ends_while_it_is_read_does_not_count_its_shared_pages_again(made_up: FakeProc) -> None:
    for pid in (1, 2):
        made_up.put(pid, rss=60_000, pss=35_000, shared=50_000, shared_pss=25_000, faults=100_000)
    members, meter, clock = started(made_up, 1, 2)
    clock.cost_s = 0.0
    meter.on_processes_changed()
    made_up.end(2)
    assert meter.update(members, 30.0) == 70_000
    assert not members[1].pss.denied


def test_a_kernel_without_rollups_gives_resident_sets(made_up: FakeProc) -> None:
    made_up.put(1, rss=60_000, pss=None, shared=50_000)
    member = made_up.process(1)
    meter = PssEstimator(clock=CostlyClock(0.0), share=0.01, interval_s=1.0)
    assert meter.update([member], 1.0) == 60_000
    assert member.pss.denied


def test_a_rollup_without_parts_counts_anonymous_pages_as_its_own(made_up: FakeProc) -> None:
    made_up.put(1, rss=100_000, pss=90_000, shared=40_000, shared_pss=None)
    members, meter, clock = started(made_up, 1)
    assert members[0].pss.reading is not None
    assert members[0].pss.reading.anon_pss_kib == 60_000
    made_up.put(1, rss=130_000, pss=1, shared=50_000)
    assert without_budget(made_up, members, meter, clock) == 90_000 + 30_000


def test_without_statm_a_change_counts_as_the_process_own(made_up: FakeProc) -> None:
    made_up.put(1, rss=100_000, pss=60_000, shared=50_000, shared_pss=20_000)
    members, meter, clock = started(made_up, 1)
    made_up.put(1, rss=110_000, pss=1)
    (made_up.proc / "1/statm").unlink()
    assert without_budget(made_up, members, meter, clock) == 70_000
    # So does a process that has just ended: its memory was there when RSS was read.
    made_up.put(1, rss=120_000, pss=1)
    (made_up.proc / "1/statm").write_text("0 0 0 0 0 0 0\n")
    assert without_budget(made_up, members, meter, clock) == 80_000


def test_statm_is_read_when_rss_changed_until_both_agree_or_stand_still(made_up: FakeProc) -> None:
    made_up.put(1, rss=20_000, pss=20_000)
    members, meter, clock = started(made_up, 1)
    statm = made_up.proc / "1/statm"
    statm.write_text("must not be read")
    assert without_budget(made_up, members, meter, clock) == 20_000
    # RSS went up; by the time statm was read, another 10,000 were there that RSS never saw.
    made_up.put(1, rss=24_000, pss=1)
    statm.write_text(f"9999 {34_000 // PAGE_KIB} 0 1 0 99 0\n")
    assert without_budget(made_up, members, meter, clock) == 34_000
    statm.write_text(f"9999 {24_000 // PAGE_KIB} 0 1 0 99 0\n")
    assert without_budget(made_up, members, meter, clock) == 24_000
    # They differ for good: the second look settles it.
    made_up.put(1, rss=28_000, pss=1)
    statm.write_text(f"9999 {28_400 // PAGE_KIB} 0 1 0 99 0\n")
    assert [without_budget(made_up, members, meter, clock) for _ in range(2)] == [28_400, 28_400]
    statm.write_text("must not be read")
    assert without_budget(made_up, members, meter, clock) == 28_400


def test_trifles_count_as_anonymous_until_they_add_up(made_up: FakeProc) -> None:
    made_up.put(1, rss=100_000, pss=100_000)
    made_up.put(2, rss=20_000, pss=20_000)
    members, meter, clock = started(made_up, 1, 2)
    # One per cent of 120,000 is 600 for each of the two.
    made_up.put(2, rss=20_400, pss=1)
    statm = made_up.proc / "2/statm"
    statm.write_text("must not be read")
    assert without_budget(made_up, members, meter, clock) == 120_400
    made_up.put(2, rss=20_800, pss=1, shared=800)
    assert without_budget(made_up, members, meter, clock) == 120_800
    assert (members[1].pss.anon_kib, members[1].pss.shared_kib) == (20_000, 800)


SHARING_WORKERS = """
import mmap, os, sys

WORKERS, SHARED, OWN = 4, 120 << 20, 30 << 20

def touch(memory, part):
    size = int(len(memory) * part)
    memory[: size : mmap.PAGESIZE] = b"x" * len(range(0, size, mmap.PAGESIZE))

common = mmap.mmap(-1, SHARED)
steps = [os.pipe(), os.pipe()]
done = os.pipe()
pids = []
for number in range(WORKERS):
    pids.append(os.fork())
    if pids[-1] == 0:
        for _, write_end in steps:
            os.close(write_end)
        own = mmap.mmap(-1, OWN, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        own.madvise(mmap.MADV_NOHUGEPAGE)
        # At first each has got to a quarter more of the shared pages than the one before.
        for step, parts in zip(steps, ((number / WORKERS, 0.5), (1, 1))):
            if os.read(step[0], 1):
                touch(common, parts[0])
                touch(own, parts[1])
                os.write(done[1], b"x")
        os.read(steps[-1][0], 1)
        os._exit(0)
print(os.getpid(), *pids, flush=True)
for _, write_end in steps:
    sys.stdin.readline()
    os.write(write_end, b"x" * WORKERS)
    for _ in range(WORKERS):
        os.read(done[0], 1)
    print("touched", flush=True)
sys.stdin.readline()
for _, write_end in steps:
    os.close(write_end)
for pid in pids:
    os.waitpid(pid, 0)
"""


def pss_kib(pids: list[int]) -> int:
    """What the kernel says."""
    rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii") for pid in pids]
    return sum(int(rollup.partition("\nPss:")[2].split()[0]) for rollup in rollups)


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs Linux' /proc")
def test_workers_that_touch_shared_memory_are_measured_right_before_they_are_read_again() -> None:
    command = [sys.executable, "-S", "-c", SHARING_WORKERS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdin is not None
        assert job.stdout is not None
        pids = [int(word) for word in job.stdout.readline().split()]
        real = FakeProc(Path("/proc"))

        def let_touch(stdin: IO[str], stdout: IO[str]) -> None:
            stdin.write("\n")
            stdin.flush()
            assert stdout.readline() == "touched\n"

        let_touch(job.stdin, job.stdout)
        members, meter, clock = started(real, *pids)
        before_kib = pss_kib(pids)
        let_touch(job.stdin, job.stdout)
        truth_kib = pss_kib(pids)
        assert truth_kib - before_kib > 80 << 10
        assert without_budget(real, members, meter, clock) == pytest.approx(truth_kib, rel=0.02)
        job.communicate("\n")
    assert job.returncode == 0


SHARING_UNTIL_SEEN = """
import mmap, os, sys, time
common = mmap.mmap(-1, 64 << 20)
for at in range(0, len(common), mmap.PAGESIZE):
    common[at] = 1
pid = os.fork()
for at in range(0, len(common), mmap.PAGESIZE):
    common[at]
def lines():
    return open(sys.argv[1], "rb").read().count(b"\\n") if os.path.exists(sys.argv[1]) else 0
seen = lines()
while lines() < seen + 5:
    time.sleep(0.02)
if pid:
    os.waitpid(pid, 0)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs Linux' /proc")
@pytest.mark.parametrize(
    ("words", "environ", "toml", "reads_pss"),
    [
        ((), {}, "", True),
        (("--pss-budget", "100"), {"SENTINEL_PSS_BUDGET": "0"}, "", True),
        ((), {"SENTINEL_PSS_BUDGET": "0"}, "pss_budget = 2.5", False),
        ((), {}, "pss_budget = 0", False),
    ],
    ids=["default", "flag", "environment", "file"],
)
def test_the_budget_says_whether_shared_memory_counts_once(
    home: Home, words: tuple[str, ...], environ: dict[str, str], toml: str, reads_pss: bool
) -> None:
    home.start_uploader()
    output, file = home.directory / "rows.csv", home.directory / "collector.toml"
    file.write_text(toml, encoding="utf-8")
    at = ("--connect", home.address, "--config", str(file))
    options = (*at, "--interval", "0.1", "--output", str(output), *words)
    job = (sys.executable, "-S", "-c", SHARING_UNTIL_SEEN, str(output))
    done = home.collector(*options, "--", *job, env=environ)
    assert done.returncode == 0, done.stderr
    column = COLUMNS.index("process_memory_mib")
    memory = [float(row.split(",")[column] or 0) for row in rows_of_file(output)]
    # Two interpreters and 64 MiB that both have, or 64 MiB twice.
    assert (max(memory) < 110) == reads_pss
    assert max(memory) > (64 if reads_pss else 128)


@pytest.mark.parametrize("value", ["101", "-1", "nan", "1%", ""])
def test_a_budget_that_is_none_is_refused_before_the_job_starts(home: Home, value: str) -> None:
    expected = f"{value!r}: must be a percentage from 0 to 100\n"
    job = ("--", "touch", str(home.directory / "started"))
    done = home.collector(f"--pss-budget={value}", *job)
    assert (done.returncode, done.stderr) == (2, f"sentinel-collector: --pss-budget: {expected}")
    done = home.collector(*job, env={"SENTINEL_PSS_BUDGET": value} if value else {"SENTINEL_PSS_BUDGET": "%"})
    assert done.returncode == 2
    assert "environment variable SENTINEL_PSS_BUDGET: " in done.stderr
    assert not (home.directory / "started").exists()


def test_the_default_is_the_sensor_s() -> None:
    (budget,) = (setting for setting in SETTINGS if setting.name == "pss_budget")
    assert budget.default == DEFAULT_SHARE * 100


def test_a_reading_that_hangs_holds_nothing_up_and_is_told_once(
    made_up: FakeProc, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pid in (1, 2):
        made_up.put(pid, rss=40_000, pss=30_000, faults=1_000_000)
    hung, other = made_up.process(1), made_up.process(2)
    gate = threading.Event()
    read_file = TrackedProcess.read_file

    def read(process: TrackedProcess, name: str) -> bytes:
        if process is hung and name == "smaps_rollup":
            gate.wait()
        return read_file(process, name)

    monkeypatch.setattr(TrackedProcess, "read_file", read)
    warnings: list[str] = []
    meter = PssEstimator(clock=CostlyClock(1e-4), share=0.01, interval_s=1.0, warn=warnings.append)
    # Both count with their resident set: no other reading is made meanwhile.
    assert [meter.update([hung, other], 1.0) for _ in range(3)] == [80_000] * 3
    assert len(warnings) == 1
    gate.set()
    deadline = time.monotonic() + 20
    while meter.update([hung, other], 1.0) != 60_000:
        assert time.monotonic() < deadline
    meter.close()
