"""The two commands as processes that are killed, by SIGKILL, exactly where a test says.

Nothing in the product knows of it: the child wraps a function of the product (or listens to what SQLite is about to do)
before it runs the command's `main`. Children are forked from a server that has imported both commands, so that a start
costs milliseconds.
"""

import functools
import importlib
import importlib.util
import multiprocessing
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import connection, forkserver, resource_tracker
from pathlib import Path
from typing import Any, NamedTuple

from fakes.process_harness import DEADLINE_S
from sentinel_uploader.spool import database

_SENT_S = 0.05
_FORKS = multiprocessing.get_context("forkserver")
_PRELOADED = [
    "sentinel_collector.cli",
    "sentinel_collector.session",
    "sentinel_collector.run_job",
    "fakes.crashing",
    "sentinel_uploader.cli.main",
    "sentinel_uploader.backends.sentinel.backend",
    "sentinel_uploader.app.service",
    "sentinel_uploader.backends.local",
    "sentinel_uploader.backends.objectstore.s3.store",
    "sentinel_uploader.backends.objectstore.s3.sigv4",
]


@contextmanager
def fork_server() -> Iterator[None]:
    """The server that children are forked from, which is started by the first of them, is gone after the block."""
    # The server itself passes over a module that it cannot import.
    missing = [name for name in _PRELOADED if importlib.util.find_spec(name) is None]
    assert not missing, f"no such modules: {missing}"
    try:
        yield
    finally:
        # Both live as long as the interpreter, unless they are told otherwise in the way of CPython's own tests.
        forkserver._forkserver._stop()  # type: ignore[attr-defined]
        resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


class At(NamedTuple):
    """At a function's `passage`-th call: `before` it has begun or `after` it has returned."""

    when: str
    function: str
    """`MODULE:NAME` or `MODULE:CLASS.NAME`."""
    passage: int = 1
    given: str = ""
    """Only calls whose first argument has this attribute, and it is true, are counted."""


class BeforeCommit(NamedTuple):
    """Before the COMMIT of the `passage`-th transaction of the spool that has a statement which begins like this.

    What was said to anybody before has left the process by then: who is told of a transaction too early is noticed.
    """

    statement: str
    passage: int = 1


Point = At | BeforeCommit


@dataclass(kw_only=True)
class Plan:
    """What a child runs, in which environment, and where it dies; `constants` (`MODULE:NAME`) shorten its waits."""

    command: str
    """`MODULE`, whose `main` is run."""
    words: list[str]
    environ: Mapping[str, str]
    log: Path
    point: Point | None = None
    mark: Path | None = None
    """Made at the point, just before the kill."""
    constants: Mapping[str, float] = field(default_factory=dict)


class Victim:
    """A child under a plan; `with` kills what is left of it."""

    def __init__(self, plan: Plan) -> None:
        _FORKS.set_forkserver_preload(_PRELOADED)
        self.plan = plan
        self._process = _FORKS.Process(target=_run, args=(plan,))
        self._lock = threading.Lock()
        """The exit code comes once through a pipe: of two threads that read it at once, one would make up a code."""
        self._process.start()

    def __enter__(self) -> "Victim":
        return self

    def __exit__(self, *failure: object) -> None:
        self.kill()
        self._process.close()

    @property
    def is_alive(self) -> bool:
        with self._lock:
            return self._process.is_alive()

    def kill(self) -> None:
        """Kill it now, wherever it is, and reap it."""
        self._process.kill()
        self._join()

    def terminate(self) -> None:
        """Tell it to end."""
        self._process.terminate()

    def wait(self) -> int:
        """Wait for its end and return its exit code, -N when signal N killed it."""
        exit_code = self._join()
        assert exit_code is not None, f"it does not end: {self.log()}"
        return exit_code

    def _join(self) -> int | None:
        connection.wait([self._process.sentinel], DEADLINE_S)
        with self._lock:
            return self._process.exitcode

    def log(self) -> str:
        """What it has said so far."""
        return self.plan.log.read_text(encoding="utf-8")

    def assert_killed_at_its_point(self) -> None:
        """It was killed, and by nobody else than itself where the plan says."""
        assert self.wait() == -signal.SIGKILL, self.log()
        assert self.plan.mark is not None
        assert self.plan.mark.read_text(encoding="utf-8") == repr(self.plan.point)


def _run(plan: Plan) -> None:
    os.environ.clear()
    os.environ.update(plan.environ)
    log = os.open(plan.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for name, value in plan.constants.items():
        module, _, constant = name.partition(":")
        assert hasattr(importlib.import_module(module), constant), name
        setattr(importlib.import_module(module), constant, value)
    if plan.point is not None:
        _arm(plan.point, functools.partial(_die, plan))
    sys.exit(importlib.import_module(plan.command).main(plan.words))


def _die(plan: Plan) -> None:
    assert plan.mark is not None
    plan.mark.write_text(repr(plan.point), encoding="utf-8")
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(point: Point, die: Callable[[], None]) -> None:
    if isinstance(point, BeforeCommit):
        _arm_commit(point, die)
        return
    module, _, path = point.function.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for step in outer:
        owner = getattr(owner, step)
    original = getattr(owner, name)
    left = point.passage

    @functools.wraps(original)
    def watched(*args: Any, **options: Any) -> Any:
        nonlocal left
        counts = not point.given or getattr(args[1], point.given, None)
        left -= bool(counts)
        is_here = bool(counts) and not left
        if is_here and point.when == "before":
            die()
        result = original(*args, **options)
        if is_here:
            die()
        return result

    setattr(owner, name, watched)


def _arm_commit(point: BeforeCommit, die: Callable[[], None]) -> None:
    connect = database.connect
    left = point.passage
    is_awaited = False

    def note(statement: str) -> None:
        nonlocal left, is_awaited
        if statement.startswith("BEGIN"):
            is_awaited = False
        is_awaited = is_awaited or statement.startswith(point.statement)
        if statement.startswith("COMMIT") and is_awaited:
            left -= 1
            if not left:
                # ZeroMQ sends in a thread of its own.
                time.sleep(_SENT_S)
                die()

    def watched(path: str) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(path)
        connection.set_trace_callback(note)
        return connection

    setattr(database, "connect", watched)  # noqa: B010 -- what a module holds is a constant to mypy
