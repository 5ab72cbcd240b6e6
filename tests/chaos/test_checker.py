"""The checks themselves: each violation of a guarantee is found."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
from fakes.faults import Fault, Recorded

from chaos.checker import OFTEN, check
from chaos.collected_state import CollectedState, Told
from chaos.record import VANISHED, End, Generation, Part
from chaos.traffic_recorder import Place

DONE = End("finished", 0)
PREFIX = "s3://bucket/run-1"
KEY = "key"


def row(number: int) -> str:
    return f"{number}.000,{number}"


def rows(*numbers: int) -> list[str]:
    return [row(number) for number in numbers]


def part(numbers: Iterable[int], *, killed: bool = False, ending: bool = False, replaced: bool = False) -> Part:
    """The rows of these numbers, each seen in the second of its number."""
    seen = [float(number) for number in numbers]
    return Part(killed, ending, replaced, rows(*map(int, seen)), seen, seen)


def told(numbers: Iterable[int], end: End = DONE, *, objects: int = 1, name: str = "job") -> Told:
    uris = [f"{PREFIX}/{number:04d}.csv.gz" for number in range(1, objects + 1)]
    return Told(name, end, rows(*numbers), uris, PREFIX)


def sound() -> CollectedState:
    """A run of two collectors, the first of which was killed with one row in memory."""
    generation = Generation("job", [part(range(1, 6), killed=True), part(range(7, 10))], [DONE])
    delivered = told([1, 2, 3, 4, 7, 8, 9])
    return CollectedState(
        generations=[generation],
        told=[delivered],
        acknowledged={KEY: set(delivered.rows)},
        versions={uri: [b"body"] for uri in delivered.uris},
    )


def problems(state: CollectedState) -> str:
    return "\n".join(check(state))


def test_what_went_well_is_no_problem() -> None:
    state = sound()
    assert check(state) == []
    figures = state.figures
    assert (figures["rows sampled"], figures["rows delivered"], figures["rows lost"]) == (8, 7, 0)
    assert (figures["rows acknowledged"], figures["rows in a killed collector's memory"]) == (7, 1)


@pytest.mark.parametrize(
    ("delivered", "noticed"),
    [
        ([1, 2, 4, 7, 8, 9], "2 rows of part 0 (killed: True) are lost"),
        ([1, 2, 3, 4, 5, 7, 9], "1 rows of part 1 (killed: False) are lost"),
        ([1, 2, 3, 4, 5, 7, 8], "1 rows of part 1 (killed: False) are lost"),
        ([7, 8, 9], "1 rows of part 0 (killed: True) are lost"),
        ([1, 2, 3, 4, 4, 7, 8, 9], "delivered more than once"),
        ([1, 2, 4, 3, 7, 8, 9], "out of order"),
        ([7, 8, 9, 1, 2, 3, 4], "out of order"),
        ([1, 2, 3, 4, 7, 8, 9, 10], "1 rows were delivered that nobody has sampled"),
        ([], "rows of part 1 (killed: False) are lost"),
    ],
)
def test_rows_that_are_lost_doubled_reordered_or_invented_are_noticed(delivered: list[int], noticed: str) -> None:
    state = sound()
    state.told = [told(delivered)]
    assert noticed in problems(state)


def test_a_row_that_was_changed_is_lost_and_invented() -> None:
    state = sound()
    state.told[0].rows[2] += "1"
    assert "nobody has sampled" in problems(state)
    assert "are lost" in problems(state)


def test_an_acknowledged_row_is_never_excused() -> None:
    state = sound()
    state.acknowledged[KEY].add(row(5))
    assert problems(state) == f"{KEY}: 1 acknowledged rows are in no object"


def test_rows_of_one_run_under_another_s_name_are_noticed() -> None:
    state = sound()
    state.generations = [*state.generations, Generation("other", [part([20])], [DONE])]
    state.told = [told([1, 2, 3, 4, 7, 8, 9, 20])]
    assert "job: 1 rows were delivered that nobody has sampled" in problems(state)
    assert "other: no run was finished" in problems(state)


def test_a_row_in_two_runs_is_noticed() -> None:
    state = sound()
    state.generations[0].ends.append(DONE)
    state.told = [*state.told, told([9], objects=0)]
    assert "delivered more than once" in problems(state)


def test_equal_time_stamps_are_noticed() -> None:
    twins = Part(rows=["1.000,1", "1.000,2"], not_before=[1.0, 1.0], not_after=[1.0, 1.0])
    state = CollectedState(generations=[Generation("job", [twins], [DONE])], told=[Told("job", DONE, twins.rows)])
    assert "time stamps do not increase" in problems(state)


@pytest.mark.parametrize(
    ("ends", "reported", "noticed"),
    [
        ([DONE], [], "no run was finished"),
        ([DONE], [End("failed", 0)], "instead of"),
        ([DONE], [End("finished", 1)], "instead of"),
        ([DONE], [VANISHED], "instead of"),
        ([DONE], [DONE, DONE], "2 runs were finished, 1 ends were begun"),
        ([End("failed", 143), DONE], [End("failed", 143)], "instead of"),
    ],
)
def test_runs_that_have_not_ended_as_they_must_are_noticed(ends: list[End], reported: list[End], noticed: str) -> None:
    state = CollectedState(
        generations=[Generation("job", [part([])], ends)], told=[told([], end, objects=0) for end in reported]
    )
    assert noticed in problems(state)


def test_a_run_that_was_killed_while_it_ended_may_have_ended_before() -> None:
    ends = [End("failed", 143), DONE]
    state = sound()
    state.generations[0].ends = ends
    assert check(state) == []
    state.told = [replace(told([1, 2, 3, 4]), end=ends[0]), told([7, 8, 9], objects=0)]
    assert check(state) == []


def test_an_abandoned_run_is_closed_as_failed_and_its_rows_are_delivered_or_kept() -> None:
    generation = Generation("job", [part(range(1, 9), killed=True)], [VANISHED], abandoned=True)
    state = CollectedState(generations=[generation], told=[told([1, 2, 3], VANISHED, objects=0)], kept={row(4), row(5)})
    state.acknowledged = {KEY: set(rows(1, 2, 3))}
    assert check(state) == []
    state.kept = set()
    assert "are lost" in problems(state)
    state.told = []
    assert "no run was finished" in problems(state)
    assert "3 acknowledged rows are in no object" in problems(state)


def test_a_run_that_vanished_before_anybody_knew_of_it_needs_no_end() -> None:
    generation = Generation("job", [part([1], killed=True)], [VANISHED], abandoned=True)
    assert check(CollectedState(generations=[generation], kept=set(rows(1)))) == []


def moved() -> CollectedState:
    """A job that ended with 3, whose run was left at its uploader with the row in doubt and went on at another."""
    end = End("failed", 3)
    parts = [told([1, 2, 3], End("finished", None), objects=0), told([4, 5], end, objects=0)]
    state = CollectedState(generations=[Generation("job", [part(range(1, 6))], [end])])
    state.told = [replace(parts[0], run_id="run-1"), replace(parts[1], run_id="run-2", continues="run-1")]
    state.homes = {"job": [Place(1, KEY), Place(2, f"{KEY}~1")]}
    return state


def test_a_run_that_has_moved_may_end_in_parts_and_one_that_has_not_may_not() -> None:
    state = moved()
    assert check(state) == []
    state.told[0].end = VANISHED
    assert check(state) == []
    state.homes = {"job": [Place(1, KEY), Place(1, f"{KEY}~1")]}
    assert check(state) == []
    state.told[1].continues = None
    assert "2 runs were finished, 1 ends were begun" in problems(state)


@pytest.mark.parametrize(
    ("delivered", "noticed"),
    [
        (([1, 2], [4, 5]), "1 rows of part 0 (killed: False) are lost"),
        (([1, 2, 3], [3, 4, 5]), "delivered more than once"),
        (([1, 2, 4], [3, 5]), "out of order"),
    ],
)
def test_rows_of_parts_that_are_lost_doubled_or_reordered_are_noticed(
    delivered: tuple[list[int], list[int]], noticed: str
) -> None:
    state = moved()
    state.told = [replace(one, rows=rows(*numbers)) for one, numbers in zip(state.told, delivered, strict=True)]
    assert noticed in problems(state)


def test_rows_in_doubt_that_came_too_late_for_their_part_are_kept_and_never_acknowledged_ones() -> None:
    state = moved()
    state.told[0].rows.remove(row(3))
    state.kept = {row(3)}
    assert check(state) == []
    state.acknowledged = {KEY: {row(3)}}
    assert "1 acknowledged rows are in no object" in problems(state)


@pytest.mark.parametrize(
    ("ends", "continues", "noticed"),
    [
        ([End("finished", 3), End("failed", 3)], "run-1", "finished in parts as"),
        ([End("finished", None), End("finished", None)], "run-1", "finished in parts as"),
        ([End("finished", None), VANISHED, End("failed", 3)], "run-1", "3 runs were finished, 2 were begun"),
        ([End("finished", None), End("failed", 3)], "run-7", "continues run-7, which is no part of it"),
    ],
)
def test_parts_that_have_not_ended_as_they_must_are_noticed(ends: list[End], continues: str, noticed: str) -> None:
    state = moved()
    first, second = state.told
    state.told = [replace(first, end=ends[0]), *(replace(second, end=end, rows=[]) for end in ends[1:])]
    state.told[-1] = replace(second, end=ends[-1], continues=continues)
    assert noticed in problems(state)


@pytest.mark.parametrize(("ending", "count"), [(True, 0), (False, 1)])
def test_output_that_was_begun_anew_in_the_middle_of_a_run_is_noticed(ending: bool, count: int) -> None:
    state = sound()
    state.generations[0].parts[0].was_ending = ending
    state.generations[0].parts[1].was_replaced = True
    assert problems(state).count("replaced --output") == count


def versions_differ(state: CollectedState) -> None:
    state.versions[f"{PREFIX}/0001.csv.gz"].append(b"other body")


def object_not_named(state: CollectedState) -> None:
    state.versions[f"{PREFIX}/0002.csv.gz"] = [b"body"]


def object_missing(state: CollectedState) -> None:
    state.versions.clear()


def gap_in_numbers(state: CollectedState) -> None:
    uri = f"{PREFIX}/0002.csv.gz"
    state.told = [replace(state.told[0], uris=[uri])]
    state.versions = {uri: [b"body"]}


def unknown_run(state: CollectedState) -> None:
    state.unknown = ["nobody's"]


def orphan(state: CollectedState) -> None:
    state.orphans = 1


def no_effect(state: CollectedState) -> None:
    state.planned = Counter({"latency": OFTEN})


def expected_and_missing(state: CollectedState) -> None:
    state.expected = ["API: hang"]


@pytest.mark.parametrize(
    ("spoil", "noticed"),
    [
        (versions_differ, "different bytes"),
        (object_not_named, "2 are stored"),
        (object_missing, "0 are stored"),
        (gap_in_numbers, "without gaps"),
        (unknown_run, "nobody has begun"),
        (orphan, "never finished"),
        (no_effect, "without an effect"),
        (expected_and_missing, "expected to happen"),
    ],
)
def test_everything_else_that_is_wrong_is_noticed(spoil: Callable[[CollectedState], None], noticed: str) -> None:
    state = sound()
    spoil(state)
    assert noticed in problems(state)


def requests(call: str, times: Iterable[float], status: int | None = 500, fault: Fault | None = None) -> list[Recorded]:
    return [Recorded(call, "POST", "/", {}, b"", "run-1", at=at, status=status, fault=fault) for at in times]


WISH = Fault("finish", status=429, headers={"Retry-After": "2"})


@pytest.mark.parametrize(
    ("asked", "noticed"),
    [
        (requests("put", (n / 2 for n in range(30)), 503), "failures in"),
        (requests("finish", (n / 2 for n in range(30)), None), "failures in"),
        (requests("register", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]), "5 repeated at once"),
        (requests("refresh", (n / 2 for n in range(30)), 200), "refresh run-1: 11 times"),
        (requests("finish", [0.0, 1.5], 429, WISH), "asked again after 1.50 s instead of 2"),
        (requests("finish", [0.0, 1.0, 3.0, 7.0, 15.0]), None),
        (requests("refresh", [0.0, 3.0, 6.0, 9.0], 200), None),
        (requests("finish", [0.0, 2.5], 429, WISH), None),
        (requests("put", (n / 10 for n in range(50)), 200), None),
    ],
)
def test_calls_in_a_loop_and_impatience_are_noticed(asked: list[Recorded], noticed: str | None) -> None:
    state = sound()
    state.calls = [(1, request) for request in asked]
    assert noticed in problems(state) if noticed else check(state) == []


@pytest.mark.parametrize(("run_ids", "count"), [(("run-1", "run-2"), 0), (("run-1", "run-1"), 1)])
def test_one_of_two_runs_that_are_registered_alike_may_ask_while_the_other_waits(
    run_ids: tuple[str, str], count: int
) -> None:
    state = sound()
    asked = requests("register", [0.0, 0.5, 2.5], 429, WISH)
    for request, run_id in zip(asked, (None, *run_ids), strict=True):
        request.run_id = run_id
    asked[1].fault = None
    state.calls = [(1, request) for request in asked]
    assert problems(state).count("asked again after 0.50 s") == count


def test_a_new_uploader_knows_nothing_of_its_predecessor_s_waits() -> None:
    state = sound()
    asked = requests("finish", [0.0, 0.1, 0.2, 0.3], 429, WISH)
    state.calls = list(enumerate(asked))
    assert check(state) == []


def test_hellos_in_a_loop_are_noticed() -> None:
    state = sound()
    state.hello_times = {(KEY, "collector"): [n / 10 for n in range(40)]}
    assert "40 Hellos" in problems(state)
