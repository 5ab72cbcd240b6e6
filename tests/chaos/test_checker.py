"""The oracle's own eyes: each thing that must not happen is noticed when it has happened."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
from fakes.faults import Fault, Recorded

from chaos.checker import OFTEN, verdict
from chaos.collected_state import Evidence, Told
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


def sound() -> Evidence:
    """A run of two collectors, the first of which was killed with one row in memory."""
    generation = Generation("job", [part(range(1, 6), killed=True), part(range(7, 10))], [DONE])
    delivered = told([1, 2, 3, 4, 7, 8, 9])
    return Evidence(
        generations=[generation],
        told=[delivered],
        acknowledged={KEY: set(delivered.rows)},
        versions={uri: [b"body"] for uri in delivered.uris},
    )


def problems(evidence: Evidence) -> str:
    return "\n".join(verdict(evidence))


def test_what_went_well_is_no_problem() -> None:
    evidence = sound()
    assert verdict(evidence) == []
    figures = evidence.figures
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
    evidence = sound()
    evidence.told = [told(delivered)]
    assert noticed in problems(evidence)


def test_a_row_that_was_changed_is_lost_and_invented() -> None:
    evidence = sound()
    evidence.told[0].rows[2] += "1"
    assert "nobody has sampled" in problems(evidence)
    assert "are lost" in problems(evidence)


def test_an_acknowledged_row_is_never_excused() -> None:
    evidence = sound()
    evidence.acknowledged[KEY].add(row(5))
    assert problems(evidence) == f"{KEY}: 1 acknowledged rows are in no object"


def test_rows_of_one_run_under_another_s_name_are_noticed() -> None:
    evidence = sound()
    evidence.generations = [*evidence.generations, Generation("other", [part([20])], [DONE])]
    evidence.told = [told([1, 2, 3, 4, 7, 8, 9, 20])]
    assert "job: 1 rows were delivered that nobody has sampled" in problems(evidence)
    assert "other: no run was finished" in problems(evidence)


def test_a_row_in_two_runs_is_noticed() -> None:
    evidence = sound()
    evidence.generations[0].ends.append(DONE)
    evidence.told = [*evidence.told, told([9], objects=0)]
    assert "delivered more than once" in problems(evidence)


def test_equal_time_stamps_are_noticed() -> None:
    twins = Part(rows=["1.000,1", "1.000,2"], not_before=[1.0, 1.0], not_after=[1.0, 1.0])
    evidence = Evidence(generations=[Generation("job", [twins], [DONE])], told=[Told("job", DONE, twins.rows)])
    assert "time stamps do not increase" in problems(evidence)


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
    evidence = Evidence(
        generations=[Generation("job", [part([])], ends)], told=[told([], end, objects=0) for end in reported]
    )
    assert noticed in problems(evidence)


def test_a_run_that_was_killed_while_it_ended_may_have_ended_before() -> None:
    ends = [End("failed", 143), DONE]
    evidence = sound()
    evidence.generations[0].ends = ends
    assert verdict(evidence) == []
    evidence.told = [replace(told([1, 2, 3, 4]), end=ends[0]), told([7, 8, 9], objects=0)]
    assert verdict(evidence) == []


def test_an_abandoned_run_is_closed_as_failed_and_its_rows_are_delivered_or_kept() -> None:
    generation = Generation("job", [part(range(1, 9), killed=True)], [VANISHED], abandoned=True)
    evidence = Evidence(generations=[generation], told=[told([1, 2, 3], VANISHED, objects=0)], kept={row(4), row(5)})
    evidence.acknowledged = {KEY: set(rows(1, 2, 3))}
    assert verdict(evidence) == []
    evidence.kept = set()
    assert "are lost" in problems(evidence)
    evidence.told = []
    assert "no run was finished" in problems(evidence)
    assert "3 acknowledged rows are in no object" in problems(evidence)


def test_a_run_that_vanished_before_anybody_knew_of_it_needs_no_end() -> None:
    generation = Generation("job", [part([1], killed=True)], [VANISHED], abandoned=True)
    assert verdict(Evidence(generations=[generation], kept=set(rows(1)))) == []


def moved() -> Evidence:
    """A job that ended with 3, whose run was left at its uploader with the row in doubt and went on at another."""
    end = End("failed", 3)
    parts = [told([1, 2, 3], End("finished", None), objects=0), told([4, 5], end, objects=0)]
    evidence = Evidence(generations=[Generation("job", [part(range(1, 6))], [end])])
    evidence.told = [replace(parts[0], run_id="run-1"), replace(parts[1], run_id="run-2", continues="run-1")]
    evidence.homes = {"job": [Place(1, KEY), Place(2, f"{KEY}~1")]}
    return evidence


def test_a_run_that_has_moved_may_end_in_parts_and_one_that_has_not_may_not() -> None:
    evidence = moved()
    assert verdict(evidence) == []
    evidence.told[0].end = VANISHED
    assert verdict(evidence) == []
    evidence.homes = {"job": [Place(1, KEY), Place(1, f"{KEY}~1")]}
    assert verdict(evidence) == []
    evidence.told[1].continues = None
    assert "2 runs were finished, 1 ends were begun" in problems(evidence)


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
    evidence = moved()
    evidence.told = [replace(one, rows=rows(*numbers)) for one, numbers in zip(evidence.told, delivered, strict=True)]
    assert noticed in problems(evidence)


def test_rows_in_doubt_that_came_too_late_for_their_part_are_kept_and_never_acknowledged_ones() -> None:
    evidence = moved()
    evidence.told[0].rows.remove(row(3))
    evidence.kept = {row(3)}
    assert verdict(evidence) == []
    evidence.acknowledged = {KEY: {row(3)}}
    assert "1 acknowledged rows are in no object" in problems(evidence)


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
    evidence = moved()
    first, second = evidence.told
    evidence.told = [replace(first, end=ends[0]), *(replace(second, end=end, rows=[]) for end in ends[1:])]
    evidence.told[-1] = replace(second, end=ends[-1], continues=continues)
    assert noticed in problems(evidence)


@pytest.mark.parametrize(("ending", "count"), [(True, 0), (False, 1)])
def test_output_that_was_begun_anew_in_the_middle_of_a_run_is_noticed(ending: bool, count: int) -> None:
    evidence = sound()
    evidence.generations[0].parts[0].was_ending = ending
    evidence.generations[0].parts[1].was_replaced = True
    assert problems(evidence).count("replaced --output") == count


def versions_differ(evidence: Evidence) -> None:
    evidence.versions[f"{PREFIX}/0001.csv.gz"].append(b"other body")


def object_not_named(evidence: Evidence) -> None:
    evidence.versions[f"{PREFIX}/0002.csv.gz"] = [b"body"]


def object_missing(evidence: Evidence) -> None:
    evidence.versions.clear()


def gap_in_numbers(evidence: Evidence) -> None:
    uri = f"{PREFIX}/0002.csv.gz"
    evidence.told = [replace(evidence.told[0], uris=[uri])]
    evidence.versions = {uri: [b"body"]}


def unknown_run(evidence: Evidence) -> None:
    evidence.unknown = ["nobody's"]


def orphan(evidence: Evidence) -> None:
    evidence.orphans = 1


def nobody_disturbed(evidence: Evidence) -> None:
    evidence.planned = Counter({"latency": OFTEN})


def expected_and_missing(evidence: Evidence) -> None:
    evidence.expected = ["API: hang"]


@pytest.mark.parametrize(
    ("spoil", "noticed"),
    [
        (versions_differ, "different bytes"),
        (object_not_named, "2 are stored"),
        (object_missing, "0 are stored"),
        (gap_in_numbers, "without gaps"),
        (unknown_run, "nobody has begun"),
        (orphan, "never finished"),
        (nobody_disturbed, "nobody was disturbed"),
        (expected_and_missing, "expected to happen"),
    ],
)
def test_everything_else_that_is_wrong_is_noticed(spoil: Callable[[Evidence], None], noticed: str) -> None:
    evidence = sound()
    spoil(evidence)
    assert noticed in problems(evidence)


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
    evidence = sound()
    evidence.calls = [(1, request) for request in asked]
    assert noticed in problems(evidence) if noticed else verdict(evidence) == []


@pytest.mark.parametrize(("run_ids", "count"), [(("run-1", "run-2"), 0), (("run-1", "run-1"), 1)])
def test_one_of_two_runs_that_are_registered_alike_may_ask_while_the_other_waits(
    run_ids: tuple[str, str], count: int
) -> None:
    evidence = sound()
    asked = requests("register", [0.0, 0.5, 2.5], 429, WISH)
    for request, run_id in zip(asked, (None, *run_ids), strict=True):
        request.run_id = run_id
    asked[1].fault = None
    evidence.calls = [(1, request) for request in asked]
    assert problems(evidence).count("asked again after 0.50 s") == count


def test_a_new_uploader_knows_nothing_of_its_predecessor_s_waits() -> None:
    evidence = sound()
    asked = requests("finish", [0.0, 0.1, 0.2, 0.3], 429, WISH)
    evidence.calls = list(enumerate(asked))
    assert verdict(evidence) == []


def test_greetings_in_a_loop_are_noticed() -> None:
    evidence = sound()
    evidence.greeted_at = {(KEY, "collector"): [n / 10 for n in range(40)]}
    assert "40 greetings" in problems(evidence)
