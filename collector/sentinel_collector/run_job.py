"""Recording of a job that runs already: an error from here on is a line on stderr and does not affect the job.

`record_in_child` is the recorder's process. `record_job` does the same in the job's parent, on systems without what
the waiter needs.
"""

import contextlib
import os
from collections.abc import Mapping
from typing import Any

from sentinel_collector.console import Console, Verbosity
from sentinel_collector.deferred_imports import import_session
from sentinel_collector.job.mirror import JobMirror
from sentinel_collector.job.process import Job
from sentinel_collector.job.recorder_process import GIVE_UP, RecorderStart
from sentinel_collector.job.signals import Signals
from sentinel_collector.job.wait import wait_for_job
from sentinel_collector.run_key import run_key_of_process
from sentinel_collector.sensors.baseline import Baseline, continued_baseline
from sentinel_collector.sensors.cgroup.accounting import RunCgroupScope
from sentinel_collector.sensors.cgroup.container_view import ContainerView
from sentinel_collector.uploader_options import settings_for_started_job
from sentinel_protocol.common.clock import Clock
from sentinel_protocol.common.errors import SentinelStreamError
from sentinel_protocol.common.settings.sources import SettingsFile


def record_job(
    job: Job,
    argv: list[str],
    *,
    given: dict[str, Any],
    file: SettingsFile | None,
    clock: Clock,
    signals: Signals,
    baseline: Baseline,
    accounting: RunCgroupScope,
    container: ContainerView | None,
) -> int:
    """Record the job until it ends and return its exit code."""
    console = console_for(given)
    try:
        settings, addresses, errors = settings_for_started_job(given, file)
        console = console_for(settings)
        for error in errors:
            console.error(f"{error}; continuing without it")
        accounting.report(console)
        session = import_session()(
            settings=settings,
            addresses=addresses,
            environ=os.environ,
            clock=clock,
            console=console,
            signals=signals,
            baseline=baseline,
            job=job,
            argv=argv,
            root_pid=job.pid,
            accounting=accounting.counter,
            container=container,
        )
        return session.run()
    except SentinelStreamError as error:
        console.error(f"{error}; the job continues, but is not recorded")
    except Exception as error:  # noqa: BLE001 -- a defect here must not cost the job its signals and its exit code
        console.error(f"unexpected {type(error).__name__}: {error}; the job continues, but is no longer recorded")
        _show_traceback(console)
    return job.exit_code if job.exit_code is not None else wait_for_job(job, signals, console)


def record_in_child(
    start: RecorderStart,
    argv: list[str],
    *,
    given: dict[str, Any],
    file: SettingsFile | None,
    clock: Clock,
    baseline: Baseline,
    accounting: RunCgroupScope,
    container: ContainerView | None,
) -> int:
    """Record the waiter's job until it ends; return the exit code of this process."""
    console = console_for(given)
    try:
        _disable_core_files()
        mirror = _open_mirror(start, clock)
        settings, addresses, errors = settings_for_started_job(given, file)
        console = console_for(settings)
        if start.restarts:
            baseline = continued_baseline(baseline, clock, host_root=settings["host_root"] or "")
            if accounting.counter is not None:
                # What earlier recorders have seen, and what nobody has.
                accounting.counter.growth_us()
        else:
            for error in errors:
                console.error(f"{error}; continuing without it")
            accounting.report(console)
        session = import_session()(
            settings=settings,
            addresses=addresses,
            environ=os.environ,
            clock=clock,
            console=console,
            signals=mirror,
            baseline=baseline,
            job=mirror,
            is_continued=start.restarts > 0,
            argv=argv,
            root_pid=start.job_pid,
            accounting=accounting.counter,
            container=container,
            excluded=start.excluded,
        )
        mirror.announce_ready()
        code = session.run()
        mirror.announce_done()
        if mirror.is_waiter_gone:
            accounting.close()
    except SentinelStreamError as error:
        console.error(f"{error}; the job continues, but is not recorded")
        return GIVE_UP
    except Exception as error:  # noqa: BLE001 -- the waiter starts another recorder
        if not start.is_silent:
            console.error(f"unexpected {type(error).__name__}: {error}")
            _show_traceback(console)
        return 1
    return code


def _open_mirror(start: RecorderStart, clock: Clock) -> JobMirror:
    mirror = JobMirror(start, clock=clock)
    if not mirror.run_key:
        mirror.announce_run_key(run_key_of_process(start.job_pid))
    if start.pause_s:
        mirror.pause(start.pause_s)
    return mirror


def _show_traceback(console: Console) -> None:
    import traceback

    for line in traceback.format_exc().splitlines():
        console.debug(line)


def _disable_core_files() -> None:
    """A core file of ours would be in the job's directory."""
    import resource

    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def console_for(settings: Mapping[str, Any]) -> Console:
    """Return a console with the verbosity of the settings."""
    if settings.get("quiet"):
        return Console(Verbosity.QUIET)
    return Console(Verbosity.VERBOSE if settings.get("verbose") else Verbosity.NORMAL)
