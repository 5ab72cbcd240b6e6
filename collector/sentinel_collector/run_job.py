"""Recording of a job that runs already: an error from here on is a line on stderr and does not affect the job."""

import os
from collections.abc import Mapping
from typing import Any

from sentinel_collector.console import Console, Verbosity
from sentinel_collector.deferred_imports import import_session
from sentinel_collector.job.process import Job
from sentinel_collector.job.signals import Signals
from sentinel_collector.job.wait import wait_for_job
from sentinel_collector.sensors.baseline import Baseline
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
    adopts_orphans: bool,
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
            adopts_orphans=adopts_orphans,
            accounting=accounting.counter,
            container=container,
        )
        return session.run()
    except SentinelStreamError as error:
        console.error(f"{error}; the job continues, but is not recorded")
    except Exception as error:  # noqa: BLE001 -- a defect here must not cost the job its signals and its exit code
        import traceback

        console.error(f"unexpected {type(error).__name__}: {error}; the job continues, but is no longer recorded")
        for line in traceback.format_exc().splitlines():
            console.debug(line)
    return job.exit_code if job.exit_code is not None else wait_for_job(job, signals, console)


def console_for(settings: Mapping[str, Any]) -> Console:
    """Return a console with the verbosity of the settings."""
    if settings.get("quiet"):
        return Console(Verbosity.QUIET)
    return Console(Verbosity.VERBOSE if settings.get("verbose") else Verbosity.NORMAL)
