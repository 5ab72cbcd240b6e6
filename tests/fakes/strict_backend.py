"""A Sentinel API with its storage in memory, behind the uploader's own ports, that knows what it must never be told.

Every call has a fate, written down beforehand; whatever breaks a promise is added to `problems`, because an exception
in here would be one more failed call.
"""

from collections import defaultdict, deque
from collections.abc import Callable
from enum import Enum
from typing import Any

from fakes.uploader_harness import row_numbers
from sentinel_protocol.common.clock import Clock
from sentinel_protocol.wire.sample import CSV_HEADER
from sentinel_uploader.delivery.csv_batch import decompress_rows
from sentinel_uploader.runs.delivery_error import DeliveryError, RetryAction
from sentinel_uploader.runs.ports import StoreProbe
from sentinel_uploader.runs.types import Credentials, FinishRequest, FinishResult, Registration, RunDescription

_ROOT = "s3://bucket/runs"


class Fate(Enum):
    """What becomes of one call."""

    LOST = "no connection: nothing has happened"
    ANSWER_LOST = "it has happened, and nobody knows"
    LATER = "503 with a wish of twenty seconds"
    REFUSED = "401: somebody has to do something"
    EXPIRED = "the credentials are no good any more"
    FINAL = "404: no repetition changes that"


class ServerRun:
    """A run as the server knows it."""

    def __init__(self, run: RunDescription, number: int) -> None:
        self.key = run.run_key
        self.run_id = f"id-{number}"
        self.objects: dict[int, bytes] = {}
        self.ending: FinishRequest | None = None

    @property
    def rows(self) -> list[int]:
        """Numbers of the rows that were delivered, in order."""
        if self.ending is not None and self.ending.data_csv is not None:
            return row_numbers(self.ending.data_csv.removeprefix(CSV_HEADER))
        return [row for _, body in sorted(self.objects.items()) for row in row_numbers(decompress_rows(body))]


class StrictBackend:
    """Both ports' common state. `moment` is called, with its name, whenever a caller may die; `is_dead` says it has."""

    def __init__(self, clock: Clock, *, moment: Callable[[str], None], lifetime_s: float) -> None:
        self.clock = clock
        self.moment = moment
        self.lifetime_s = lifetime_s
        self.is_dead = False
        self.runs: dict[str, ServerRun] = {}
        self.fates: dict[str, deque[Fate]] = defaultdict(deque)
        self.meanwhile: dict[str, deque[Callable[[], None]]] = defaultdict(deque)
        """What happens elsewhere while a call is under way."""
        self.unheard: set[str] = set()
        """Runs whose registration got no answer."""
        self.problems: list[str] = []

    def of_key(self, key: str) -> list[ServerRun]:
        """Return the runs that were registered for a key."""
        return [run for run in self.runs.values() if run.key == key]

    def call(self, name: str, effect: Callable[[], Any]) -> Any:
        """Let a call meet its fate."""
        fate = self.fates[name].popleft() if self.fates[name] else None
        if self.meanwhile[name]:
            self.meanwhile[name].popleft()()
        self.moment(name)
        if self.is_dead or fate is Fate.LOST:
            raise DeliveryError("connection refused", retry_action=RetryAction.RETRY)
        if fate is Fate.LATER:
            raise DeliveryError("HTTP 503", retry_action=RetryAction.RETRY, status_code=503, retry_after_s=20.0)
        if fate is Fate.REFUSED:
            raise DeliveryError("HTTP 401", retry_action=RetryAction.RETRY_SLOW, status_code=401)
        if fate is Fate.EXPIRED and name == "put":
            raise DeliveryError("HTTP 400: ExpiredToken", retry_action=RetryAction.REFRESH_CREDENTIALS, status_code=400)
        if fate is Fate.FINAL:
            raise DeliveryError("HTTP 404", retry_action=RetryAction.FAIL, status_code=404)
        answer = effect()
        self.moment(name)
        if self.is_dead or fate is Fate.ANSWER_LOST:
            if isinstance(answer, Registration):
                self.unheard.add(answer.run_id)
            raise DeliveryError("connection reset", retry_action=RetryAction.RETRY)
        return answer

    def credentials(self) -> Credentials:
        """Issue new ones."""
        now = self.clock.now()
        return Credentials(
            access_key="key",
            secret_key="secret",
            session_token="token",
            expires_at=now + self.lifetime_s,
            obtained_at=now,
        )

    def note(self, is_broken: object, problem: str) -> None:
        """Add a problem if it is one."""
        if is_broken:
            self.problems.append(problem)


class StrictAPI:
    """Implements `sentinel_uploader.runs.ports.SentinelAPI`."""

    backoff_key = "https://api.test"

    def __init__(self, backend: StrictBackend, *, inline_limit_bytes: int) -> None:
        self._backend = backend
        self.inline_limit_bytes = inline_limit_bytes

    def register(self, run: RunDescription) -> Registration:
        def effect() -> Registration:
            backend = self._backend
            made = ServerRun(run, len(backend.runs) + 1)
            backend.runs[made.run_id] = made
            return Registration(
                run_id=made.run_id, uri_prefix=f"{_ROOT}/{made.run_id}", credentials=backend.credentials()
            )

        answer: Registration = self._backend.call("register", effect)
        return answer

    def refresh(self, run_id: str) -> Credentials | None:  # noqa: ARG002 -- the port's
        answer: Credentials = self._backend.call("refresh", self._backend.credentials)
        return answer

    def finish(self, request: FinishRequest) -> FinishResult:
        answer: dict[str, Any] = self._backend.call("finish", lambda: self._close(request))
        return FinishResult(answer)

    def credentials_changed(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def _close(self, ending: FinishRequest) -> dict[str, Any]:
        run, note = self._backend.runs[ending.run_id], self._backend.note
        if run.ending is not None:
            note(_what_counts(run.ending) != _what_counts(ending), f"{run.run_id} is finished in another way")
            return {}
        others = [one for one in self._backend.of_key(run.key) if one.ending is not None]
        note(others, f"{run.key} is finished twice")
        run.ending = ending
        if ending.data_csv is not None:
            note(run.objects, f"{run.run_id} has objects and is finished inline")
        else:
            uris = [f"{_ROOT}/{run.run_id}/{number:04d}.csv.gz" for number in range(1, len(run.objects) + 1)]
            note(sorted(run.objects) != list(range(1, len(run.objects) + 1)), f"{run.run_id}: objects are missing")
            note(ending.data_uris != uris, f"{run.run_id}: finish names {ending.data_uris}, stored are {uris}")
        note(run.rows != list(range(1, len(run.rows) + 1)), f"{run.run_id}: delivered rows {run.rows}")
        return {"run": {"run_status": ending.status}}


class StrictStore:
    """Implements `sentinel_uploader.runs.ports.ObjectStore`."""

    def __init__(self, backend: StrictBackend) -> None:
        self._backend = backend

    def backoff_key(self, uri: str) -> str:
        return "/".join(uri.split("/")[:3])

    def put(self, uri: str, body: bytes, credentials: Credentials | None) -> None:
        expires_at = None if credentials is None else credentials.expires_at
        if expires_at is None or expires_at <= self._backend.clock.now():
            raise DeliveryError("HTTP 400: ExpiredToken", retry_action=RetryAction.REFRESH_CREDENTIALS, status_code=400)
        self._backend.call("put", lambda: self._keep(uri, body))

    def probe(self, uri_prefix: str | None, region: str | None) -> list[StoreProbe]:
        raise NotImplementedError

    def close(self) -> None:
        pass

    def _keep(self, uri: str, body: bytes) -> None:
        _, run_id, name = uri.rsplit("/", 2)
        run, number, note = self._backend.runs[run_id], int(name.split(".")[0]), self._backend.note
        note(run.ending is not None, f"{uri} is put after the end")
        note(run.objects.get(number, body) != body, f"{uri} is put with other bytes")
        note(number > len(run.objects) + 1, f"{uri} leaves a gap")
        run.objects[number] = body
        used = [one for one in self._backend.of_key(run.key) if one.objects]
        note(len(used) > 1, f"the rows of {run.key} go to {len(used)} runs")


def _what_counts(ending: FinishRequest) -> tuple[object, ...]:
    return ending.exit_code, ending.status, ending.finished_at, ending.data_uris, ending.data_csv
