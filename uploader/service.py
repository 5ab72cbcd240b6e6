"""The uploader as a process: its parts put together, its loop, its end."""

import logging
import os
import random
import resource
import socket
import threading
from collections.abc import Sequence

import msgspec

from protocol.addresses import Address
from protocol.clock import Clock
from protocol.errors import UsageError
from protocol.transport import Router
from uploader.database import Database, SpoolError, SpoolLock
from uploader.dispatch import Dispatcher
from uploader.intake import Intake
from uploader.requests import answer_requests
from uploader.run import Policy
from uploader.spool import Spool, open_runs
from uploader.steps import Steps, Target

log = logging.getLogger(__name__)

STOP_DRAIN_S = 8.0
ENDING_COLLECTORS_S = 2.0
"""How long a stop waits for collectors that are told to stop at the same moment to say how their jobs ended."""
_TICK_S = 1.0
_MAINTENANCE_S = 60.0


class ServiceConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How an uploader runs."""

    addresses: Sequence[Address]
    spool_dir: str
    spool_max_bytes: int
    policy: Policy
    exit_when_idle_s: float | None = None


class Service:
    """One uploader process. `stop` may be called from a signal handler: once to drain, twice to leave at once."""

    def __init__(self, config: ServiceConfig, *, target: Target, clock: Clock) -> None:
        """Take the spool and start to listen; raises `UsageError` or `SpoolError`."""
        self._config = config
        self._clock = clock
        self._target = target
        self._stops = 0
        self._drain_until: float | None = None
        self._lock = SpoolLock(config.spool_dir)
        try:
            _raise_descriptor_limit()
            database = Database(config.spool_dir, max_bytes=config.spool_max_bytes)
            if database.set_aside is not None:
                log.error("spool was not readable and is set aside file=%s", database.set_aside)
            self._spool = Spool(database, clock=clock)
            for address in config.addresses:
                _refuse_socket_in_use(address)
            self._router = Router(config.addresses)
        except BaseException:
            self._lock.release()
            raise
        policy = config.policy
        self._intake = Intake(
            router=self._router,
            spool=self._spool,
            clock=clock,
            wake_run=self._wake_run,
            max_batch_rows=policy.max_batch_rows,
        )
        steps = Steps(spool=self._spool, target=target, policy=policy, clock=clock)
        self._dispatcher = Dispatcher(
            spool=self._spool,
            steps=steps,
            intake=self._intake,
            policy=policy,
            clock=clock,
            rng=random.Random(),  # noqa: S311 -- spreads load, guards nothing
        )
        self._intake_stop = threading.Event()

    @property
    def urls(self) -> list[str]:
        """Where it listens, with the ports that were chosen."""
        return self._router.urls

    def stop(self) -> None:
        """Drain and end; a second call skips the drain."""
        self._stops += 1
        self._dispatcher.changed.set()

    def drain(self, timeout_s: float) -> None:
        """Deliver what is there, for at most so long, then end."""
        self._drain_until = self._clock.monotonic() + timeout_s
        self._dispatcher.flush()
        self._dispatcher.retry_all_now()

    def run(self) -> int:
        """Serve until told to stop, or idle for long enough; return how many runs still have something to deliver."""
        intake = threading.Thread(target=self._intake.run, args=(self._intake_stop,), name="intake", daemon=True)
        intake.start()
        log.info("uploader ready listening=%s spool=%s", ",".join(self.urls), self._config.spool_dir)
        try:
            self._serve()
            if self._stops:
                self._drain_at_stop()
        finally:
            left = self._close(intake)
        return left

    def _wake_run(self, run: object) -> None:
        self._dispatcher.wake(run)  # type: ignore[arg-type]  # the intake is made before the dispatcher

    def _serve(self) -> None:
        next_maintenance = self._clock.monotonic() + _MAINTENANCE_S
        seen = -1
        while not self._stops:
            due = self._dispatcher.step_due()
            now = self._clock.monotonic()
            seen = self._answer(seen)
            if now >= next_maintenance:
                next_maintenance = now + _MAINTENANCE_S
                self._maintain()
            if self._is_idle(now) or self._is_drained(now):
                return
            self._wait(min(due - now, _TICK_S))

    def _drain_at_stop(self) -> None:
        log.info("stopping, delivering what is there")
        self._dispatcher.flush()
        self._dispatcher.retry_all_now()
        began = self._clock.monotonic()
        while self._stops == 1:
            due = self._dispatcher.step_due()
            now = self._clock.monotonic()
            ending = self._intake.has_sessions() and now - began < ENDING_COLLECTORS_S
            if now - began >= STOP_DRAIN_S:
                return
            if not ending and not self._dispatcher.undelivered() and not self._dispatcher.busy():
                return
            self._wait(min(due - now, 0.1))

    def _wait(self, timeout_s: float) -> None:
        if timeout_s > 0:
            self._clock.wait(self._dispatcher.changed, timeout_s)
        self._dispatcher.changed.clear()

    def _answer(self, seen: int) -> int:
        with self._spool.lock:
            version = self._spool.database.changed_elsewhere()
        if version != seen:
            answer_requests(self._spool, wake=self._dispatcher.wake, over=self._intake.run_is_over, drain=self.drain)
        return version

    def _maintain(self) -> None:
        try:
            with self._spool.lock:
                self._spool.database.shrink()
        except SpoolError as error:
            log.warning("spool maintenance failed error=%s", error)

    def _is_idle(self, now: float) -> bool:
        limit = self._config.exit_when_idle_s
        if limit is None or now - self._intake.heard_at < limit:
            return False
        with self._spool.lock:
            return not open_runs(self._spool.runs.values())

    def _is_drained(self, now: float) -> bool:
        if self._drain_until is None:
            return False
        return now >= self._drain_until or not (self._dispatcher.undelivered() or self._dispatcher.busy())

    def _close(self, intake: threading.Thread) -> int:
        self._intake_stop.set()
        self._router.wake()
        intake.join()
        # Steps that hang are left behind: each is repeated after a restart, with the same effect.
        with self._spool.lock:
            left = self._dispatcher.undelivered()
            rows = sum(run.open_rows for run in self._spool.runs.values())
            batches = sum(run.waiting_batches for run in self._spool.runs.values())
            self._spool.close()
        self._router.close()
        self._target.api.close()
        self._target.store.close()
        log.info("uploader stopped runs_left=%d rows_left=%d objects_left=%d", left, rows, batches)
        self._lock.release()
        return left


def _raise_descriptor_limit() -> None:
    """Connections are descriptors: at the soft limit a ROUTER accepts nobody, silently."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _refuse_socket_in_use(address: Address) -> None:
    """ZeroMQ takes a Unix socket's path away from whoever listens there: ask first."""
    if not address.url.startswith("ipc://"):
        return
    path = address.url.removeprefix("ipc://")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            directory = os.path.dirname(path)
            if not os.path.isdir(directory):
                raise UsageError(f"cannot listen at {address.url}: {directory} is not a directory") from None
            return
    raise UsageError(f"cannot listen at {address.url}: another uploader does already")
