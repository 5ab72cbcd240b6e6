"""A clock that moves when it is told to, and a Sentinel API and a store whose answers are written down beforehand."""

import threading
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

from sentinel_uploader.runs.delivery_error import DeliveryError, RetryAction
from sentinel_uploader.runs.ports import StoreProbe
from sentinel_uploader.runs.types import Credentials, FinishRequest, FinishResult, Registration, RunDescription

GATE_S = 30.0


class SteppedClock:
    """Both clocks stand still between two calls of `advance`; waiting is real, and short."""

    def __init__(self, *, wall: float = 1_700_000_000.0, monotonic: float = 5_000.0) -> None:
        self.wall = wall
        self.mono = monotonic

    def now(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.mono

    def thread_time(self) -> float:
        return 0.0

    def wait_for(self, event: threading.Event, timeout_s: float | None) -> bool:
        return event.wait(0.01 if timeout_s is None else min(timeout_s, 0.01))

    def advance(self, seconds: float) -> None:
        self.mono += seconds
        self.wall += seconds


class Call(NamedTuple):
    """One call as it was made."""

    at: float
    name: str
    run: str
    """Run key at `register`, else run id or uri."""


class Gate:
    """Holds calls until it is opened."""

    def __init__(self) -> None:
        self.entries = 0
        self._lock = threading.Lock()
        self._open = threading.Event()

    def open(self) -> None:
        self._open.set()

    def pass_through(self) -> None:
        with self._lock:
            self.entries += 1
        assert self._open.wait(GATE_S), "a gate was never opened"


Outcome = DeliveryError | Gate | Callable[[], None] | None


class Scripted:
    """What calls meet: outcomes are taken in their order; where none are left, `always` or success."""

    def __init__(self, clock: SteppedClock) -> None:
        self.clock = clock
        self.calls: list[Call] = []
        self.always: dict[str, Outcome] = {}
        self._script: dict[str, deque[Outcome]] = defaultdict(deque)
        self._lock = threading.Lock()

    def script(self, name: str, *outcomes: Outcome) -> None:
        """Write down what the next calls of that name (or `NAME:RUN`) meet; `None` is success."""
        self._script[name].extend(outcomes)

    def of(self, name: str, run: str = "") -> list[Call]:
        """Return the calls of one name, of all runs or those whose name contains `run`."""
        with self._lock:
            return [call for call in self.calls if call.name == name and run in call.run]

    def times(self, name: str, run: str = "") -> list[float]:
        """Return when they were made."""
        return [call.at for call in self.of(name, run)]

    def meet(self, name: str, run: str) -> None:
        with self._lock:
            self.calls.append(Call(self.clock.monotonic(), name, run))
            outcome = self._outcome(name, run)
        if isinstance(outcome, DeliveryError):
            raise outcome
        if isinstance(outcome, Gate):
            outcome.pass_through()
        elif outcome is not None:
            outcome()

    def _outcome(self, name: str, run: str) -> Outcome:
        for key in (f"{name}:{run}", name):
            if self._script[key]:
                return self._script[key].popleft()
        for key in (f"{name}:{run}", name):
            if key in self.always:
                return self.always[key]
        return None


class ScriptedAPI(Scripted):
    """Implements `sentinel_uploader.runs.ports.SentinelAPI`."""

    backoff_key = "https://api.test"

    def __init__(self, clock: SteppedClock, *, inline_limit_bytes: int = 0, lifetime_s: float | None = 3600.0) -> None:
        super().__init__(clock)
        self.inline_limit_bytes = inline_limit_bytes
        self.lifetime_s = lifetime_s
        self.expiry_error_s = 0.0
        self.prefix = "s3://bucket/runs"
        self.endings: list[FinishRequest] = []
        self.descriptions: list[RunDescription] = []
        self.response: dict[str, Any] = {"run": {"run_status": "done"}}

    def register(self, run: RunDescription) -> Registration:
        self.meet("register", run.run_key)
        self.descriptions.append(run)
        run_id = f"id-{run.run_key}"
        return Registration(run_id=run_id, uri_prefix=f"{self.prefix}/{run_id}", credentials=self._credentials())

    def refresh(self, run_id: str) -> Credentials | None:
        self.meet("refresh", run_id)
        return self._credentials()

    def finish(self, request: FinishRequest) -> FinishResult:
        self.meet("finish", request.run_id)
        self.endings.append(request)
        return FinishResult(self.response)

    def credentials_changed(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def _credentials(self) -> Credentials:
        now = self.clock.now()
        expires_at = None if self.lifetime_s is None else now + self.lifetime_s + self.expiry_error_s
        return Credentials(
            access_key="key", secret_key="secret", session_token="token", expires_at=expires_at, obtained_at=now
        )


class ScriptedStore(Scripted):
    """Implements `sentinel_uploader.runs.ports.ObjectStore`; `objects` maps uris to every body that was put there."""

    def __init__(self, clock: SteppedClock) -> None:
        super().__init__(clock)
        self.objects: dict[str, list[bytes]] = defaultdict(list)
        self.credentials: list[Credentials | None] = []

    def backoff_key(self, uri: str) -> str:
        if not uri.startswith("s3://"):
            raise DeliveryError(f"{uri!r} is not an address", retry_action=RetryAction.RETRY_SLOW)
        return "/".join(uri.split("/")[:3])

    def put(self, uri: str, body: bytes, credentials: Credentials | None) -> None:
        self.meet("put", uri)
        self.credentials.append(credentials)
        self.objects[uri].append(body)

    def probe(self, uri_prefix: str | None, region: str | None) -> list[StoreProbe]:
        raise NotImplementedError

    def close(self) -> None:
        pass


def away() -> DeliveryError:
    """No connection."""
    return DeliveryError("connection refused", retry_action=RetryAction.RETRY)


def failing(status: int = 503, *, retry_after_s: float | None = None) -> DeliveryError:
    """An answer that says: later."""
    return DeliveryError(
        f"HTTP {status}", retry_action=RetryAction.RETRY, status_code=status, retry_after_s=retry_after_s
    )


def refused(status: int = 401) -> DeliveryError:
    """An answer that somebody has to do something about."""
    return DeliveryError(f"HTTP {status}", retry_action=RetryAction.RETRY_SLOW, status_code=status)


def expired() -> DeliveryError:
    """Storage does not take the credentials any more."""
    return DeliveryError("HTTP 400: ExpiredToken", retry_action=RetryAction.REFRESH_CREDENTIALS, status_code=400)


def final(status: int = 404) -> DeliveryError:
    """An answer that no repetition changes."""
    return DeliveryError(f"HTTP {status}: no such run", retry_action=RetryAction.FAIL, status_code=status)
