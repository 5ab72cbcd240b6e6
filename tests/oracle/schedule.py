"""What goes wrong and when: a pure function of a seed, so that a failure can be repeated."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

MEAN_GAP_S = 0.45
"""Between two disturbances; about half of them kill a process."""
STORAGE_CODES = (
    "SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "RequestTimeTooSkewed", "AccessDenied",
    "ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "TokenRefreshRequired",
)  # fmt: skip
REVOCATIONS = ("ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "AccessDenied")
_API_CALLS = ("register", "refresh", "finish", "*")
_API_STATUSES = (408, 425, 500, 502, 503, 504)
_WEIGHTS = {
    "uploader-kill": 14,
    "uploader-term": 4,
    "uploader-pause": 4,
    "collector-kill": 26,
    "collector-term": 12,
    "collector-pause": 6,
    "relay-reset": 6,
    "relay-hold": 4,
    "relay-delay": 4,
    "api": 10,
    "storage": 10,
    "revoke": 4,
    "short-credentials": 2,
}


@dataclass(frozen=True)
class Disturbance:
    """One thing that goes wrong `at_s` seconds after the beginning.

    `lasts_s`: how long a process is down, paused or hung, or the network troubled. `which` picks a collector (modulo
    their number). `fault` holds the arguments of `Faults.add`, without the call.
    """

    at_s: float
    kind: str
    lasts_s: float = 0.0
    which: int = 0
    call: str = "*"
    fault: Mapping[str, Any] = field(default_factory=dict)
    code: str = ""
    latency_s: float = 0.0
    kill_after_s: float | None = None
    """A collector that is told to end is killed so much later, while it ends."""

    @property
    def label(self) -> str:
        """Name of its kind in the figures."""
        if self.kind not in {"api", "storage"}:
            return f"{self.kind} {self.code}".rstrip()
        what = [f"{name}={value}" for name, value in self.fault.items() if name in {"status", "code"}]
        what += [name for name in ("drop_before", "drop_after_effect", "after_effect", "hang") if name in self.fault]
        what += ["slow"] if "delay_s" in self.fault else []
        what += ["Retry-After"] if "headers" in self.fault else []
        return " ".join([self.kind, self.call, *what])


def schedule(seed: int, duration_s: float) -> list[Disturbance]:
    """Return the disturbances of so many seconds, in order."""
    return list(_disturbances(random.Random(seed), duration_s))


def _disturbances(rng: random.Random, duration_s: float) -> Iterator[Disturbance]:
    # The first seconds belong to the start: a kill before the interpreter has come up shows nothing.
    at_s = 1.5
    while at_s < duration_s:
        kind = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        yield _one(rng, at_s, kind)
        at_s += rng.expovariate(1 / MEAN_GAP_S)


def _one(rng: random.Random, at_s: float, kind: str) -> Disturbance:
    which = rng.randrange(1 << 16)
    match kind:
        case "api":
            call = rng.choice(_API_CALLS)
            return Disturbance(at_s, kind, rng.uniform(0.5, 3.0), call=call, fault=_api_fault(rng))
        case "storage":
            return Disturbance(at_s, kind, rng.uniform(0.5, 3.0), call="put", fault=_storage_fault(rng))
        case "revoke":
            return Disturbance(at_s, kind, code=rng.choice(REVOCATIONS))
        case "short-credentials":
            return Disturbance(at_s, kind, rng.uniform(2.0, 8.0))
        case "relay-delay":
            return Disturbance(at_s, kind, rng.uniform(0.5, 3.0), latency_s=rng.uniform(0.02, 0.4))
        case "collector-term":
            kill_after_s = rng.uniform(0.0, 0.6) if rng.random() < 0.3 else None
            return Disturbance(at_s, kind, rng.uniform(0.0, 1.5), which=which, kill_after_s=kill_after_s)
        case _:
            longest_s = 5.0 if kind in {"relay-hold", "uploader-pause", "collector-pause"} else 2.0
            return Disturbance(at_s, kind, rng.uniform(0.0, longest_s), which=which)


def _api_fault(rng: random.Random) -> dict[str, Any]:
    match rng.randrange(8):
        case 0 | 1:
            return {"status": rng.choice(_API_STATUSES), "times": rng.randint(1, 3)}
        case 2:
            return {"status": 429, "headers": {"Retry-After": str(rng.randint(1, 2))}, "times": rng.randint(1, 2)}
        case 3:
            return {"status": 401, "times": 1}
        case 4:
            return {"drop_before": True, "times": rng.randint(1, 3)}
        case 5:
            return {"drop_after_effect": True, "times": 1}
        case 6:
            return {"status": 500, "after_effect": True, "times": 1}
        case _:
            return _slow_fault(rng)


def _storage_fault(rng: random.Random) -> dict[str, Any]:
    match rng.randrange(8):
        case 0 | 1 | 2 | 3:
            return {"code": rng.choice(STORAGE_CODES), "times": rng.randint(1, 3)}
        case 4:
            return {"drop_before": True, "times": rng.randint(1, 3)}
        case 5:
            return {"drop_after_effect": True, "times": rng.randint(1, 2)}
        case 6:
            return {"status": 500, "code": "InternalError", "after_effect": True, "times": 1}
        case _:
            return _slow_fault(rng)


def _slow_fault(rng: random.Random) -> dict[str, Any]:
    return {"hang": True, "times": 1} if rng.random() < 0.5 else {"delay_s": rng.uniform(0.2, 1.0), "times": 2}
