"""The ledger against a model of the kernel: what is counted is what was used, whatever happens between two reads."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from sentinel_collector.sensors.process_tree.cpu_ledger import CpuLedger, ProcessAccount


@dataclass
class Process:
    """What the kernel knows of one process; times in microseconds, all multiples of a tick but for `rest`."""

    parent: "Process | None"
    ignores_children: bool = False
    own: int = 0
    waited_for: int = 0
    io: int = 0
    exited: bool = False
    gone: bool = False
    children: list["Process"] = field(default_factory=list)


class Kernel:
    """Processes run, fork, exit and wait. `lost` is what was handed to nobody."""

    def __init__(self) -> None:
        self.root = Process(None)
        self.all = [self.root]
        self.lost = 0
        self.lost_io = 0

    def living(self) -> list[Process]:
        return [process for process in self.all if not process.exited]

    def act(self, action: str, which: int) -> None:
        living = self.living()
        process = living[which % len(living)]
        if action == "run":
            process.own += 10_000 * (1 + which % 7)
            process.io += 4096 * (which % 5)
        elif action == "fork":
            child = Process(process)
            process.children.append(child)
            self.all.append(child)
        elif action == "ignore":
            process.ignores_children = True
        elif action == "exit" and process is not self.root:
            self._exit(process)
        elif action == "wait":
            self._wait(process)

    def _exit(self, process: Process) -> None:
        process.exited = True
        # A parent that ends has waited for its children in this model; see the orphan's own test below.
        for child in list(process.children):
            if not child.exited:
                self._exit(child)
        self._wait(process)
        assert process.parent is not None
        if process.parent.ignores_children:
            self._remove(process)
            self.lost += process.own + process.waited_for
            self.lost_io += process.io

    def _wait(self, process: Process) -> None:
        for child in list(process.children):
            if child.exited:
                self._remove(child)
                process.waited_for += child.own + child.waited_for
                process.io += child.io

    def _remove(self, process: Process) -> None:
        process.gone = True
        self.all.remove(process)
        assert process.parent is not None
        process.parent.children.remove(process)

    def used(self) -> tuple[int, int]:
        cpu = sum(process.own + process.waited_for for process in self.all)
        return cpu + self.lost, sum(process.io for process in self.all) + self.lost_io


class Reader:
    """Reads as the process tree does: members in the order in which they were found, one step at a time."""

    def __init__(self, kernel: Kernel) -> None:
        self.ledger = CpuLedger()
        self.members: dict[int, tuple[Process, ProcessAccount]] = {id(kernel.root): (kernel.root, ProcessAccount(None))}

    def steps(self) -> list[tuple[Process, ProcessAccount]]:
        return list(self.members.values())

    def read(self, process: Process, account: ProcessAccount, queue: list[tuple[Process, ProcessAccount]]) -> None:
        if process.gone:
            self.ledger.close(account)
            del self.members[id(process)]
            return
        self.ledger.count_cpu(account, (process.own, 0), (process.waited_for, 0))
        self.ledger.count_io(account, (process.io, 0))
        for child in process.children:
            if id(child) not in self.members:
                self.members[id(child)] = (child, ProcessAccount(account))
                queue.append(self.members[id(child)])


ACTIONS = ["run", "run", "fork", "exit", "wait", "wait"]
Act = tuple[str, int]


def play(acts: list[list[Act]], *, rounds_at_the_end: int = 3) -> tuple[Kernel, Reader]:
    kernel = Kernel()
    reader = Reader(kernel)
    waiting = iter(acts)
    shown = (0, 0)
    # Whatever was removed stays referenced, so that no id is used again.
    seen: list[Process] = []
    remaining = len(acts)
    while remaining > 0 or rounds_at_the_end > 0:
        if remaining <= 0:
            rounds_at_the_end -= 1
        queue = reader.steps()
        for process, account in queue:
            for action, which in next(waiting, []):
                kernel.act(action, which)
            remaining -= 1
            seen.append(process)
            reader.read(process, account, queue)
        reader.ledger.end_reading()
        counted = (reader.ledger.counted[0], reader.ledger.counted[2])
        assert counted >= shown
        assert counted[0] >= shown[0]
        assert counted[1] >= shown[1]
        used = kernel.used()
        assert counted[0] <= used[0]
        assert counted[1] <= used[1]
        shown = counted
    return kernel, reader


def acts_of(actions: list[str]) -> st.SearchStrategy[list[list[Act]]]:
    act = st.tuples(st.sampled_from(actions), st.integers(0, 50))
    return st.lists(st.lists(act, max_size=4), min_size=1, max_size=60)


@settings(max_examples=300, deadline=None)
@given(acts_of(ACTIONS))
def test_everything_is_counted_exactly_once(acts: list[list[Act]]) -> None:
    kernel, reader = play(acts)
    assert (reader.ledger.counted[0], reader.ledger.counted[2]) == kernel.used()


@settings(max_examples=300, deadline=None)
@given(acts_of([*ACTIONS, "ignore"]))
def test_what_is_handed_to_nobody_is_never_counted_twice(acts: list[list[Act]]) -> None:
    kernel, reader = play(acts)
    used = kernel.used()
    # Everything but what the lost ones had is there; what was seen of those stays.
    assert used[0] - 2 * kernel.lost <= reader.ledger.counted[0] <= used[0]


def test_an_unpaid_debt_is_forgotten_after_the_second_reading() -> None:
    ledger = CpuLedger()
    parent = ProcessAccount(None)
    child = ProcessAccount(parent)
    ledger.count_cpu(parent, (0, 0), (0, 0))
    ledger.count_cpu(child, (100_000, 0), (0, 0))
    ledger.end_reading()
    ledger.close(child)
    ledger.end_reading()
    ledger.count_cpu(parent, (0, 0), (0, 0))
    ledger.end_reading()
    ledger.count_cpu(parent, (0, 0), (50_000, 0))
    ledger.end_reading()
    assert ledger.counted[0] == 150_000


def test_a_debt_passes_on_when_the_heir_vanishes_too() -> None:
    ledger = CpuLedger()
    root = ProcessAccount(None)
    middle = ProcessAccount(root)
    leaf = ProcessAccount(middle)
    for account, own in ((root, 10_000), (middle, 20_000), (leaf, 40_000)):
        ledger.count_cpu(account, (own, 0), (0, 0))
    ledger.end_reading()
    ledger.count_cpu(root, (10_000, 0), (0, 0))
    ledger.count_cpu(middle, (20_000, 0), (0, 0))
    ledger.close(leaf)
    ledger.end_reading()
    ledger.count_cpu(root, (10_000, 0), (70_000, 0))
    ledger.close(middle)
    ledger.end_reading()
    assert ledger.counted[0] == 10_000 + 70_000


def test_the_exact_total_of_what_we_waited_for_replaces_ticks() -> None:
    ledger = CpuLedger()
    root = ProcessAccount(None)
    ledger.count_cpu(root, (10_000, 0), (20_000, 10_000))
    ledger.end_reading()
    ledger.close_with_rusage(root, 38_765, 14_321, was_final=True)
    assert ledger.counted[:2] == (38_765, 14_321)


def test_an_exact_total_that_holds_a_vanished_child_counts_it_once() -> None:
    ledger = CpuLedger()
    root = ProcessAccount(None)
    child = ProcessAccount(root)
    ledger.count_cpu(root, (0, 0), (0, 0))
    ledger.count_cpu(child, (50_000, 0), (0, 0))
    ledger.end_reading()
    ledger.close(child)
    ledger.end_reading()
    ledger.close_with_rusage(root, 57_000, 0, was_final=False)
    assert ledger.counted[0] == 57_000
