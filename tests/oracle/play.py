"""One drama from its seed to the verdict."""

from collections import Counter
from dataclasses import dataclass

from standins.product import Home

from oracle.drama import Stage
from oracle.schedule import schedule
from oracle.verdict import verdict


@dataclass(frozen=True)
class Report:
    """`problems` is empty when every guarantee has held; `repeat` says how to see them again."""

    problems: list[str]
    figures: Counter[str]
    repeat: str

    @property
    def kills(self) -> int:
        """How many processes were killed."""
        return sum(self.figures[name] for name in ("uploader-kill", "collector-kill", "kill while ending"))


def play(home: Home, seed: int, duration_s: float, collectors: int) -> Report:
    """Play the schedule of a seed and judge what is left; ends every process that it started."""
    repeat = f"repeat it: make chaos SEED={seed} DURATION={duration_s:g} COLLECTORS={collectors}"
    with Stage(home, collectors) as drama:
        try:
            drama.play(schedule(seed, duration_s))
            drama.calm()
        except AssertionError as error:
            drama.problems.append(str(error))
        problems = verdict(drama)
        for label, fault in drama.faults:
            drama.figures[f"fired: {label}"] += fault.fired
    return Report(problems, drama.figures, repeat)
