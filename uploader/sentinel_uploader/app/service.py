"""The uploader process: wires its parts together, runs the main loop, and shuts down."""

import contextlib
import logging
import random
import threading
from typing import TYPE_CHECKING

from sentinel_protocol.common.clock import Clock
from sentinel_protocol.common.errors import UsageError
from sentinel_protocol.common.local_uploader import write_socket_path
from sentinel_uploader.admin.requests import handle_requests
from sentinel_uploader.app.config import ServiceConfig
from sentinel_uploader.delivery.executor import StepExecutor
from sentinel_uploader.delivery.scheduler import Scheduler
from sentinel_uploader.intake.loop import Intake
from sentinel_uploader.runs.ports import Backend
from sentinel_uploader.server.allow_list import AllowList
from sentinel_uploader.server.fd_limits import connection_limits, raise_descriptor_limit
from sentinel_uploader.server.rejection_log import RejectionLog
from sentinel_uploader.server.zmq_server import ZmqServer, refuse_socket_in_use
from sentinel_uploader.spool.errors import SpoolError
from sentinel_uploader.spool.lock import SpoolLock
from sentinel_uploader.spool.open_run import OpenRun
from sentinel_uploader.spool.store import Spool
from sentinel_uploader.telemetry.counters import Counters
from sentinel_uploader.telemetry.health import Health
from sentinel_uploader.telemetry.heard_file import HeardFile
from sentinel_uploader.telemetry.rejections_file import WRITE_INTERVAL_S, RejectionsFile
from sentinel_uploader.telemetry.sd_notify import SystemdNotifier

if TYPE_CHECKING:
    from sentinel_uploader.telemetry.http_server import HttpServer

log = logging.getLogger(__name__)

SHUTDOWN_DRAIN_S = 8.0
COLLECTOR_GRACE_S = 2.0
"""A stop waits so long for open collectors: they may be stopped at the same moment, and still send `Finish`."""
_TICK_S = 0.5
_MAINTENANCE_S = 10.0


class Service:
    """One uploader process. `stop` may be called from another thread: once to drain, twice to end at once.

    Do not call it from a signal handler: it sets an event, whose lock the interrupted thread may hold.
    """

    def __init__(
        self, config: ServiceConfig, *, target: Backend, clock: Clock, notifier: SystemdNotifier | None = None
    ) -> None:
        """Lock the spool and start to listen; raises `UsageError` or `SpoolError`."""
        self._config = config
        self._notifier = notifier or SystemdNotifier({}, clock=clock)
        self._clock = clock
        self._target = target
        self._stops = 0
        self._counters = Counters()
        self._drain_until: float | None = None
        self._active_at = clock.monotonic()
        self._allow_list = None if config.keys is None else AllowList(config.keys, clock=clock)
        self._lock = SpoolLock(config.spool_dir, clock=clock)
        with contextlib.ExitStack() as undo:
            undo.callback(self._lock.release_and_clean_up)
            raise_descriptor_limit()
            # The spool is opened last: an uploader that cannot listen creates no empty one.
            self._http = self._bind_http()
            if self._http is not None:
                undo.callback(self._http.close)
            self._server = self._listen()
            undo.callback(self._server.close)
            self._spool = Spool.open(config.spool_dir, max_bytes=config.spool_max_bytes, clock=clock)
            undo.pop_all()
        self._publish_socket_path()
        self._rejections_file = RejectionsFile(config.spool_dir, self._counters, clock)
        self._heard_file = HeardFile(config.spool_dir, self._spool, clock, self._client_names)
        policy = config.policy
        self._intake = Intake(
            server=self._server,
            spool=self._spool,
            clock=clock,
            wake_run=self._wake_run,
            blocked_by=self._blocked_by,
            policy=policy,
            counters=self._counters,
            name_of=self._name_of,
            limits=config.limits,
            known_clients=self._known_clients,
        )
        steps = StepExecutor(spool=self._spool, backend=target, policy=policy, clock=clock, counters=self._counters)
        self._scheduler = Scheduler(
            spool=self._spool,
            executor=steps,
            presence=self._intake,
            policy=policy,
            clock=clock,
            rng=random.Random(),  # noqa: S311 -- spreads load, guards nothing
            counters=self._counters,
        )
        self._intake_stop = threading.Event()
        self._last_loop_at = clock.monotonic()
        self._health = self._make_health()

    @property
    def urls(self) -> list[str]:
        """The addresses where it listens, with the ports that were chosen."""
        return self._server.urls

    def stop(self) -> None:
        """Drain and end. A second call skips the drain."""
        self._stops += 1
        self._scheduler.wakeup.set()

    def drain(self, timeout_s: float) -> None:
        """Deliver what is in the spool, for at most `timeout_s`, then end."""
        self._drain_until = self._clock.monotonic() + timeout_s
        self._health.is_stopping = True
        self._scheduler.flush()
        self._scheduler.reset_backoff()

    def run(self) -> int:
        """Serve until stopped, or idle for long enough. Return the number of runs that are not delivered."""
        intake = threading.Thread(target=self._intake.run, args=(self._intake_stop,), name="intake", daemon=True)
        intake.start()
        self._start_http()
        self._notifier.ready(f"listening at {', '.join(self.urls)}")
        clients = "none" if self._allow_list is None else self._known_clients()
        if self.urls:
            text = "uploader ready listening=%s spool=%s clients_with_keys=%s"
            log.info(text, ",".join(self.urls), self._config.spool_dir, clients)
        else:
            log.info("uploader ready to drain spool=%s", self._config.spool_dir)
        try:
            self._main_loop()
            self._notifier.stopping("delivering what is in the spool")
            if self._stops:
                self._drain_at_stop()
        finally:
            left = self._close(intake)
        return left

    def _listen(self) -> ZmqServer:
        for address in self._config.addresses:
            refuse_socket_in_use(address)
        return ZmqServer(
            self._config.addresses,
            allow_list=self._allow_list,
            limits=connection_limits(self._config.limits),
            # A message above the limit is answered. Above twice the limit, ZeroMQ closes the connection.
            max_frame_bytes=2 * self._config.limits.max_message_bytes,
            rejections=RejectionLog(self._counters, self._clock),
            clock=self._clock,
        )

    def _publish_socket_path(self) -> None:
        for url in self.urls:
            if url.startswith("ipc://"):
                # Collectors with another environment find the socket by this file. A full disk must not stop us.
                with contextlib.suppress(OSError):
                    write_socket_path(self._config.spool_dir, url.removeprefix("ipc://"))
                return

    def _make_health(self) -> Health:
        return Health(
            spool=self._spool,
            directory=self._config.spool_dir,
            last_intake_loop_at=lambda: self._intake.last_loop_at,
            spool_unavailable=lambda: self._intake.availability.unavailable,
            last_main_loop_at=lambda: self._last_loop_at,
            # Rows wait for the upload interval anyway.
            unhealthy_after_s=self._config.unhealthy_after_s + self._config.policy.upload_interval_s,
            clock=self._clock,
        )

    def _bind_http(self) -> "HttpServer | None":
        if self._config.http is None:
            return None
        try:
            # Imported only if wanted: 10 MiB and 50 ms. The library belongs to the extra `[uploader]`.
            from sentinel_uploader.telemetry import http_server, prometheus  # noqa: F401 -- missing is said now
        except ImportError as error:
            raise UsageError(
                f"--http needs more than the base package ({error.name} is missing): "
                "pip install 'sentinel-stream[uploader]'"
            ) from error
        return http_server.HttpServer(self._config.http, clock=self._clock)

    def _start_http(self) -> None:
        if self._http is None or self._config.http is None:
            return
        from sentinel_uploader.telemetry.prometheus import Metrics
        from sentinel_uploader.telemetry.routes import build_routes

        metrics = Metrics(
            counters=self._counters,
            spool=self._spool,
            backlog=self._health.backlog,
            failing_destinations=self._scheduler.failing_destinations,
            connections=lambda: self._server.connections,
        )
        self._http.start(build_routes(self._health, metrics))
        log.info("health and metrics ready url=%s", self._http.url)
        if not self._config.http.is_loopback:
            log.warning("health and metrics can be read beyond this machine url=%s", self._http.url)

    def _name_of(self, key: bytes) -> str | None:
        return None if self._allow_list is None else self._allow_list.name_of(key)

    def _known_clients(self) -> int:
        return 0 if self._allow_list is None else len(self._allow_list)

    def _client_names(self) -> list[str] | None:
        return None if self._allow_list is None else self._allow_list.names()

    def _wake_run(self, run: OpenRun) -> None:
        self._scheduler.notify(run)

    def _blocked_by(self, run: OpenRun) -> str:
        return self._scheduler.blocked_by(run)

    def _main_loop(self) -> None:
        next_maintenance = self._clock.monotonic() + _MAINTENANCE_S
        next_write = self._clock.monotonic()
        seen = -1
        while not self._stops:
            due = self._scheduler.run_due()
            now = self._last_loop_at = self._clock.monotonic()
            seen = self._poll_control_requests(seen)
            if self._target.api.credentials_changed():
                log.info("the token was changed, trying again")
                self._scheduler.reset_backoff_of(self._target.api.backoff_key)
            if now >= next_write:
                next_write = now + WRITE_INTERVAL_S
                self._rejections_file.write()
                self._heard_file.write()
            if now >= next_maintenance:
                next_maintenance = now + (_TICK_S if self._maintain() else _MAINTENANCE_S)
            if self._is_idle(now) or self._is_drained(now):
                return
            if not self._health.liveness_error():
                # When the intake hangs, the watchdog must restart the process.
                self._notifier.watchdog()
            self._wait(min(due - now, _TICK_S))

    def _drain_at_stop(self) -> None:
        log.info("stopping, delivering what is in the spool")
        self._health.is_stopping = True
        self._scheduler.flush()
        self._scheduler.reset_backoff()
        began = self._clock.monotonic()
        while self._stops == 1:
            due = self._scheduler.run_due()
            now = self._last_loop_at = self._clock.monotonic()
            ending = self._intake.has_sessions() and now - began < COLLECTOR_GRACE_S
            if now - began >= SHUTDOWN_DRAIN_S:
                return
            if not ending and self._scheduler.is_flushed() and not self._scheduler.steps_in_flight:
                return
            self._notifier.watchdog()
            self._wait(min(due - now, 0.1))

    def _wait(self, timeout_s: float) -> None:
        if timeout_s > 0:
            self._clock.wait_for(self._scheduler.wakeup, timeout_s)
        self._scheduler.wakeup.clear()

    def _poll_control_requests(self, seen: int) -> int:
        try:
            version = self._spool.data_version()
            if version != seen:
                handle_requests(self._spool, self._scheduler, drain=self.drain)
        except SpoolError as error:
            log.warning("cannot answer a request error=%s", error)
            return seen
        return version

    def _maintain(self) -> bool:
        """Shrink the spool's files by one step; True when there is more to do."""
        try:
            return self._spool.compact()
        except SpoolError as error:
            log.warning("spool maintenance failed error=%s", error)
            return False

    def _is_idle(self, now: float) -> bool:
        limit = self._config.exit_when_idle_s
        if limit is None:
            return False
        if any(self._spool.view(lambda run: run.is_active)) or self._scheduler.steps_in_flight:
            # Idle time starts with the last delivery, so that its collector still gets the result.
            self._active_at = now
        return now - max(self._active_at, self._intake.last_message_at) >= limit

    def _is_drained(self, now: float) -> bool:
        if self._drain_until is None:
            return False
        return now >= self._drain_until or (self._scheduler.is_flushed() and not self._scheduler.steps_in_flight)

    def _close(self, intake: threading.Thread) -> int:
        if self._http is not None:
            self._http.close()
        self._intake_stop.set()
        self._server.wake()
        intake.join()
        # Does not wait for steps that hang.
        self._scheduler.abandon_steps()
        self._heard_file.write()
        left = self._scheduler.pending_run_count()
        rows = sum(self._spool.view(lambda run: run.unbatched_rows))
        batches = sum(self._spool.view(lambda run: run.pending_batches))
        self._maintain()
        self._spool.close()
        self._server.close()
        self._rejections_file.write()
        self._target.api.close()
        self._target.store.close()
        log.info("uploader stopped runs_left=%d rows_left=%d objects_left=%d", left, rows, batches)
        self._lock.release()
        return left
