"""One run from its first sample to its delivery: the loop that everything else is called from.

Imported after the job was started.
"""

import os
import signal
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sentinel_collector.console import Voice
from sentinel_collector.delivery.delivery import Delivery
from sentinel_collector.delivery.orphan_recovery import Leftovers
from sentinel_collector.discovery.host import host_info
from sentinel_collector.job.process import Job
from sentinel_collector.job.signals import Action, Interrupts, Received, Signals
from sentinel_collector.job.wait import going_on, wait_for_job
from sentinel_collector.reporting.csv_output import CsvOutput, make_parent
from sentinel_collector.reporting.summary import parked_line, summary_figures, summary_json, summary_lines
from sentinel_collector.run_description import run_metadata
from sentinel_collector.run_facts import RunFacts
from sentinel_collector.run_key import ranked_addresses, run_key_of_host, run_key_of_process
from sentinel_collector.sampling.sampler import Sampler
from sentinel_collector.sensors.baseline import Baseline
from sentinel_collector.sensors.cgroup.container_view import ContainerView
from sentinel_collector.sensors.gpu.factory import open_gpu_sensor
from sentinel_collector.sensors.interfaces import Accounting
from sentinel_collector.settings import guarded_keys
from sentinel_protocol.common.clock import Clock
from sentinel_protocol.common.endpoints import Address, parse_address
from sentinel_protocol.common.paths import state_home
from sentinel_protocol.wire.messages import Finish, Welcome
from sentinel_protocol.wire.run_statistics import RunStatistics
from sentinel_protocol.wire.sample import Sample, csv_rows, decode_sample, encode_sample

if TYPE_CHECKING:
    from sentinel_collector.discovery.cloud.discovery import CloudDiscovery

AGENT_WAIT_S = 30.0
AGENT_START_S = 10.0
LEFTOVERS_WAIT_S = 5.0
DURABLE_WAIT_S = 5.0
"""A collector may end only when the uploader holds everything: even without waiting for delivery it waits so long."""
NOBODY_WAIT_S = 1.0
"""How long an uploader that nobody has heard of is waited for: one that is just being started."""
_STOP = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
_PID_POLL_S = 0.1
_ANSWER_POLL_S = 0.02
_LEFTOVERS_S = 1.0
_TELL_TROUBLE_S = 3.0
"""Trouble that passes sooner is nobody's business."""
_LEFTOVERS_AGAIN_S = 300.0
_COUNTED_AT_ONCE = 60
"""Rows that the statistics take in together: one by one each would find the caches cold."""
_LOOK_ANYWAY_S = 10.0
"""How late the job's end is noticed at most, should a SIGCHLD be missed."""
_LATE_S = 0.001
"""Whoever wakes up later than that for a sample may find the job's SIGCHLD waiting behind the timer's signal."""


class Session:
    """Tracks one job, one foreign process tree, or the host. `run` returns the exit code."""

    def __init__(
        self,
        *,
        settings: Mapping[str, Any],
        addresses: Sequence[Address],
        environ: Mapping[str, str],
        clock: Clock,
        voice: Voice,
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
        self._voice = voice
        self._signals = signals
        self._job = job
        self._root_pid = root_pid
        self._scope = "host" if container is None else "container"
        if settings["scope"] not in {"auto", self._scope}:
            voice.warn("no cgroup counts what this container uses: the system columns are the host's")
        self._interval_s: float = settings["interval"]
        host_root = settings["host_root"] or ""
        self._state_dir: str = settings["state_dir"] or os.path.join(state_home(environ), "collector")
        self._statistics = RunStatistics()
        self._not_counted: list[Sample] = []
        self._is_remote = any(address.url.startswith("tcp:") for address in addresses)
        self._stopped = False
        self._left = False
        self._look_at_job_at = 0.0
        self._told_of_left_behind = False
        self._interrupts = None if job is None else Interrupts(job.contains)
        # The GPU's driver may take long to answer; everything after it finds it ready or goes without.
        self._gpu = open_gpu_sensor(clock=clock, warn=voice.warn)
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
        self._discovery = None if settings["no_cloud"] else self._begin_discovery()
        self._facts = RunFacts(
            interval_s=self._interval_s,
            metadata=run_metadata(settings, argv),
            host=host_info(share_identity=settings["share_identity"], container=container, host_root=host_root)
            | self._gpu_info(),
            cloud={},
            cloud_pending=self._discovery is not None,
        )
        self._keys = guarded_keys(settings)
        self._leftovers = Leftovers(
            state_dir=self._state_dir, clock=clock, voice=voice, insecure=settings["insecure"], keys=self._keys
        )
        self._delivery = self._open_delivery(addresses, environ)
        self._output = self._open_output()
        self._go_on_after_earlier_rows()
        self._begun_at = baseline.monotonic
        self._leftovers_due_at = baseline.monotonic + _LEFTOVERS_S

    def run(self) -> int:
        """Sample until the end, then deliver; the job's exit code, or 0."""
        self._sample_until_end()
        if self._delivery.is_superseded:
            return self._leave_to_newer()
        # What came until now was the job's: the Ctrl-C that ended it does not mean the delivery as well.
        self._signals.wait(0)
        self._keep_row(self._sampler.final(None if self._left or self._job is None else self._job.reap))
        finish = self._finish()
        if finish.exit_code is not None:
            self._voice.detail(f"the job ended with exit code {finish.exit_code}")
        self._delivery.finish(finish)
        self._await_delivery()
        self._close(finish)
        return self._exit_code()

    def _sample_until_end(self) -> None:
        due = self._next_sample_at(self._clock.monotonic())
        while not self._has_ended(due):
            now = self._clock.monotonic()
            if now >= due:
                self._keep_row(self._sampler.sample())
                # After a stall the missed samples are skipped, never made up for in a burst.
                due = self._next_sample_at(self._clock.monotonic())
            else:
                self._delivery.pump()
            if self._delivery.is_superseded:
                return
            self._look_around()
            timeout_s = min(due - self._clock.monotonic(), self._delivery.due_in())
            if self._job is None and self._root_pid is not None:
                timeout_s = min(timeout_s, _PID_POLL_S)
            for received in self._signals.wait(timeout_s):
                self._take_signal(received)

    def _next_sample_at(self, now: float) -> float:
        intervals = (now - self._begun_at) // self._interval_s + 1
        return self._begun_at + intervals * self._interval_s

    def _has_ended(self, due: float) -> bool:
        if self._left or self._stopped:
            return True
        if self._job is not None:
            now = self._clock.monotonic()
            # SIGCHLD says when it is worth the call.
            if now < self._look_at_job_at and now < due + _LATE_S:
                return False
            self._look_at_job_at = now + _LOOK_ANYWAY_S
            return self._job.has_ended()
        return self._root_pid is not None and not self._sampler.root_alive()

    def _take_signal(self, received: Received) -> None:
        if self._job is None or self._interrupts is None:
            self._stopped = self._stopped or received.signum in _STOP
            return
        if received.signum == signal.SIGCHLD:
            self._look_at_job_at = 0.0
        action = self._interrupts.note(received)
        if action is Action.FORWARD:
            self._job.forward(received.signum)
        elif action is Action.LEAVE:
            self._left = True
            self._voice.warn(going_on(self._job))

    def _look_around(self) -> None:
        """Take in what discovery has found, and see to what earlier collectors left."""
        if self._discovery is not None and self._discovery.done():
            self._facts.cloud = self._discovery.result()
            self._facts.cloud_pending = False
            self._discovery = None
            self._facts.host |= self._gpu_info()
            self._delivery.facts_changed()
        now = self._clock.monotonic()
        if now >= self._leftovers_due_at:
            self._leftovers_due_at = now + _LEFTOVERS_AGAIN_S
            self._leftovers.start(self._delivery.path)

    def _keep_row(self, sample: Sample | None) -> None:
        if sample is None:
            return
        row = encode_sample(sample)
        self._not_counted.append(sample)
        if len(self._not_counted) >= _COUNTED_AT_ONCE:
            self._count_rows()
        if self._output is not None:
            # What is written is what is sent, byte for byte: the row after its way through the wire's form.
            self._output.write(csv_rows([decode_sample(row)]))
        self._delivery.add(row)

    def _count_rows(self) -> None:
        self._statistics.add(self._not_counted)
        self._not_counted.clear()

    def _finish(self) -> Finish:
        exit_code = 0 if self._job is None else self._job.exit_code
        if self._left or (self._job is None and self._root_pid is not None):
            # Nobody but a process' parent learns how it ended.
            exit_code = None
        failed = self._left or bool(exit_code)
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
        wait_s, durable_wait_s = self._waits()
        began = self._clock.monotonic()
        told = False
        if not self._leftovers.has_looked:
            self._leftovers.start(self._delivery.path)
        while not self._delivery.is_over:
            waited_s = self._clock.monotonic() - began
            if waited_s >= (wait_s if self._delivery.is_durable else durable_wait_s):
                break
            self._delivery.wait(_ANSWER_POLL_S)
            if self._delivery.is_hopeless or (self._delivery.is_durable and self._delivery.is_parked):
                break
            if not told and waited_s >= _TELL_TROUBLE_S and self._delivery.trouble:
                told = True
                self._voice.warn(f"not delivered yet, waiting for up to {wait_s:g} s: {self._delivery.trouble}")
            if waited_s >= max(wait_s, NOBODY_WAIT_S) and self._delivery.can_leave():
                break
            if any(received.signum in _STOP for received in self._signals.wait(0)):
                break
        waited_s = self._clock.monotonic() - began
        # What others left is worth a moment where an uploader answers, and none where none does.
        self._leftovers.finish(min(LEFTOVERS_WAIT_S, durable_wait_s - waited_s) if self._delivery.is_durable else 0.0)

    def _waits(self) -> tuple[float, float]:
        """Return for how many seconds to wait for the delivery, and for the uploader to hold everything."""
        wait_s = self._settings["wait"]
        if self._left:
            return 0.0, DURABLE_WAIT_S
        if wait_s is not None:
            return wait_s, max(wait_s, DURABLE_WAIT_S)
        # An agent that cannot start is no reason to keep somebody waiting for it.
        return (0.0, DURABLE_WAIT_S) if self._settings["connect"] else (AGENT_WAIT_S, AGENT_START_S)

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
            is_durable=self._delivery.is_durable,
            undelivered_rows=self._delivery.undelivered_rows,
            finished=self._delivery.finished,
            trouble=self._delivery.trouble,
            is_parked=self._delivery.is_parked,
        )
        if not self._delivery.is_durable and (complaint := self._delivery.agent_complaint()):
            self._voice.error(f"this user's uploader said: {complaint}")
        self._delivery.close(finish, "" if self._output is None else self._output.path_of_all)
        for line in summary_lines(figures, is_remote=self._is_remote):
            self._voice.warn(line)
        if (parked := parked_line(figures, is_remote=self._is_remote)) is not None:
            self._voice.error(parked)
        if self._settings["summary_json"]:
            self._write_summary(self._settings["summary_json"], summary_json(figures))
        self._close_sensors()

    def _write_summary(self, path: str, content: bytes) -> None:
        try:
            make_parent(path)
            with open(path, "wb") as file:
                file.write(content)
        except OSError as error:
            self._voice.error(f"cannot write {path}: {error.strerror}")

    def _leave_to_newer(self) -> int:
        """A newer collector has the run: this one only waits for its job, if it has one."""
        self._voice.error("a newer collector has taken this run over; this one records nothing more")
        self._delivery.close(None)
        self._close_sensors()
        if self._job is None:
            return 1
        return wait_for_job(self._job, self._signals, self._voice)

    def _close_sensors(self) -> None:
        self._sampler.close()
        if self._output is not None:
            self._output.close()

    def _exit_code(self) -> int:
        if self._left:
            return 128 + signal.SIGINT
        if self._job is None:
            return 0
        assert self._job.exit_code is not None
        return self._job.exit_code

    def _begin_discovery(self) -> "CloudDiscovery":
        from sentinel_collector.discovery.cloud.discovery import CloudDiscovery

        discovery = CloudDiscovery(clock=self._clock, share_identity=self._settings["share_identity"])
        discovery.start()
        return discovery

    def _open_delivery(self, addresses: Sequence[Address], environ: Mapping[str, str]) -> Delivery:
        run_key = self._settings["run_key"] or self._derived_run_key()
        agent = None
        if addresses:
            addresses = ranked_addresses(addresses, run_key)
        else:
            from sentinel_collector.delivery.local_uploader import AgentStarter
            from sentinel_protocol.common.local_uploader import local_uploader_paths

            place = local_uploader_paths(environ)
            self._voice.detail(
                f"this user's uploader: {place.socket_path}" + (place.fallback_reason and f" ({place.fallback_reason})")
            )
            addresses = [parse_address(place.url, bind=False)]
            agent = AgentStarter(place, environ=environ, warn=self._voice.warn, started=self._sampler.exclude)
        return Delivery(
            run_key=run_key,
            incarnation=os.urandom(8).hex(),
            addresses=addresses,
            agent=agent,
            state_dir=self._state_dir,
            facts=self._facts,
            clock=self._clock,
            voice=self._voice,
            on_welcome=self._welcomed,
            is_named=bool(self._settings["run_key"]),
            keys=self._keys,
            failover_after_s=self._settings["failover_after"],
        )

    def _open_output(self) -> CsvOutput | None:
        path = self._settings["output"]
        return CsvOutput(path, continued=self._delivery.continued, warn=self._voice.error) if path else None

    def _go_on_after_earlier_rows(self) -> None:
        """Time stamps increase within a run, also where it is continued."""
        if self._delivery.last_row is not None:
            self._sampler.advance_past(decode_sample(self._delivery.last_row).timestamp)
        if self._output is not None:
            self._sampler.advance_past(self._output.last_timestamp)

    def _gpu_info(self) -> dict[str, str | int | float]:
        return {} if self._gpu is None else self._gpu.gpu_info()

    def _derived_run_key(self) -> str:
        return run_key_of_host(self._state_dir) if self._root_pid is None else run_key_of_process(self._root_pid)

    def _welcomed(self, welcome: Welcome) -> None:
        if welcome.last_timestamp:
            self._sampler.advance_past(welcome.last_timestamp)
        if welcome.run_id:
            self._voice.detail(f"run {welcome.run_id}")
        # Whoever runs an uploader for others looks after it; one of this user's own is looked at by nobody.
        if welcome.undelivered_runs and not self._settings["connect"] and not self._told_of_left_behind:
            self._told_of_left_behind = True
            runs = (
                "1 earlier run is" if welcome.undelivered_runs == 1 else f"{welcome.undelivered_runs} earlier runs are"
            )
            self._voice.warn(f"{runs} not delivered yet; `sentinel-uploader status` says why")
