"""One run from its first sample to its delivery: the loop that everything else is called from.

Imported after the job was started.
"""

import os
import signal
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sentinel_collector.console import Console
from sentinel_collector.delivery.delivery import Delivery
from sentinel_collector.delivery.orphan_recovery import OrphanRecovery
from sentinel_collector.discovery.host import host_info
from sentinel_collector.job.process import Job
from sentinel_collector.job.signals import Action, ReceivedSignal, SignalPolicy, Signals
from sentinel_collector.job.wait import detached_message, wait_for_job
from sentinel_collector.reporting.csv_output import CsvOutput, make_parent
from sentinel_collector.reporting.summary import parked_line, summary_figures, summary_json, summary_lines
from sentinel_collector.run_description import run_metadata
from sentinel_collector.run_facts import RunDescription
from sentinel_collector.run_key import rank_uploaders, run_key_of_host, run_key_of_process
from sentinel_collector.sampling.sampler import Sampler
from sentinel_collector.sensors.baseline import Baseline
from sentinel_collector.sensors.cgroup.container_view import ContainerView
from sentinel_collector.sensors.gpu.factory import open_gpu_sensor
from sentinel_collector.sensors.interfaces import Accounting
from sentinel_collector.settings import load_keys_without_core_dumps
from sentinel_protocol.common.clock import Clock
from sentinel_protocol.common.endpoints import Address, parse_address
from sentinel_protocol.common.paths import state_home
from sentinel_protocol.wire.messages import Finish, Welcome
from sentinel_protocol.wire.run_statistics import RunStatistics
from sentinel_protocol.wire.sample import Sample, csv_rows, decode_sample, encode_sample

if TYPE_CHECKING:
    from sentinel_collector.discovery.cloud.discovery import CloudDiscovery

LOCAL_UPLOADER_WAIT_S = 30.0
LOCAL_UPLOADER_START_S = 10.0
ORPHANS_WAIT_S = 5.0
ACKNOWLEDGE_WAIT_S = 5.0
"""A collector may end only when the uploader holds everything: even without waiting for delivery it waits so long."""
UNREACHABLE_WAIT_S = 1.0
"""How long an uploader that nobody has heard of is waited for: one that is just being started."""
_STOP_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
_PID_POLL_S = 0.1
_DELIVERY_POLL_S = 0.02
_ORPHANS_DELAY_S = 1.0
_DELIVERY_ERROR_AFTER_S = 3.0
"""Trouble that passes sooner is nobody's business."""
_ORPHANS_INTERVAL_S = 300.0
_STATISTICS_BATCH_ROWS = 60
"""Rows that the statistics take in together: one by one each would find the caches cold."""
_MAX_JOB_CHECK_S = 10.0
"""How late the job's end is noticed at most, should a SIGCHLD be missed."""
_LATE_WAKEUP_S = 0.001
"""Whoever wakes up later than that for a sample may find the job's SIGCHLD waiting behind the timer's signal."""


class Recorder:
    """Tracks one job, one foreign process tree, or the host. `run` returns the exit code."""

    def __init__(
        self,
        *,
        settings: Mapping[str, Any],
        addresses: Sequence[Address],
        environ: Mapping[str, str],
        clock: Clock,
        console: Console,
        signals: Signals,
        baseline: Baseline,
        job: Job | None,
        argv: list[str],
        root_pid: int | None,
        adopts_orphans: bool,
        accounting: Accounting | None,
        container: ContainerView | None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._console = console
        self._signals = signals
        self._job = job
        self._root_pid = root_pid
        self._scope = "host" if container is None else "container"
        if settings["scope"] not in {"auto", self._scope}:
            console.warn("no cgroup counts what this container uses: the system columns are the host's")
        self._interval_s: float = settings["interval"]
        host_root = settings["host_root"] or ""
        self._state_dir: str = settings["state_dir"] or os.path.join(state_home(environ), "collector")
        self._statistics = RunStatistics()
        self._uncounted_rows: list[Sample] = []
        self._is_remote = any(address.url.startswith("tcp:") for address in addresses)
        self._stopped = False
        self._detached = False
        self._check_job_at = 0.0
        self._undelivered_runs_reported = False
        self._signal_policy = None if job is None else SignalPolicy(job.contains)
        # The GPU's driver may take long to answer; everything after it finds it ready or goes without.
        self._gpu = open_gpu_sensor(clock=clock, warn=console.warn)
        self._sampler = Sampler(
            clock=clock,
            baseline=baseline,
            root_pid=root_pid,
            own_child=job is not None,
            interval_s=self._interval_s,
            gpu=self._gpu,
            accounting=accounting,
            container=container,
            adopt_orphans=adopts_orphans,
            pss_share=settings["pss_budget"] / 100,
            host_root=host_root,
        )
        self._discovery = None if settings["no_cloud"] else self._start_discovery()
        self._description = RunDescription(
            interval_s=self._interval_s,
            metadata=run_metadata(settings, argv),
            host=host_info(share_identity=settings["share_identity"], container=container, host_root=host_root)
            | self._gpu_info(),
            cloud={},
            cloud_pending=self._discovery is not None,
        )
        self._keys = load_keys_without_core_dumps(settings)
        self._orphans = OrphanRecovery(
            state_dir=self._state_dir, clock=clock, console=console, insecure=settings["insecure"], keys=self._keys
        )
        self._delivery = self._open_delivery(addresses, environ)
        self._output = self._open_output()
        self._resume_timestamps()
        self._started_at = baseline.monotonic
        self._orphans_due_at = baseline.monotonic + _ORPHANS_DELAY_S

    def run(self) -> int:
        """Sample until the end, then deliver; the job's exit code, or 0."""
        self._sample_until_end()
        if self._delivery.is_superseded:
            return self._hand_over_to_newer()
        # What came until now was the job's: the Ctrl-C that ended it does not mean the delivery as well.
        self._signals.wait(0)
        self._record_row(self._sampler.final(None if self._detached or self._job is None else self._job.reap))
        finish = self._finish()
        if finish.exit_code is not None:
            self._console.debug(f"the job ended with exit code {finish.exit_code}")
        self._delivery.finish(finish)
        self._await_delivery()
        self._close(finish)
        return self._exit_code()

    def _sample_until_end(self) -> None:
        due = self._next_sample_at(self._clock.monotonic())
        while not self._has_ended(due):
            now = self._clock.monotonic()
            if now >= due:
                self._record_row(self._sampler.sample())
                # After a stall the missed samples are skipped, never made up for in a burst.
                due = self._next_sample_at(self._clock.monotonic())
            else:
                self._delivery.poll()
            if self._delivery.is_superseded:
                return
            self._poll_background_work()
            timeout_s = min(due - self._clock.monotonic(), self._delivery.next_poll_in())
            if self._job is None and self._root_pid is not None:
                timeout_s = min(timeout_s, _PID_POLL_S)
            for received in self._signals.wait(timeout_s):
                self._handle_signal(received)

    def _next_sample_at(self, now: float) -> float:
        intervals = (now - self._started_at) // self._interval_s + 1
        return self._started_at + intervals * self._interval_s

    def _has_ended(self, due: float) -> bool:
        if self._detached or self._stopped:
            return True
        if self._job is not None:
            now = self._clock.monotonic()
            # SIGCHLD says when it is worth the call.
            if now < self._check_job_at and now < due + _LATE_WAKEUP_S:
                return False
            self._check_job_at = now + _MAX_JOB_CHECK_S
            return self._job.has_ended()
        return self._root_pid is not None and not self._sampler.root_alive()

    def _handle_signal(self, received: ReceivedSignal) -> None:
        if self._job is None or self._signal_policy is None:
            self._stopped = self._stopped or received.signum in _STOP_SIGNALS
            return
        if received.signum == signal.SIGCHLD:
            self._check_job_at = 0.0
        action = self._signal_policy.decide(received)
        if action is Action.FORWARD:
            self._job.forward(received.signum)
        elif action is Action.DETACH:
            self._detached = True
            self._console.warn(detached_message(self._job))

    def _poll_background_work(self) -> None:
        """Take in what discovery has found, and see to what earlier collectors left."""
        if self._discovery is not None and self._discovery.done():
            self._description.cloud = self._discovery.result()
            self._description.cloud_pending = False
            self._discovery = None
            self._description.host |= self._gpu_info()
            self._delivery.description_changed()
        now = self._clock.monotonic()
        if now >= self._orphans_due_at:
            self._orphans_due_at = now + _ORPHANS_INTERVAL_S
            self._orphans.start(self._delivery.path)

    def _record_row(self, sample: Sample | None) -> None:
        if sample is None:
            return
        row = encode_sample(sample)
        self._uncounted_rows.append(sample)
        if len(self._uncounted_rows) >= _STATISTICS_BATCH_ROWS:
            self._count_rows()
        if self._output is not None:
            # What is written is what is sent, byte for byte: the row after its way through the wire's form.
            self._output.write(csv_rows([decode_sample(row)]))
        self._delivery.add(row)

    def _count_rows(self) -> None:
        self._statistics.add(self._uncounted_rows)
        self._uncounted_rows.clear()

    def _finish(self) -> Finish:
        exit_code = 0 if self._job is None else self._job.exit_code
        if self._detached or (self._job is None and self._root_pid is not None):
            # Nobody but a process' parent learns how it ended.
            exit_code = None
        failed = self._detached or bool(exit_code)
        return Finish(
            last_seq=0,
            exit_code=exit_code,
            status="failed" if failed else "finished",
            time=self._clock.now(),
            peak_memory_mib=self._sampler.peak_memory_mib,
            accounting="" if self._root_pid is None else self._sampler.accounting,
            scope=self._scope,
        )

    def _await_delivery(self) -> None:
        wait_s, durable_wait_s = self._wait_limits()
        began = self._clock.monotonic()
        error_logged = False
        if not self._orphans.has_scanned:
            self._orphans.start(self._delivery.path)
        while not self._delivery.is_over:
            waited_s = self._clock.monotonic() - began
            if waited_s >= (wait_s if self._delivery.is_acknowledged else durable_wait_s):
                break
            self._delivery.wait(_DELIVERY_POLL_S)
            if self._delivery.cannot_start_uploader or (self._delivery.is_acknowledged and self._delivery.is_parked):
                break
            if not error_logged and waited_s >= _DELIVERY_ERROR_AFTER_S and self._delivery.delivery_error:
                error_logged = True
                self._console.warn(
                    f"not delivered yet, waiting for up to {wait_s:g} s: {self._delivery.delivery_error}"
                )
            if waited_s >= max(wait_s, UNREACHABLE_WAIT_S) and self._delivery.can_exit_early():
                break
            if any(received.signum in _STOP_SIGNALS for received in self._signals.wait(0)):
                break
        waited_s = self._clock.monotonic() - began
        # What others left is worth a moment where an uploader answers, and none where none does.
        self._orphans.finish(min(ORPHANS_WAIT_S, durable_wait_s - waited_s) if self._delivery.is_acknowledged else 0.0)

    def _wait_limits(self) -> tuple[float, float]:
        """Return for how many seconds to wait for the delivery, and for the uploader to hold everything."""
        wait_s = self._settings["wait"]
        if self._detached:
            return 0.0, ACKNOWLEDGE_WAIT_S
        if wait_s is not None:
            return wait_s, max(wait_s, ACKNOWLEDGE_WAIT_S)
        # An agent that cannot start is no reason to keep somebody waiting for it.
        return (
            (0.0, ACKNOWLEDGE_WAIT_S) if self._settings["connect"] else (LOCAL_UPLOADER_WAIT_S, LOCAL_UPLOADER_START_S)
        )

    def _close(self, finish: Finish) -> None:
        self._count_rows()
        figures = summary_figures(
            run_key=self._delivery.run_key,
            run_id=self._delivery.run_id,
            status=finish.status,
            exit_code=finish.exit_code,
            statistics=self._statistics,
            peak_memory_mib=finish.peak_memory_mib,
            accounting=finish.accounting,
            is_acknowledged=self._delivery.is_acknowledged,
            undelivered_rows=self._delivery.undelivered_rows,
            finished=self._delivery.finished,
            delivery_error=self._delivery.delivery_error,
            is_parked=self._delivery.is_parked,
        )
        if not self._delivery.is_acknowledged and (complaint := self._delivery.last_uploader_log_line()):
            self._console.error(f"this user's uploader said: {complaint}")
        self._delivery.close(finish, "" if self._output is None else self._output.complete_path)
        for line in summary_lines(figures, is_remote=self._is_remote):
            self._console.warn(line)
        if (parked := parked_line(figures, is_remote=self._is_remote)) is not None:
            self._console.error(parked)
        if self._settings["summary_json"]:
            self._write_summary(self._settings["summary_json"], summary_json(figures))
        self._close_sensors()

    def _write_summary(self, path: str, content: bytes) -> None:
        try:
            make_parent(path)
            with open(path, "wb") as file:
                file.write(content)
        except OSError as error:
            self._console.error(f"cannot write {path}: {error.strerror}")

    def _hand_over_to_newer(self) -> int:
        """A newer collector has the run: this one only waits for its job, if it has one."""
        self._console.error("a newer collector has taken this run over; this one records nothing more")
        self._delivery.close(None)
        self._close_sensors()
        if self._job is None:
            return 1
        return wait_for_job(self._job, self._signals, self._console)

    def _close_sensors(self) -> None:
        self._sampler.close()
        if self._output is not None:
            self._output.close()

    def _exit_code(self) -> int:
        if self._detached:
            return 128 + signal.SIGINT
        if self._job is None:
            return 0
        assert self._job.exit_code is not None
        return self._job.exit_code

    def _start_discovery(self) -> "CloudDiscovery":
        from sentinel_collector.discovery.cloud.discovery import CloudDiscovery

        discovery = CloudDiscovery(clock=self._clock, share_identity=self._settings["share_identity"])
        discovery.start()
        return discovery

    def _open_delivery(self, addresses: Sequence[Address], environ: Mapping[str, str]) -> Delivery:
        run_key = self._settings["run_key"] or self._derived_run_key()
        local_uploader = None
        if addresses:
            addresses = rank_uploaders(addresses, run_key)
        else:
            from sentinel_collector.delivery.local_uploader import LocalUploaderSupervisor
            from sentinel_protocol.common.local_uploader import local_uploader_paths

            paths = local_uploader_paths(environ)
            self._console.debug(
                f"this user's uploader: {paths.socket_path}" + (paths.fallback_reason and f" ({paths.fallback_reason})")
            )
            addresses = [parse_address(paths.url, bind=False)]
            local_uploader = LocalUploaderSupervisor(
                paths, environ=environ, warn=self._console.warn, on_started=self._sampler.exclude
            )
        return Delivery(
            run_key=run_key,
            incarnation=os.urandom(8).hex(),
            addresses=addresses,
            local_uploader=local_uploader,
            state_dir=self._state_dir,
            description=self._description,
            clock=self._clock,
            console=self._console,
            on_welcome=self._on_welcome,
            is_named=bool(self._settings["run_key"]),
            keys=self._keys,
            failover_after_s=self._settings["failover_after"],
        )

    def _open_output(self) -> CsvOutput | None:
        path = self._settings["output"]
        return CsvOutput(path, continued=self._delivery.is_resumed, warn=self._console.error) if path else None

    def _resume_timestamps(self) -> None:
        """Time stamps increase within a run, also where it is continued."""
        if self._delivery.last_row is not None:
            self._sampler.advance_past(decode_sample(self._delivery.last_row).timestamp)
        if self._output is not None:
            self._sampler.advance_past(self._output.last_timestamp)

    def _gpu_info(self) -> dict[str, str | int | float]:
        return {} if self._gpu is None else self._gpu.gpu_info()

    def _derived_run_key(self) -> str:
        return run_key_of_host(self._state_dir) if self._root_pid is None else run_key_of_process(self._root_pid)

    def _on_welcome(self, welcome: Welcome) -> None:
        if welcome.last_timestamp:
            self._sampler.advance_past(welcome.last_timestamp)
        if welcome.run_id:
            self._console.debug(f"run {welcome.run_id}")
        # Whoever runs an uploader for others looks after it; one of this user's own is looked at by nobody.
        if welcome.undelivered_runs and not self._settings["connect"] and not self._undelivered_runs_reported:
            self._undelivered_runs_reported = True
            runs = (
                "1 earlier run is" if welcome.undelivered_runs == 1 else f"{welcome.undelivered_runs} earlier runs are"
            )
            self._console.warn(f"{runs} not delivered yet; `sentinel-uploader status` says why")
