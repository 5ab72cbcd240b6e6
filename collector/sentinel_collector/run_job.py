"""Tracking a job that runs already: whatever goes wrong from here on is a line on stderr and no affair of the job's."""

import os
from collections.abc import Mapping
from typing import Any

from sentinel_collector.console import Level, Voice
from sentinel_collector.deferred_imports import load_session
from sentinel_collector.job.process import Job
from sentinel_collector.job.signals import Signals
from sentinel_collector.job.wait import wait_for_job
from sentinel_collector.sensors.baseline import Baseline
from sentinel_collector.sensors.cgroup.accounting import RunCgroupScope
from sentinel_collector.sensors.cgroup.container_view import ContainerView
from sentinel_collector.settings import settings_of_running_job
from sentinel_protocol.common.clock import Clock
from sentinel_protocol.common.errors import SentinelStreamError
from sentinel_protocol.common.settings.sources import SettingsFile


def track_job(
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
    voice = voice_of(given)
    try:
        settings, addresses, errors = settings_of_running_job(given, file)
        voice = voice_of(settings)
        for error in errors:
            voice.error(f"{error}; going on without it")
        accounting.report(voice)
        session = load_session()(
            settings=settings,
            addresses=addresses,
            environ=os.environ,
            clock=clock,
            voice=voice,
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
    except SentinelStreamError as trouble:
        voice.error(f"{trouble}; the job goes on and is not recorded")
    except Exception as error:  # noqa: BLE001 -- a defect here must not cost the job its signals and its exit code
        import traceback

        voice.error(f"unexpected {type(error).__name__}: {error}; the job goes on and is not recorded any more")
        for line in traceback.format_exc().splitlines():
            voice.detail(line)
    return job.exit_code if job.exit_code is not None else wait_for_job(job, signals, voice)


def voice_of(settings: Mapping[str, Any]) -> Voice:
    """Return how much is said."""
    if settings.get("quiet"):
        return Voice(Level.QUIET)
    return Voice(Level.VERBOSE if settings.get("verbose") else Level.NORMAL)
