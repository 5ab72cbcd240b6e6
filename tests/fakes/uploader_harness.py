"""Runs, rows and a whole uploader without its process: real spool, real scheduler, a clock that is moved by hand."""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fakes.process_harness import DEADLINE_S
from fakes.scripted_backend import Gate, ScriptedAPI, ScriptedStore, SteppedClock
from sentinel_protocol.wire.messages import PROTOCOL_VERSION, Finish, Hello, Samples, encode
from sentinel_protocol.wire.sample import Sample
from sentinel_uploader.delivery.csv_batch import decompress_rows
from sentinel_uploader.delivery.executor import StepExecutor
from sentinel_uploader.delivery.scheduler import Scheduler
from sentinel_uploader.intake.loop import Intake
from sentinel_uploader.runs.ports import Backend
from sentinel_uploader.runs.schedule import Policy
from sentinel_uploader.server.zmq_server import ZmqServer
from sentinel_uploader.spool.database import Database
from sentinel_uploader.spool.open_run import OpenRun
from sentinel_uploader.spool.run_record import RunRecord
from sentinel_uploader.spool.store import Spool
from sentinel_uploader.spool.types import PendingFrame
from sentinel_uploader.telemetry.counters import Counters

SPOOL_BYTES = 8 << 20
T0 = 1_700_000_000.0


def hello(key: str = "run", epoch: str = "first", **more: Any) -> Hello:
    return Hello(PROTOCOL_VERSION, key, epoch, more.pop("interval_s", 1.0), **more)


def sample(seq: int) -> Sample:
    """A row that tells its number: `system_processes`, and the time."""
    return Sample(timestamp=T0 + seq, system_processes=seq, system_cpu_usage=0.5)


def samples(first: int, last: int) -> Samples:
    return Samples(first, [sample(seq) for seq in range(first, last + 1)])


def frame(run: OpenRun, first: int, last: int) -> PendingFrame:
    """Rows `first` to `last` as the intake hands them over."""
    return PendingFrame(run, first, last - first + 1, encode(samples(first, last)), T0 + last)


def finish(last_seq: int, exit_code: int | None = 0, status: str = "finished") -> Finish:
    return Finish(last_seq, exit_code, status, T0 + last_seq)


def row_numbers(csv_rows: bytes) -> list[int]:
    """Return the numbers that `sample` wrote into CSV lines without a header."""
    return [int(line.split(b",")[1]) for line in csv_rows.splitlines()]


def ended_record(spool: Spool, key: str, owner: str = "") -> RunRecord | None:
    """Return the record of a run that has ended, as long as it is kept."""
    ended = spool._ended.find(f"{owner}\n{key}" if owner else key)
    return ended if isinstance(ended, RunRecord) else None


def open_spool_at(directory: Path, clock: SteppedClock, *, max_bytes: int = SPOOL_BYTES) -> Spool:
    directory.mkdir(mode=0o700, exist_ok=True)
    return Spool(Database(str(directory), max_bytes=max_bytes), clock=clock)


class Delivery:
    """Everything between the socket and the outside; `settle` does all that is due now."""

    def __init__(
        self,
        directory: Path,
        *,
        policy: Policy | None = None,
        inline_limit_bytes: int = 0,
        lifetime_s: float | None = 3600.0,
        clock: SteppedClock | None = None,
        api: ScriptedAPI | None = None,
        store: ScriptedStore | None = None,
        target: Backend | None = None,
        server: ZmqServer | None = None,
    ) -> None:
        self.clock = clock or SteppedClock()
        self.api = api or ScriptedAPI(self.clock, inline_limit_bytes=inline_limit_bytes, lifetime_s=lifetime_s)
        self.store = store or ScriptedStore(self.clock)
        self.policy = policy or Policy(
            upload_interval_s=60.0, stale_after_s=1e6, inline_limit_bytes=self.api.inline_limit_bytes
        )
        self.spool = open_spool_at(directory, self.clock)
        self.server = server or ZmqServer([])
        self.counters = Counters()
        self.intake = Intake(
            server=self.server,
            spool=self.spool,
            clock=self.clock,
            wake_run=self._wake,
            blocked_by=self._blocked_by,
            policy=self.policy,
            counters=self.counters,
        )
        target = target or Backend(api=self.api, store=self.store, needs_credentials=True)
        self.scheduler = Scheduler(
            spool=self.spool,
            executor=self.steps_for(target),
            presence=self.intake,
            policy=self.policy,
            clock=self.clock,
            rng=random.Random(7),
            counters=self.counters,
        )

    def steps_for(self, target: Backend) -> StepExecutor:
        """Return the steps towards a target."""
        return StepExecutor(
            spool=self.spool, backend=target, policy=self.policy, clock=self.clock, counters=self.counters
        )

    def _wake(self, run: OpenRun) -> None:
        self.scheduler.notify(run)

    def _blocked_by(self, run: OpenRun) -> str:
        return self.scheduler.blocked_by(run)

    def close(self) -> None:
        self.spool.close()
        self.server.close()

    def begin(self, key: str = "run", *, rows: int = 0, last: bool = False, **greeting: Any) -> OpenRun:
        """Open a run, store rows 1 to `rows`, end it when they are the `last` ones."""
        run = self.spool.open_run(hello(key, **greeting), owner="")
        if rows:
            self.add(run, rows)
        if last:
            self.end(run)
        self.scheduler.notify(run)
        return run

    def add(self, run: OpenRun, rows: int) -> None:
        self.spool.append([frame(run, run.durable_seq + 1, run.durable_seq + rows)], [])
        run.last_seen_at = self.clock.monotonic()

    def end(self, run: OpenRun, exit_code: int | None = 0) -> None:
        self.spool.append([], [(run, finish(run.durable_seq, exit_code))])
        self.scheduler.notify(run)

    def settle(self, held: Gate | None = None, *, times: int = 1) -> float:
        """Do what is due until nothing is; return when (monotonic) there is more.

        With a gate: until so many steps are held there, and all others have ended.
        """
        deadline = time.monotonic() + DEADLINE_S
        while True:
            self.intake.poll_once(0.0)
            self.scheduler.wakeup.clear()
            due = self.scheduler.run_due()
            hanging = 0 if held is None else times
            if self.scheduler.steps_in_flight != hanging or (held is not None and held.entries != times):
                assert time.monotonic() < deadline, "the steps do not end, or are not held"
                self.scheduler.wakeup.wait(0.01)
            elif due > self.clock.monotonic() and not self.scheduler.wakeup.is_set():
                return due

    def advance(self, seconds: float, held: Gate | None = None, *, times: int = 1) -> None:
        """Let time pass, and do all that becomes due, at the time at which it becomes due."""
        until = self.clock.monotonic() + seconds
        while (due := self.settle(held, times=times)) <= until:
            self.let_pass(due - self.clock.monotonic())
        self.let_pass(until - self.clock.monotonic())

    def let_pass(self, seconds: float) -> None:
        """Move the clock."""
        self.clock.advance(seconds)
        # The intake, which loops every second, has done so all the time.
        self.intake.last_loop_at = self.clock.monotonic()

    def rows_stored(self, run_id: str) -> list[int]:
        """Return the row numbers in a run's objects, in the order of the objects; checks that repeats are equal."""
        numbers: list[int] = []
        for uri, bodies in sorted(self.store.objects.items()):
            if f"/{run_id}/" in uri:
                assert len(set(bodies)) == 1
                numbers += row_numbers(decompress_rows(bodies[0]))
        return numbers


@contextmanager
def delivery(directory: Path, **options: Any) -> Iterator[Delivery]:
    made = Delivery(directory, **options)
    try:
        yield made
    finally:
        made.close()
