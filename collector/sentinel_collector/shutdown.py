"""The end of a recording: wait for the delivery, close it, and report."""

import os
from collections.abc import Mapping
from typing import Any

from sentinel_collector.console import Console, Verbosity
from sentinel_collector.delivery.delivery import Delivery
from sentinel_collector.delivery.orphan_recovery import OrphanRecovery
from sentinel_collector.job.mirror import JobMirror
from sentinel_collector.job.signals import STOP_SIGNALS, Signals
from sentinel_collector.reporting.output_target import OutputTargets, RegularFile
from sentinel_collector.reporting.result import result_lines
from sentinel_collector.reporting.summary import (
    SUMMARY_START,
    delivery_lines,
    look_line,
    parked_line,
    refused_token,
    summary_figures,
    summary_json,
)
from sentinel_protocol.common.clock import Clock
from sentinel_protocol.wire.messages import Finish
from sentinel_protocol.wire.run_statistics import RunStatistics

LOCAL_UPLOADER_WAIT_S = 30.0
LOCAL_UPLOADER_START_S = 10.0
"""A local uploader that does not start delays the end no longer than this."""
ACKNOWLEDGE_WAIT_S = 5.0
"""The uploader gets this long to acknowledge everything, even with `--wait 0`."""
UNREACHABLE_WAIT_S = 1.0
"""An uploader that has never answered gets this long: it may be starting."""
ORPHANS_WAIT_S = 5.0
_DELIVERY_POLL_S = 0.02
_DELIVERY_ERROR_AFTER_S = 3.0
"""Delivery errors that pass sooner are not reported."""


def wait_limits(settings: Mapping[str, Any], *, is_detached: bool) -> tuple[float, float]:
    """Return how long to wait for the delivery and for the acknowledgement of everything, in seconds."""
    wait_s = settings["wait"]
    if is_detached:
        return 0.0, ACKNOWLEDGE_WAIT_S
    if wait_s is not None:
        return wait_s, max(wait_s, ACKNOWLEDGE_WAIT_S)
    return (0.0, ACKNOWLEDGE_WAIT_S) if settings["connect"] else (LOCAL_UPLOADER_WAIT_S, LOCAL_UPLOADER_START_S)


def report_result(
    finish: Finish, statistics: RunStatistics, *, run_id: str, host: Mapping[str, Any], console: Console
) -> None:
    """Print how the run ended and what it used."""
    for line in result_lines(finish, statistics, run_id=run_id, host=host):
        console.warn(line)


def await_delivery(
    delivery: Delivery,
    orphans: OrphanRecovery,
    signals: Signals | JobMirror,
    *,
    clock: Clock,
    console: Console,
    wait_s: float,
    acknowledge_wait_s: float,
) -> None:
    """Wait until the run is delivered, a limit has passed, waiting is of no use, or a stop signal comes."""
    began = clock.monotonic()
    error_logged = False
    if not orphans.has_scanned:
        orphans.start(delivery.path)
    while not delivery.is_over:
        waited_s = clock.monotonic() - began
        if waited_s >= (wait_s if delivery.is_acknowledged else acknowledge_wait_s):
            break
        delivery.wait(_DELIVERY_POLL_S)
        if delivery.cannot_start_uploader or (delivery.is_acknowledged and delivery.client.is_parked):
            break
        error = delivery.client.delivery_error
        if waited_s >= UNREACHABLE_WAIT_S and delivery.is_acknowledged and refused_token(error) is not None:
            # Waiting is of no use.
            break
        if not error_logged and waited_s >= _DELIVERY_ERROR_AFTER_S and error:
            error_logged = True
            console.warn(f"not delivered yet, waiting for up to {wait_s:g} s: {error}")
        if waited_s >= max(wait_s, UNREACHABLE_WAIT_S) and delivery.can_exit_early():
            break
        if any(received.signum in STOP_SIGNALS for received in signals.wait(0)):
            break
    waited_s = clock.monotonic() - began
    # Orphans get some seconds where an uploader answers, and none where it does not.
    orphans.finish(min(ORPHANS_WAIT_S, acknowledge_wait_s - waited_s) if delivery.is_acknowledged else 0.0)


def close_delivery(
    delivery: Delivery,
    finish: Finish,
    statistics: RunStatistics,
    *,
    console: Console,
    complete_path: str,
    targets: OutputTargets,
    summary_path: str | None,
    is_remote: bool,
) -> None:
    """Close the delivery and print where the samples are.

    `complete_path` is a CSV file that has all rows, if there is one. With `summary_path` the summary is written there.
    """
    figures = summary_figures(
        run_key=delivery.run_key,
        run_id=delivery.client.run_id,
        status=finish.status,
        exit_code=finish.exit_code,
        statistics=statistics,
        peak_memory_mib=finish.peak_memory_mib,
        accounting=finish.accounting,
        is_acknowledged=delivery.is_acknowledged,
        undelivered_rows=delivery.undelivered_rows,
        finished=delivery.client.finished,
        delivery_error=delivery.client.delivery_error,
        is_parked=delivery.client.is_parked,
    )
    if not delivery.is_acknowledged and (line := delivery.last_uploader_log_line()):
        console.error(f"last log line of this user's uploader: {line}")
    delivery.close(finish, complete_path)
    for line in delivery_lines(figures, is_remote=is_remote, environ=os.environ):
        console.warn(line)
    if console.verbosity >= Verbosity.NORMAL and (look := look_line(figures, is_remote=is_remote)) is not None:
        console.warn(look)
    if (parked := parked_line(figures, is_remote=is_remote)) is not None:
        console.error(parked)
    if summary_path:
        _write_summary(summary_path, summary_json(figures), targets, console)


def _write_summary(path: str, content: bytes, targets: OutputTargets, console: Console) -> None:
    try:
        target = targets.open(path, replaces=SUMMARY_START)
        try:
            if isinstance(target, RegularFile):
                target.truncate(0)
            target.write(content)
        finally:
            target.close()
    except OSError as error:
        console.error(f"cannot write {path}: {error.strerror}")
