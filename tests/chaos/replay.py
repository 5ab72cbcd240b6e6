"""One scenario, from its seed to the list of problems."""

import json
from collections import Counter
from dataclasses import dataclass

from fakes.process_harness import Home

from chaos.checker import check, left_over
from chaos.cleanup import Cleanup
from chaos.collected_state import gather
from chaos.fault_injector import KILLS
from chaos.scenario import Scenario, stage
from chaos.schedule import NAMES, schedule

LONG_S = 300.0
"""So long a schedule holds everything that there is."""


@dataclass(frozen=True)
class Report:
    """`problems` is empty when every guarantee has held; `repeat` says how to see them again.

    `planned` and `fired` count disturbances by name: what was done, and how often it met somebody.
    """

    problems: list[str]
    planned: Counter[str]
    fired: Counter[str]
    figures: Counter[str]
    repeat: str

    @property
    def kills(self) -> int:
        """How many processes were killed."""
        return sum(self.fired[name] for name in KILLS)


def _write_down(scenario: Scenario) -> None:
    """Write the servers' requests beside the logs, for the search of a reason."""
    runs = [{"id": run.run_id, "began": run.registration, "ended": run.finish} for run in scenario.api.runs.values()]
    (scenario.home.directory / "runs.json").write_text(json.dumps(runs, indent=1), encoding="utf-8")
    with (scenario.home.directory / "calls.log").open("w", encoding="utf-8") as file:
        for one in sorted((*scenario.api.requests.of(), *scenario.s3.requests.of()), key=lambda one: one.at):
            fault = "" if one.fault is None else f" fault: {one.fault.call} fired {one.fault.fired}"
            file.write(f"{one.at:.3f} {one.call} {one.path} {one.status} took effect: {one.took_effect}{fault}\n")


def play(home: Home, *, seed: int, duration_s: float, collectors: int, uploaders: int) -> Report:
    """Play the schedule of a seed and check the result; ends every process that it started."""
    is_long = duration_s >= LONG_S
    repeat = f"repeat it: make chaos SEED={seed} DURATION={duration_s:g} COLLECTORS={collectors} UPLOADERS={uploaders}"
    # A run that is closed for its silence was not continued as it should have been: nobody is away for so long.
    stale_after_s, longest_s = (60.0, 5.0) if duration_s >= 60 else (16.0, 2.0)
    with stage(home, collectors=collectors, uploaders=uploaders, stale_after_s=stale_after_s) as scenario:
        try:
            with Cleanup(scenario.uploaders) as cleanup:
                scenario.play(schedule(seed, duration_s, longest_s))
                scenario.calm()
            scenario.end()
            problems = list(left_over(scenario))
        except AssertionError as error:
            problems = [str(error)]
        missing = set() if scenario.uploaders[0].disk.is_mounted else {"spool's disk full"}
        missing |= (
            set() if scenario.uploaders[0].clock.can_be_turned else {"uploader's clock set", "collector's clock set"}
        )
        state = gather(scenario, [name for name in NAMES if name not in missing] if is_long else [])
        problems += scenario.problems
        problems += [problem for one in (*scenario.uploaders, *scenario.collectors) for problem in one.problems]
        problems += check(state)
        state.figures["parked runs taken up again"] = cleanup.retried
        state.figures["disturbances skipped"] = scenario.injector.skipped
        state.figures["refused for want of room"] = scenario.refusals_for_room()
        if problems:
            _write_down(scenario)
    return Report(problems, state.planned, state.fired, state.figures, repeat)
