"""What the API and storage answer when something is wrong with them, by name."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

HUGE_BYTES = 64 << 20
_API_STATUSES = (408, 425, 500, 502, 503, 504)
_FINAL_STATUSES = (400, 404, 405)
_THROTTLED = ("SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout")
_REFUSED = ("ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "TokenRefreshRequired", "AccessDenied")
_MALFORMED = (b"<html>busy</html>", b"[1, 2", b"{}", b'{"run_id": 5}', b"\xff\xfe\x00", b"null")


@dataclass(frozen=True)
class CallFault:
    """A call (`*`: any) and the arguments of `Faults.add` for it."""

    call: str = "*"
    what: Mapping[str, Any] = field(default_factory=dict)


def draw(faults: Mapping[str, Callable[[random.Random], CallFault]], rng: random.Random) -> tuple[str, CallFault]:
    """Choose one of the faults."""
    name = rng.choice(list(faults))
    return name, faults[name](rng)


def _api(make: Callable[[random.Random], dict[str, Any]]) -> Callable[[random.Random], CallFault]:
    return lambda rng: CallFault(rng.choice(("register", "refresh", "finish", "*")), make(rng))


def _put(make: Callable[[random.Random], dict[str, Any]]) -> Callable[[random.Random], CallFault]:
    return lambda rng: CallFault("put", make(rng))


def _with_effect_of_finish(make: Callable[[random.Random], dict[str, Any]]) -> Callable[[random.Random], CallFault]:
    """A success that is told must be one where nothing in the answer says otherwise: any answer to `finish` will do."""

    def fault(rng: random.Random) -> CallFault:
        call = rng.choice(("register", "refresh", "finish"))
        return CallFault(call, {"status": 200, "after_effect": call == "finish", "times": 1, **make(rng)})

    return fault


def _slow(rng: random.Random) -> dict[str, Any]:
    return {"delay_s": rng.uniform(0.2, 1.0), "times": 2}


def _dropped(rng: random.Random) -> dict[str, Any]:
    return {"drop_before": True, "times": rng.randint(1, 3)}


API_FAULTS: Mapping[str, Callable[[random.Random], CallFault]] = {
    "5xx, 408, 425": _api(lambda rng: {"status": rng.choice(_API_STATUSES), "times": rng.randint(1, 3)}),
    "429 with Retry-After": _api(
        lambda rng: {"status": 429, "headers": {"Retry-After": str(rng.randint(2, 4))}, "times": rng.randint(1, 2)}
    ),
    "401": _api(lambda _: {"status": 401, "times": 1}),
    "4xx that parks the run": _api(lambda rng: {"status": rng.choice(_FINAL_STATUSES), "times": 1}),
    "reset before the effect": _api(_dropped),
    "answer lost after the effect": _api(lambda _: {"drop_after_effect": True, "times": 1}),
    "500 after the effect": _api(lambda _: {"status": 500, "after_effect": True, "times": 1}),
    "hang": _api(lambda _: {"hang": True, "times": 1}),
    "slow": _api(_slow),
    "malformed answer": _with_effect_of_finish(lambda rng: {"body": rng.choice(_MALFORMED)}),
    "huge answer": _with_effect_of_finish(lambda _: {"huge_body_bytes": HUGE_BYTES}),
}
STORAGE_FAULTS: Mapping[str, Callable[[random.Random], CallFault]] = {
    "throttled or broken": _put(lambda rng: {"code": rng.choice(_THROTTLED), "times": rng.randint(1, 3)}),
    "503 with Retry-After": _put(
        lambda rng: {"code": "SlowDown", "headers": {"Retry-After": str(rng.randint(2, 4))}, "times": 1}
    ),
    "credentials refused": _put(lambda rng: {"code": rng.choice(_REFUSED), "times": rng.randint(1, 3)}),
    "clock too far off": _put(lambda _: {"code": "RequestTimeTooSkewed", "times": 1}),
    "4xx that parks the run": _put(lambda rng: {"status": rng.choice(_FINAL_STATUSES), "body": b"", "times": 1}),
    "reset before the effect": _put(_dropped),
    "answer lost after the effect": _put(lambda rng: {"drop_after_effect": True, "times": rng.randint(1, 2)}),
    "500 after the effect": _put(lambda _: {"code": "InternalError", "after_effect": True, "times": 1}),
    "hang": _put(lambda _: {"hang": True, "times": 1}),
    "slow": _put(_slow),
    "malformed answer": _put(
        lambda rng: {"status": rng.choice((403, 500)), "body": rng.choice(_MALFORMED), "times": rng.randint(1, 2)}
    ),
    "huge answer": _put(lambda _: {"status": 503, "huge_body_bytes": HUGE_BYTES, "times": 1}),
}
