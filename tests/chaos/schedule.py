"""What goes wrong and when: a pure function of a seed, so that a failure can be repeated."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from chaos.answers import API_FAULTS, STORAGE_FAULTS, CallFault, draw

MEAN_GAP_S = 0.42
"""Between two disturbances; about half of them kill a process."""
REVOCATIONS = ("ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "AccessDenied")
SPILLED_AFTER_S = 3.0
"""A collector that nobody answers has its rows on disk by then, but for the youngest."""
_CLOCK_STEPS_S = (-7200.0, -90.0, -2.0, 2.0, 90.0, 7200.0)
_WEIGHTS = {
    "uploader killed": 14,
    "uploader told to end": 4,
    "uploader stopped (SIGSTOP)": 4,
    "uploader away for long": 3,
    "uploader's clock set": 3,
    "collector killed": 24,
    "collector told to end": 11,
    "collector stopped (SIGSTOP)": 5,
    "collector's clock set": 4,
    "connections reset": 5,
    "connections in a black hole": 3,
    "latency": 3,
    "collector killed while cut off": 2,
    "everything told to end at once": 1,
    "spool's disk full": 2,
    "credentials revoked": 4,
    "credentials that live 6 s": 2,
    "API refuses gzip and a field": 2,
    "servers ask for time": 3,
    "storage away for long": 3,
    "API": 16,
    "storage": 13,
}
VANISHED = "collector killed and never back"
AWAY = "uploader away for long"
NAMES = (
    *(name for name in _WEIGHTS if name not in {"API", "storage"}),
    VANISHED,
    "killed while it ends",
    *(f"API: {name}" for name in API_FAULTS),
    *(f"storage: {name}" for name in STORAGE_FAULTS),
)
"""Everything that a schedule of some minutes holds."""
AWAY_AFTER_S = 3.0
"""Plus up to three seconds more: longer than a collector with several addresses waits for its uploader."""
_VANISH_EVERY_S = 60.0
_MOST_VANISHED_SHARE = 0.3
_ABSENT_SHARE = 0.5
_LASTS_S = {
    "uploader killed": 2.0,
    "collector killed": 2.0,
    "everything told to end at once": 1.0,
    "latency": 3.0,
    "credentials that live 6 s": 8.0,
    "API refuses gzip and a field": 8.0,
    "uploader away for long": 3.0,
}


@dataclass(frozen=True)
class Disturbance:
    """One thing that goes wrong `at_s` seconds after the beginning.

    `lasts_s`: how long a process is down, paused or hung, or the network disturbed. `which` picks a process (modulo
    their number).
    """

    at_s: float
    name: str
    lasts_s: float = 0.0
    which: int = 0
    fault: CallFault = field(default_factory=CallFault)
    code: str = ""
    amount_s: float = 0.0
    """Of latency; by how much a clock is wrong."""
    kill_after_s: float | None = None
    """A process that is told to end is killed so much later, while it ends."""


def schedule(seed: int, duration_s: float, longest_s: float) -> list[Disturbance]:
    """Return the disturbances of so many seconds, in order; pauses and black holes last `longest_s` at most."""
    rng = random.Random(seed)
    absence = Disturbance(duration_s * _ABSENT_SHARE, AWAY, AWAY_AFTER_S)
    always = [*_vanishings(rng, duration_s), absence]
    return sorted([*_disturbances(rng, duration_s, longest_s), *always], key=lambda one: one.at_s)


def _disturbances(rng: random.Random, duration_s: float, longest_s: float) -> Iterator[Disturbance]:
    # First there are some rows to be lost.
    at_s = 1.5
    while at_s < duration_s:
        kind = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        yield _one(rng, at_s, kind, longest_s)
        at_s += rng.expovariate(1 / MEAN_GAP_S)


def _vanishings(rng: random.Random, duration_s: float) -> Iterator[Disturbance]:
    # Early, so that their runs are closed while others still go on.
    at_s = min(duration_s * _MOST_VANISHED_SHARE, _VANISH_EVERY_S)
    while at_s < duration_s:
        yield Disturbance(at_s, VANISHED, which=rng.randrange(1 << 16))
        at_s += _VANISH_EVERY_S


def _one(rng: random.Random, at_s: float, kind: str, longest_s: float) -> Disturbance:
    which = rng.randrange(1 << 16)
    lasts_s = rng.uniform(0.0, _LASTS_S.get(kind, longest_s))
    match kind:
        case "API" | "storage":
            name, fault = draw(API_FAULTS if kind == "API" else STORAGE_FAULTS, rng)
            return Disturbance(at_s, f"{kind}: {name}", rng.uniform(0.5, 3.0), fault=fault)
        case "credentials revoked":
            return Disturbance(at_s, kind, code=rng.choice(REVOCATIONS))
        case "latency":
            return Disturbance(at_s, kind, lasts_s, which, amount_s=rng.uniform(0.02, 0.4))
        case "uploader's clock set" | "collector's clock set":
            amount_s = rng.choice(_CLOCK_STEPS_S) * rng.uniform(0.1, 1.0)
            return Disturbance(at_s, kind, which=which, amount_s=amount_s)
        case "collector told to end" | "uploader told to end":
            kill_after_s = rng.uniform(0.0, 0.6) if rng.random() < 0.3 else None
            return Disturbance(at_s, kind, lasts_s, which, kill_after_s=kill_after_s)
        case "uploader away for long":
            return Disturbance(at_s, kind, AWAY_AFTER_S + lasts_s, which)
        case "servers ask for time":
            return Disturbance(at_s, kind, which=which, amount_s=rng.randint(2, 4))
        case "collector killed while cut off":
            return Disturbance(at_s, kind, SPILLED_AFTER_S + rng.uniform(0.3, 2.0), which)
        case "spool's disk full" | "storage away for long" | "connections in a black hole":
            return Disturbance(at_s, kind, 1.0 + lasts_s, which)
        case _:
            return Disturbance(at_s, kind, lasts_s, which)
