"""The uploader killed at each point of a run's life, and started again: its objects are those of an undisturbed run."""

import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import pytest
from fakes.backend import Backend
from fakes.crashing import At, BeforeCommit, Plan, Point, Victim, fork_server
from fakes.process_harness import Home, home_in, wait_until
from fakes.raw_collector import RawCollector, collectors_of
from fakes.uploader_harness import finish, hello, row_numbers, samples
from fakes.web import WebServer

from sentinel_protocol.wire.messages import Ack, Finished, Samples, UploaderMessage, Welcome
from sentinel_uploader.admin.status_reader import read_status
from sentinel_uploader.delivery.csv_batch import decompress_rows

LONG, SHORT = 7_300, 300
"""Rows: two whole batches and the rest, in whose cutting the clock has no part; and what goes inline."""
TWO_BATCHES = 7_200
FRAME_ROWS = 100
_ON_ITS_WAY_S = 0.1
"""For what a dead uploader's socket has handed over."""
_M = TypeVar("_M", bound=UploaderMessage)


@pytest.fixture(autouse=True, scope="module")
def _forks() -> Iterator[None]:
    with fork_server():
        yield


class Held(NamedTuple):
    """While a server holds the run's `passage`-th such call, before or after it did what it asks for."""

    call: str
    passage: int = 1
    after_effect: bool = False


class Outcome(NamedTuple):
    """What a reader finds: objects by name, and what `finish` said of the run."""

    objects: dict[str, bytes]
    finish: dict[str, Any]


class Target(Protocol):
    """Where an uploader delivers."""

    @property
    def words(self) -> list[str]: ...

    @property
    def environ(self) -> Mapping[str, str]: ...

    def objects(self) -> dict[str, bytes]: ...

    def outcome(self) -> Outcome: ...


@dataclass
class SentinelTarget:
    backend: Backend
    words: list[str] = field(default_factory=list)

    @property
    def environ(self) -> Mapping[str, str]:
        return self.backend.environ

    def objects(self) -> dict[str, bytes]:
        return {uri.rpartition("/")[2]: body for uri, body in self.backend.s3.objects().items()}

    def outcome(self) -> Outcome:
        (run,) = (run for run in self.backend.api.runs.values() if run.finish is not None)
        assert run.finish is not None
        self.backend.rows(run)
        names = [uri.removeprefix(f"{run.prefix}/") for uri in run.finish.get("data_uris", [])]
        return Outcome(self.objects(), run.finish | {"data_uris": names})

    def server_of(self, call: str) -> WebServer:
        return self.backend.s3 if call == "put" else self.backend.api


@dataclass
class LocalTarget:
    home: Home
    environ: Mapping[str, str] = field(default_factory=dict)

    @property
    def words(self) -> list[str]:
        return ["--target", str(self.home.runs)]

    def objects(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.home.runs.glob("*/*.csv.gz"))}

    def outcome(self) -> Outcome:
        (run,) = self.home.local_runs()
        assert {path.name for path in (self.home.runs / run["run_id"]).iterdir()} == {"run.json", *run["objects"]}
        its_own = {"run_id", "started_at"}
        return Outcome(self.objects(), {name: run[name] for name in run.keys() - its_own})


class Stage:
    """One run of known rows, and the uploaders that come and go under it."""

    def __init__(self, home: Home, target: Target, rows: int) -> None:
        self._home = home
        self._target = target
        self._rows = rows
        self._starts = 0
        self._promised_seq = 0
        self._is_end_promised = False

    def start(self, point: Point | None = None) -> Victim:
        """Start an uploader and wait until it listens."""
        self._starts += 1
        words = ["serve", "--bind", self._home.address, "--spool", str(self._home.directory / "spool")]
        log = self._home.directory / f"uploader-{self._starts}.log"
        victim = Victim(
            Plan(
                command="sentinel_uploader.cli.main",
                words=[*words, "--upload-interval", "86400", *self._target.words],
                environ=self._home.environ | dict(self._target.environ),
                log=log,
                point=point,
                mark=self._home.directory / f"mark-{self._starts}",
            )
        )
        wait_until(lambda: not victim.is_alive or (log.exists() and "uploader ready" in victim.log()), "it listens")
        return victim

    def converse(self, victim: Victim) -> Finished | None:
        """Say what a collector says until the run is over; `None` when the uploader is gone before that."""
        with collectors_of(self._home.address) as collectors:
            collector = collectors.connect()
            collector.say(hello())
            welcome = self._hear(collector, victim, Welcome)
            if welcome is None:
                return None
            first = welcome.next_seq
            # What its predecessor has said to be durable is.
            assert first > self._promised_seq
            if self._is_end_promised:
                end = self._hear(collector, victim, Ack)
                assert end is not None
                assert end.finish
            for share in (1 / 4, 1 / 2, 1):
                last = min(self._rows, round(TWO_BATCHES * share))
                first = self._say_rows(collector, victim, first, last)
            wait_until(lambda: not victim.is_alive or self._may_end(), "it is registered, and in storage if it is long")
            self._say_rows(collector, victim, first, self._rows)
            collector.say(finish(self._rows, 3, "failed"))
            return self._hear(collector, victim, Finished)

    def _may_end(self) -> bool:
        """A run that ends before its first PUT was tried may go inline, or be registered and ended in one."""
        (run,) = read_status(str(self._home.directory / "spool"))["runs"]
        return run["state"] != "new" and len(self._target.objects()) >= (2 if self._rows > TWO_BATCHES else 0)

    def _say_rows(self, collector: RawCollector, victim: Victim, first: int, last: int) -> int:
        """Say the rows that are left and wait until they are durable; returns the number of the next one."""
        if first > last:
            return first
        collector.say(*_frames(first, last))
        while (ack := self._hear(collector, victim, Ack)) is not None and ack.seq < last:
            pass
        return last + 1

    def _hear(self, collector: RawCollector, victim: Victim, kind: type[_M]) -> _M | None:
        """Return the next message of this kind, `None` when the uploader is gone and all that it has said is heard."""

        def message() -> Any:
            is_alive = victim.is_alive
            heard = collector.next(0.02 if is_alive else _ON_ITS_WAY_S)
            if isinstance(heard, Ack):
                self._promised_seq = max(self._promised_seq, heard.seq)
                self._is_end_promised |= heard.finish
            return heard if isinstance(heard, kind) else heard is None and not is_alive

        found = wait_until(message, f"{kind.__name__} comes")
        return found if isinstance(found, kind) else None

    def go_on(self) -> None:
        """Start the next uploader, which nobody disturbs, and take the run to its end."""
        with self.start() as victim:
            finished = self.converse(victim)
            assert finished is not None, victim.log()
            assert finished.rows == self._rows
            assert "Traceback" not in victim.log()


def _frames(first: int, last: int) -> list[Samples]:
    return [samples(start, min(start + FRAME_ROWS - 1, last)) for start in range(first, last + 1, FRAME_ROWS)]


_API = "sentinel_uploader.backends.sentinel.backend:SentinelBackend"
_STORE = "sentinel_uploader.backends.objectstore.s3.store:S3Store"
IN_ANY_RUN: dict[str, Point | Held] = {
    "after-insert-before-commit": BeforeCommit("INSERT INTO frames"),
    "after-commit-before-ack": At("after", "sentinel_uploader.spool.store:Spool.append"),
    "before-register": At("before", f"{_API}.register"),
    "during-register": Held("register"),
    "during-register-done": Held("register", after_effect=True),
    "after-register": At("after", f"{_API}.register"),
    "after-register-before-commit": BeforeCommit("UPDATE runs SET state = 'registered'"),
    "after-register-recorded": At("after", "sentinel_uploader.spool.store:Spool.register_run"),
    "after-end-before-commit": BeforeCommit("UPDATE runs SET state = 'finishing'"),
    "before-finish": At("before", f"{_API}.finish"),
    "during-finish": Held("finish"),
    "during-finish-done": Held("finish", after_effect=True),
    "after-finish": At("after", f"{_API}.finish"),
    "after-finish-before-commit": BeforeCommit("UPDATE runs SET state = 'finished'"),
    "after-finish-recorded": At("after", "sentinel_uploader.spool.store:Spool.close_run"),
}
WITH_STORAGE: dict[str, Point | Held] = {
    "after-second-insert-before-commit": BeforeCommit("INSERT INTO frames", 2),
    "after-second-commit-before-ack": At("after", "sentinel_uploader.spool.store:Spool.append", 2),
    "after-freeze-before-commit": BeforeCommit("INSERT INTO batches"),
    "after-freeze": At("after", "sentinel_uploader.spool.store:Spool.seal_batch"),
    "after-last-freeze": At("after", "sentinel_uploader.spool.store:Spool.seal_batch", 3),
    "before-put": At("before", f"{_STORE}.put"),
    "during-put": Held("put"),
    "during-put-stored": Held("put", after_effect=True),
    "during-last-put-stored": Held("put", 3, after_effect=True),
    "after-put": At("after", f"{_STORE}.put", 2),
    "after-delete-before-commit": BeforeCommit("DELETE FROM batches"),
    "after-delete": At("after", "sentinel_uploader.spool.store:Spool.confirm_batch"),
    "after-last-delete": At("after", "sentinel_uploader.spool.store:Spool.confirm_batch", 3),
}
REGISTERED_TWICE = {"during-register-done", "after-register", "after-register-before-commit"}
_LOCAL_API = "sentinel_uploader.backends.local:LocalRunBackend"
_LOCAL_STORE = "sentinel_uploader.backends.local:DirectoryStore"
TO_A_DIRECTORY: dict[str, Point] = {
    "before-register": At("before", f"{_LOCAL_API}.register"),
    "during-register": At("before", "sentinel_protocol.common.atomic_file:os.replace"),
    "after-register": At("after", f"{_LOCAL_API}.register"),
    "before-put": At("before", f"{_LOCAL_STORE}.put"),
    "during-put": At("before", "sentinel_protocol.common.atomic_file:os.replace", 2),
    "during-put-renamed": At("after", "sentinel_protocol.common.atomic_file:os.replace", 2),
    "after-put": At("after", f"{_LOCAL_STORE}.put", 2),
    "before-finish": At("before", f"{_LOCAL_API}.finish"),
    "during-finish": At("before", "sentinel_protocol.common.atomic_file:os.replace", 5),
    "during-finish-renamed": At("after", "sentinel_protocol.common.atomic_file:os.replace", 5),
    "after-finish": At("after", f"{_LOCAL_API}.finish"),
}


def kill_at(stage: Stage, point: Point | Held, target: Target) -> None:
    """Let one uploader go as far as the point and no further."""
    if isinstance(point, Held):
        assert isinstance(target, SentinelTarget)
        _kill_while_held(stage, point, target.server_of(point.call))
        return
    with stage.start(point) as victim:
        assert stage.converse(victim) is None
        victim.assert_killed_at_its_point()


def _kill_while_held(stage: Stage, held: Held, server: WebServer) -> None:
    seen = 0

    def is_the_one(_request: object) -> bool:
        nonlocal seen
        seen += 1
        return seen == held.passage

    fault = server.faults.add(held.call, hang=True, after_effect=held.after_effect, times=1, where=is_the_one)
    with stage.start() as victim:
        killer = threading.Thread(target=_kill_once_held, args=(victim, held, server))
        killer.start()
        assert stage.converse(victim) is None
        killer.join()
        assert victim.wait() == -signal.SIGKILL
    assert fault.fired == 1
    fault.lift()


def _kill_once_held(victim: Victim, held: Held, server: WebServer) -> None:
    def is_held() -> bool:
        requests = server.requests.of(held.call)
        return any(one.fault is not None and one.took_effect == held.after_effect for one in requests)

    server.requests.wait_until(is_held)
    victim.kill()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """What comes of the same rows when nothing happens."""
    outcomes = {}
    for name, rows in (("storage", LONG), ("inline", SHORT), ("directory", LONG)):
        with home_in(tmp_path_factory.mktemp(name)) as home, Backend() as backend:
            target: Target = LocalTarget(home) if name == "directory" else SentinelTarget(backend)
            Stage(home, target, rows).go_on()
            outcomes[name] = target.outcome()
    return outcomes


def test_undisturbed_run_is_what_the_points_are_about(undisturbed: dict[str, Outcome]) -> None:
    rows = [row_numbers(decompress_rows(body)) for body in undisturbed["storage"].objects.values()]
    assert rows == [list(range(1, 3601)), list(range(3601, 7201)), list(range(7201, 7301))]
    assert undisturbed["directory"].objects == undisturbed["storage"].objects
    assert undisturbed["inline"].objects == {}
    assert undisturbed["inline"].finish["data_csv"].count("\n") == SHORT + 1


@pytest.mark.parametrize("name", [*IN_ANY_RUN, *WITH_STORAGE])
def test_run_of_an_uploader_that_was_killed_is_in_storage_like_any_other(
    home: Home, backend: Backend, undisturbed: dict[str, Outcome], name: str
) -> None:
    target = SentinelTarget(backend)
    stage = Stage(home, target, LONG)
    kill_at(stage, (IN_ANY_RUN | WITH_STORAGE)[name], target)
    stage.go_on()
    assert target.outcome() == undisturbed["storage"]
    # A registration whose answer was not written down cannot be undone.
    assert name not in REGISTERED_TWICE or len(backend.api.runs) == 2


@pytest.mark.parametrize("name", IN_ANY_RUN)
def test_run_of_an_uploader_that_was_killed_is_delivered_inline_like_any_other(
    home: Home, backend: Backend, undisturbed: dict[str, Outcome], name: str
) -> None:
    target = SentinelTarget(backend)
    stage = Stage(home, target, SHORT)
    kill_at(stage, IN_ANY_RUN[name], target)
    stage.go_on()
    assert target.outcome() == undisturbed["inline"]


@pytest.mark.parametrize("name", TO_A_DIRECTORY)
def test_run_of_an_uploader_that_was_killed_is_in_its_directory_like_any_other(
    home: Home, undisturbed: dict[str, Outcome], name: str
) -> None:
    target = LocalTarget(home)
    stage = Stage(home, target, LONG)
    kill_at(stage, TO_A_DIRECTORY[name], target)
    stage.go_on()
    assert target.outcome() == undisturbed["directory"]
