"""Memory of a tree: what is read when, and what stands in meanwhile, against a made-up /proc."""

import threading
from pathlib import Path

import pytest

from collector.sensors.ledger import Ledger
from collector.sensors.member import PAGE_KIB, Member
from collector.sensors.procfs import Descriptors
from collector.sensors.pss import PssMeter


class CostlyClock:
    """Every look at it takes a fixed time: so much a reading costs, half of it each at begin and end."""

    def __init__(self, cost_s: float) -> None:
        self.cost_s = cost_s
        self.time_s = 0.0

    def now(self) -> float:
        return 0.0

    def monotonic(self) -> float:
        self.time_s += self.cost_s
        return self.time_s

    def wait(self, event: threading.Event, timeout_s: float | None) -> bool:
        return event.is_set() or timeout_s == 0


class MadeUp:
    """Processes whose files say what a test wants."""

    def __init__(self, proc: Path) -> None:
        self.proc = proc
        self.ledger = Ledger()

    def put(self, pid: int, *, rss: int, pss: int | None, faults: int = 0) -> None:
        directory = self.proc / str(pid)
        directory.mkdir(exist_ok=True)
        before = f"{pid} (a) b) S 1 1 1 0 -1 0 {faults} 0 0 0 1 2 3 4 20 0 1 0 55 4096 {rss // PAGE_KIB} 99\n"
        (directory / "stat").write_text(before)
        (directory / "status").write_text(f"Name:\ta\nVmHWM:\t{rss * 2} kB\n")
        (directory / "smaps_rollup").unlink(missing_ok=True)
        if pss is not None:
            (directory / "smaps_rollup").write_text(f"0-1 [rollup]\nRss: {rss} kB\nPss:  {pss} kB\nPss_Anon: 1 kB\n")

    def member(self, pid: int) -> Member:
        member = Member(pid, proc=str(self.proc), descriptors=Descriptors(0), parent=None)
        assert member.read(self.ledger)
        return member


@pytest.fixture
def made_up(tmp_path: Path) -> MadeUp:
    return MadeUp(tmp_path)


def test_the_first_reading_is_pss_and_a_change_of_rss_moves_it(made_up: MadeUp) -> None:
    made_up.put(1, rss=100_000, pss=97_000)
    member = made_up.member(1)
    meter = PssMeter(clock=CostlyClock(0.01), share=0.01, interval_s=1.0)
    assert meter.measure([member], 1.0) == 97_000
    # Its own pages nearly all: no reason to pay for another reading.
    made_up.put(1, rss=104_000, pss=1)
    member.read(made_up.ledger)
    assert meter.measure([member], 1.0) == 101_000
    assert meter.peak_kib == 200_000


def test_readings_keep_to_the_budget(made_up: MadeUp) -> None:
    members = []
    for pid in range(1, 5):
        made_up.put(pid, rss=40_000, pss=20_000, faults=1_000_000)
        members.append(made_up.member(pid))
    clock = CostlyClock(0.01)
    meter = PssMeter(clock=clock, share=0.01, interval_s=1.0)
    for _ in range(100):
        meter.members_changed()
        meter.measure(members, 1.0)
    # A hundred seconds allow one second, and the budget saved up at the start is a few intervals' worth.
    assert clock.time_s <= 2 * (1.0 + 0.025 + 0.01)
    assert clock.time_s >= 0.9


def test_a_process_that_shares_is_read_again_when_others_come(made_up: MadeUp) -> None:
    made_up.put(1, rss=40_000, pss=20_000)
    member = made_up.member(1)
    meter = PssMeter(clock=CostlyClock(0.0), share=0.01, interval_s=1.0)
    assert meter.measure([member], 1.0) == 20_000
    made_up.put(1, rss=40_000, pss=13_000)
    assert meter.measure([member], 1.0) == 20_000
    meter.members_changed()
    assert meter.measure([member], 1.0) == 13_000


def test_a_parent_is_read_again_after_a_fork_but_not_after_an_exec(made_up: MadeUp) -> None:
    made_up.put(1, rss=400_000, pss=400_000)
    made_up.put(2, rss=2_000, pss=500)
    made_up.put(3, rss=390_000, pss=200_000)
    parent, program, worker = (made_up.member(pid) for pid in (1, 2, 3))
    meter = PssMeter(clock=CostlyClock(0.0), share=0.01, interval_s=1.0)
    meter.measure([parent], 1.0)
    made_up.put(1, rss=400_000, pss=200_000)
    meter.members_changed()
    meter.member_born(parent, program)
    assert meter.measure([parent, program], 1.0) == 400_500
    meter.members_changed()
    meter.member_born(parent, worker)
    assert meter.measure([parent, program, worker], 1.0) == 400_500


def test_pages_that_a_new_process_has_not_touched_are_its_parents(made_up: MadeUp) -> None:
    made_up.put(1, rss=40_000, pss=40_000)
    made_up.put(2, rss=40_000, pss=10_000, faults=500)
    members = [made_up.member(1), made_up.member(2)]
    # The first reading is always allowed; it uses up what there is.
    meter = PssMeter(clock=CostlyClock(0.01), share=1e-9, interval_s=1.0)
    assert meter.measure(members, 1.0) == 40_000 + 500 * PAGE_KIB
    assert PssMeter(clock=CostlyClock(0.01), share=0.0, interval_s=1.0).measure(members, 1.0) == 80_000


def test_rss_stands_in_where_pss_is_not_to_be_had(made_up: MadeUp) -> None:
    made_up.put(1, rss=40_000, pss=None)
    member = made_up.member(1)
    meter = PssMeter(clock=CostlyClock(0.0), share=0.01, interval_s=1.0)
    assert meter.measure([member], 1.0) == 40_000
    made_up.put(1, rss=44_000, pss=1)
    member.read(made_up.ledger)
    # Asked once, and never again.
    assert meter.measure([member], 1.0) == 44_000


def test_a_pid_of_another_start_time_is_another_process(made_up: MadeUp) -> None:
    made_up.put(1, rss=40_000, pss=1)
    member = made_up.member(1)
    assert member.is_alive()
    stat = made_up.proc / "1/stat"
    stat.write_text(stat.read_text().replace(" 55 ", " 56 "))
    assert not member.is_alive()
    assert not member.read(made_up.ledger)


def test_a_torn_stat_line_says_nothing_new(made_up: MadeUp) -> None:
    made_up.put(1, rss=40_000, pss=1)
    member = made_up.member(1)
    (made_up.proc / "1/stat").write_text("1 (a")
    assert member.read(made_up.ledger)
    assert member.rss_kib == 40_000
    (made_up.proc / "1/stat").unlink()
    assert not member.read(made_up.ledger)
