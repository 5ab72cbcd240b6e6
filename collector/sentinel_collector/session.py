"""The recording of one run: a loop that samples, reacts to signals and drives the delivery.

Imported after the job has started.
"""

import os
import signal
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sentinel_collector.console import Console, pluralize
from sentinel_collector.delivery.delivery import Delivery
from sentinel_collector.delivery.failover import rank_uploaders
from sentinel_collector.delivery.orphan_recovery import OrphanRecovery
from sentinel_collector.discovery.host import host_info
from sentinel_collector.job.mirror import JobMirror
from sentinel_collector.job.process import Job
from sentinel_collector.job.recorder_process import GIVE_UP
from sentinel_collector.job.signals import STOP_SIGNALS, Action, ReceivedSignal, Signals
from sentinel_collector.job.wait import wait_for_job
from sentinel_collector.job.waiter import detached_message
from sentinel_collector.procfs import names_of_running
from sentinel_collector.reporting.csv_output import CsvOutput
from sentinel_collector.reporting.output_target import OutputTargets
from sentinel_collector.run_description import RunDescription, run_metadata
from sentinel_collector.run_key import run_key_of_host, run_key_of_process
from sentinel_collector.sampling.sampler import Sampler
from sentinel_collector.sensors.baseline import Baseline
from sentinel_collector.sensors.cgroup.container_view import ContainerView
from sentinel_collector.sensors.gpu.factory import open_gpu_sensor
from sentinel_collector.sensors.interfaces import Accounting
from sentinel_collector.shutdown import ORPHANS_WAIT_S, await_delivery, close_delivery, report_result, wait_limits
from sentinel_collector.uploader_options import load_keys_without_core_dumps
from sentinel_protocol.common.clock import Clock
from sentinel_protocol.common.endpoints import Address, parse_address
from sentinel_protocol.common.paths import state_home
from sentinel_protocol.wire.messages import Finish, Welcome
from sentinel_protocol.wire.run_statistics import RunStatistics
from sentinel_protocol.wire.sample import Sample, csv_rows, decode_sample, encode_sample

if TYPE_CHECKING:
    from sentinel_collector.discovery.cloud.discovery import CloudDiscovery
    from sentinel_protocol.wire.curve_keys import ClientCurveKeys

_PID_POLL_S = 0.1
_ORPHANS_DELAY_S = 1.0
_ORPHANS_INTERVAL_S = 300.0
_STATISTICS_BATCH_ROWS = 60
"""Rows that the statistics take in together: one at a time, each would find the caches cold."""
_MAX_JOB_CHECK_S = 10.0
"""Longest time between two checks of the job, in case a SIGCHLD is missed."""
_LATE_WAKEUP_S = 0.001
"""When a sample is later than this, the job's SIGCHLD may wait behind the timer's signal: check the job."""
_CLOSE_S = 10.0
"""Time for closing everything after the delivery."""


class Recorder:
    """Records one job, one running process tree, or the host. `run` returns the exit code."""

    def __init__(
        self,
        *,
        settings: Mapping[str, Any],
        addresses: Sequence[Address],
        environ: Mapping[str, str],
        clock: Clock,
        console: Console,
        signals: Signals | JobMirror,
        baseline: Baseline,
        job: Job | JobMirror | None,
        is_continued: bool = False,
        argv: list[str],
        root_pid: int | None,
        accounting: Accounting | None,
        container: ContainerView | None,
        excluded: Collection[int] = (),
    ) -> None:
        self._settings = settings
        self._targets = _claim_targets(settings, started_at=clock.now() - clock.monotonic() + baseline.monotonic)
        self._clock, self._console = clock, console
        self._signals = signals
        self._job, self._root_pid = job, root_pid
        self._is_continued = is_continued
        self._scope = "host" if container is None else "container"
        if settings["scope"] not in {"auto", self._scope}:
            console.warn("no cgroup accounts for this container: the system columns show the host")
        self._interval_s: float = settings["interval"]
        self._state_dir: str = settings["state_dir"] or os.path.join(state_home(environ), "collector")
        self._statistics = RunStatistics()
        self._uncounted_rows: list[Sample] = []
        self._is_remote = any(address.url.startswith("tcp:") for address in addresses)
        self._stopped = self._detached = self._undelivered_runs_reported = False
        self._check_job_at = 0.0
        self._mirror = job if isinstance(job, JobMirror) else None
        # First, since the GPU's driver may answer slowly: what follows uses it if it is ready by then.
        self._gpu = open_gpu_sensor(clock=clock, warn=console.warn)
        self._sampler = self._open_sampler(baseline, accounting, container, is_continued=is_continued)
        for pid in excluded:
            self._sampler.exclude(pid)
        self._discovery = None if settings["no_cloud"] else self._start_discovery()
        self._description = self._describe_run(argv, container)
        keys = load_keys_without_core_dumps(settings)
        self._orphans = OrphanRecovery(
            state_dir=self._state_dir, clock=clock, console=console, insecure=settings["insecure"], keys=keys
        )
        self._delivery = self._open_delivery(addresses, environ, keys)
        self._output = self._open_output()
        self._resume_timestamps()
        self._started_at = baseline.monotonic
        self._orphans_due_at = self._started_at + _ORPHANS_DELAY_S

    def run(self) -> int:
        """Sample until the end, then deliver; return the job's exit code, or 0."""
        if self._root_pid is None:
            self._console.warn(f"recording this machine as run {self._delivery.run_key}; Ctrl-C ends")
        self._sample_until_end()
        if self._delivery.is_superseded:
            return self._hand_over_to_newer()
        # Signals until now were for the job: a Ctrl-C that ended it must not end the delivery as well.
        self._signals.wait(0)
        self._record_row(self._sampler.final(None if self._detached or self._job is None else self._job.reap))
        if self._mirror is not None and not self._detached and (left := names_of_running(self._sampler.left_running())):
            self._console.warn(f"the job has left running: {left}")
        finish = self._finish()
        self._delivery.finish(finish)
        self._count_rows()
        run_id, host = self._delivery.client.run_id, self._description.host
        report_result(finish, self._statistics, run_id=run_id, host=host, console=self._console)
        wait_s, acknowledge_wait_s = wait_limits(self._settings, is_detached=self._detached)
        if self._mirror is not None:
            self._mirror.announce_wait(max(wait_s, acknowledge_wait_s) + ORPHANS_WAIT_S + _CLOSE_S)
        await_delivery(
            self._delivery,
            self._orphans,
            self._signals,
            clock=self._clock,
            console=self._console,
            wait_s=wait_s,
            acknowledge_wait_s=acknowledge_wait_s,
        )
        close_delivery(
            self._delivery,
            finish,
            self._statistics,
            console=self._console,
            complete_path="" if self._output is None else self._output.complete_path,
            targets=self._targets,
            summary_path=self._settings["summary_json"],
            is_remote=self._is_remote,
        )
        if self._is_continued:
            self._console.warn("the recorder was started again; these figures count from its last start")
        self._close_sensors()
        return self._exit_code()

    def _sample_until_end(self) -> None:
        due = self._next_sample_at(self._clock.monotonic())
        while not self._has_ended(due):
            now = self._clock.monotonic()
            if now >= due:
                self._record_row(self._sampler.sample())
                # Samples missed in a stall are skipped, not taken in a burst.
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
            # SIGCHLD tells when the call is worthwhile.
            if now < self._check_job_at and now < due + _LATE_WAKEUP_S:
                return False
            self._check_job_at = now + _MAX_JOB_CHECK_S
            return self._job.has_ended()
        return self._root_pid is not None and not self._sampler.root_alive()

    def _handle_signal(self, received: ReceivedSignal) -> None:
        if self._job is None:
            self._stopped = self._stopped or received.signum in STOP_SIGNALS
            return
        if received.signum == signal.SIGCHLD:
            self._check_job_at = 0.0
        action = self._job.decide(received)
        if action is Action.DETACH:
            self._detached = True
        if isinstance(self._job, JobMirror):
            return
        if action is Action.FORWARD:
            self._job.forward(received.signum)
        elif action is Action.DETACH:
            self._console.warn(detached_message(self._job.pid))

    def _poll_background_work(self) -> None:
        """Take the result of cloud discovery, and start the recovery of orphaned files."""
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
            # Decoded again, so that the file has the rows as they are delivered, byte for byte.
            self._output.write(csv_rows([decode_sample(row)]))
        self._delivery.add(row)

    def _count_rows(self) -> None:
        self._statistics.add(self._uncounted_rows)
        self._uncounted_rows.clear()

    def _finish(self) -> Finish:
        exit_code = 0 if self._job is None else self._job.exit_code
        if self._detached or (self._job is None and self._root_pid is not None):
            # Only the parent process learns the exit code.
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

    def _hand_over_to_newer(self) -> int:
        """Stop recording a run that a newer collector has taken over; wait for the job, if there is one."""
        self._console.error("a newer collector has taken over this run; this one stops recording")
        self._delivery.close(None)
        self._close_sensors()
        if self._job is None:
            return 1
        if isinstance(self._signals, JobMirror) or isinstance(self._job, JobMirror):
            return GIVE_UP
        return wait_for_job(self._job, self._signals, self._console)

    def _close_sensors(self) -> None:
        self._sampler.close()
        if self._output is not None:
            self._output.close()

    def _exit_code(self) -> int:
        if self._detached:
            return 128 + signal.SIGINT
        if self._job is None or self._mirror is not None:
            return 0
        assert self._job.exit_code is not None
        return self._job.exit_code

    def _describe_run(self, argv: list[str], container: ContainerView | None) -> RunDescription:
        host = host_info(
            share_identity=self._settings["share_identity"],
            container=container,
            host_root=self._settings["host_root"] or "",
        )
        return RunDescription(
            interval_s=self._interval_s,
            metadata=run_metadata(self._settings, argv),
            host=host | self._gpu_info(),
            cloud={},
            cloud_pending=self._discovery is not None,
        )

    def _start_discovery(self) -> "CloudDiscovery":
        from sentinel_collector.discovery.cloud.discovery import CloudDiscovery

        discovery = CloudDiscovery(clock=self._clock, share_identity=self._settings["share_identity"])
        discovery.start()
        return discovery

    def _open_delivery(
        self, addresses: Sequence[Address], environ: Mapping[str, str], keys: "Mapping[str, ClientCurveKeys]"
    ) -> Delivery:
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
                paths, environ=environ, warn=self._console.warn, on_started=self._exclude
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
            keys=keys,
            failover_after_s=self._settings["failover_after"],
        )

    def _open_sampler(
        self, baseline: Baseline, accounting: Accounting | None, container: ContainerView | None, *, is_continued: bool
    ) -> Sampler:
        mirror = self._mirror
        return Sampler(
            clock=self._clock,
            baseline=baseline,
            root_pid=self._root_pid,
            own_child=self._job is not None and not is_continued,
            interval_s=self._interval_s,
            gpu=self._gpu,
            accounting=accounting,
            container=container,
            adopter_pid=0 if mirror is None else mirror.adopter_pid,
            take_reaped=tuple if mirror is None else mirror.take_reaped,
            pss_share=self._settings["pss_budget"] / 100,
            host_root=self._settings["host_root"] or "",
            warn=self._console.warn,
        )

    def _exclude(self, pid: int) -> None:
        self._sampler.exclude(pid)
        if self._mirror is not None:
            self._mirror.announce_excluded(pid)

    def _open_output(self) -> CsvOutput | None:
        path = self._settings["output"]
        if not path:
            return None
        return CsvOutput(path, targets=self._targets, continued=self._delivery.is_resumed, warn=self._console.error)

    def _resume_timestamps(self) -> None:
        """Time stamps increase within a run, also in one that is resumed."""
        if self._delivery.last_row is not None:
            self._sampler.advance_past(decode_sample(self._delivery.last_row).timestamp)
        if self._output is not None:
            self._sampler.advance_past(self._output.last_timestamp)

    def _gpu_info(self) -> dict[str, str | int | float]:
        return {} if self._gpu is None else self._gpu.gpu_info()

    def _derived_run_key(self) -> str:
        if self._mirror is not None:
            return self._mirror.run_key
        return run_key_of_host(self._state_dir) if self._root_pid is None else run_key_of_process(self._root_pid)

    def _on_welcome(self, welcome: Welcome) -> None:
        if welcome.last_timestamp:
            self._sampler.advance_past(welcome.last_timestamp)
        if welcome.run_id:
            self._console.debug(f"run {welcome.run_id}")
        # A shared uploader has an operator who watches it; this user's own has not.
        if welcome.undelivered_runs and not self._settings["connect"] and not self._undelivered_runs_reported:
            self._undelivered_runs_reported = True
            runs = pluralize(welcome.undelivered_runs, "earlier run", ("is", "are"))
            self._console.warn(f"{runs} not delivered yet; `sentinel-uploader status` says why")


def _claim_targets(settings: Mapping[str, Any], *, started_at: float) -> OutputTargets:
    """Take the descriptors of the job that the user's files stand for; from here on, new files are private.

    The job has its own umask, and the user's files get it as well.
    """
    targets = OutputTargets([settings["output"], settings["summary_json"]], started_at=started_at)
    os.umask(0o077)
    return targets
