"""A short schedule of faults against the real commands; `make chaos` plays longer ones."""

import pytest
from fakes.process_harness import Home

from chaos.fault_injector import KILLS
from chaos.replay import play
from chaos.schedule import NAMES, VANISHED, schedule

SEED = 6006
DURATION_S = 10.0


@pytest.mark.timeout(300)
def test_every_guarantee_holds_while_everything_breaks(home: Home) -> None:
    report = play(home, seed=SEED, duration_s=DURATION_S, collectors=3, uploaders=2)
    print(*sorted(report.planned.items()), *sorted(report.figures.items()), sep="\n")
    assert not report.problems, "\n".join([*report.problems, report.repeat])
    assert report.kills >= 5
    for name in ("uploader killed", "collector killed", VANISHED):
        assert report.fired[name], name
    assert any(report.fired[name] for name in NAMES if name not in KILLS)
    assert report.figures["rows delivered"] >= report.figures["rows acknowledged"] > 0


def test_schedule_is_a_function_of_its_seed_and_holds_everything() -> None:
    first, second = schedule(7, 600.0, 5.0), schedule(7, 600.0, 5.0)
    assert first == second != schedule(8, 600.0, 5.0)
    assert {one.name for one in first} | {"killed while it ends"} == set(NAMES)
    assert [one.at_s for one in first] == sorted(one.at_s for one in first)
