"""Faults on request and a record of every request: shared by the stand-ins for the API and for storage."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Recorded:
    """One request as a stand-in saw it."""

    call: str
    """`register`, `refresh`, `finish`; `put`, `head`; `unknown`."""
    method: str
    path: str
    """As it stood in the request line, escapes and all."""
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    run_id: str | None = None
    decoded: Any = None
    """The JSON object of a call to the API, unzipped."""
    at: float = field(default_factory=time.monotonic)
    status: int | None = None
    """What was answered; `None` while under way, and for ever when the connection was dropped."""
    fault: "Fault | None" = None
    code: str | None = None
    """Storage's name of what it refused the request for."""
    took_effect: bool = False
    """The request did what it asks for, whatever the answer was."""


@dataclass(eq=False)
class Fault:
    """What goes wrong with a call, how often, and how often it did (`fired`). See `Faults.add`."""

    call: str
    status: int | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    drop_before: bool = False
    drop_after_effect: bool = False
    after_effect: bool = False
    delay_s: float = 0.0
    hang: bool = False
    huge_body_bytes: int = 0
    times: int | None = None
    until: Callable[[], bool] | None = None
    for_s: float | None = None
    where: Callable[[Recorded], bool] | None = None
    fired: int = 0
    first_fired_at: float | None = None
    lifted: threading.Event = field(default_factory=threading.Event)

    def lift(self) -> None:
        """End the fault; requests that hang in it are dropped."""
        self.lifted.set()

    def is_active(self, now: float) -> bool:
        """Say whether the next matching request meets it; `now` is `time.monotonic()`."""
        if self.lifted.is_set() or (self.times is not None and self.fired >= self.times):
            return False
        if self.for_s is not None and self.first_fired_at is not None and now > self.first_fired_at + self.for_s:
            return False
        return self.until is None or not self.until()


class Faults:
    """The faults of one server, the first that matches wins."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, call: str = "*", **what: Any) -> Fault:
        """Add a fault for a call (`*`: any) and return it; its fields say what happens and how often.

        What: `status` (with `headers`, `body`; storage: `code`, whose status is known), after the effect took place
        when `after_effect`; `drop_before` / `drop_after_effect` (the connection is reset without an answer);
        `delay_s` before anything else; `hang` (no answer until `lift()` or the end of the server, then dropped; with
        `after_effect` it took place before);
        `huge_body_bytes` (that many spaces as the answer's body, sent as long as the peer reads).
        How often: `times`, `until` (a callable that says when it is over), `for_s` (seconds, from when it first
        fires), else for ever or until `lift()`. `where` is asked with the `Recorded` request.
        """
        fault = Fault(call, **what)
        with self._lock:
            self._faults.append(fault)
        return fault

    def take(self, request: Recorded) -> Fault | None:
        """Return the fault that this request meets, and count it."""
        now = time.monotonic()
        with self._lock:
            for fault in self._faults:
                if fault.call not in {"*", request.call} or not fault.is_active(now):
                    continue
                if fault.where is not None and not fault.where(request):
                    continue
                fault.fired += 1
                fault.first_fired_at = fault.first_fired_at or now
                return fault
        return None

    def clear(self) -> None:
        """Lift and forget all faults."""
        with self._lock:
            for fault in self._faults:
                fault.lift()
            self._faults.clear()


class Recorder:
    """Every request in the order in which they came; may be waited on."""

    def __init__(self) -> None:
        self._requests: list[Recorded] = []
        self._changed = threading.Condition()

    def add(self, request: Recorded) -> None:
        """Add a request that has just come."""
        with self._changed:
            self._requests.append(request)
            self._changed.notify_all()

    def answered(self, request: Recorded, status: int | None) -> None:
        """Note what was answered."""
        with self._changed:
            request.status = status
            self._changed.notify_all()

    def of(self, call: str | None = None, run_id: str | None = None) -> list[Recorded]:
        """Return the requests of a call and a run (`None`: of all)."""
        with self._changed:
            return [
                request
                for request in self._requests
                if call in {None, request.call} and run_id in {None, request.run_id}
            ]

    def wait_until(self, predicate: Callable[[], bool], timeout_s: float = 30.0) -> None:
        """Wait until the predicate holds; fails after `timeout_s`.

        It is asked whenever something changed here and every 50 ms, so it may look at another server too. It is asked
        under the record's lock, which the same thread may take again: `of` can be called in it.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not predicate():
                assert time.monotonic() < deadline, "what was waited for did not happen"
                self._changed.wait(0.05)
