"""`sentinel-collector`: starts the job first, then everything else.

Modules that the start of the job does not need are imported after it.
"""

from __future__ import annotations

import os
import signal
import sys

from sentinel_collector.console import Console, Verbosity
from sentinel_collector.job.process import Job, JobStartError
from sentinel_collector.job.signals import Signals
from sentinel_collector.job.waiter import wait_for
from sentinel_collector.sensors import baseline as baseline_sensor
from sentinel_collector.sensors.cgroup.accounting import RunCgroupScope
from sentinel_collector.sensors.cgroup.container_view import detect_container
from sentinel_collector.sensors.cgroup.run_cgroup import remove_orphaned_cgroups
from sentinel_collector.settings import SETTINGS, pre_start_settings
from sentinel_collector.uploader_options import check_local_uploader_config, uploader_addresses
from sentinel_protocol import __version__
from sentinel_protocol.common.clock import SystemClock
from sentinel_protocol.common.errors import UsageError
from sentinel_protocol.common.settings.sources import (
    SettingsFile,
    build_parser,
    merge_file,
    parse_flags_and_env,
)

TYPE_CHECKING = False  # `typing` itself would cost milliseconds of the job's start
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Any

    from sentinel_collector.job.recorder_process import RecorderStart
    from sentinel_collector.sensors.cgroup.container_view import ContainerView

_DESCRIPTION = "Records what a command, a running process or the host uses, and delivers it."
_STANDARD_DESCRIPTORS = (0, 1, 2)
_PID_DIGITS = 9


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: the job's own, else 0 done, 1 failed, 2 wrong use."""
    _reserve_standard_descriptors()
    console = Console(Verbosity.NORMAL)
    arguments = list(sys.argv[1:] if argv is None else argv)
    separator = arguments.index("--") if "--" in arguments else len(arguments)
    command = arguments[separator + 1 :]
    parser = make_parser()
    try:
        args, others = parser.parse_known_args(arguments[:separator])
    except SystemExit as ended:
        return _flush_stdout(int(str(ended.code)), console)
    try:
        if others and not others[0].startswith("-"):
            raise UsageError(_missing_separator_message(arguments, arguments.index(others[0])))
        if others:
            parser.error(f"unrecognized arguments: {' '.join(others)}")
        if separator < len(arguments) and not command:
            raise UsageError("there is no command after --")
        given = parse_flags_and_env(SETTINGS, args, os.environ)
        if command and "pid" in given:
            raise UsageError("--pid cannot be combined with a command")
        file = None if args.config is None else SettingsFile(args.config)
        return _record_command(command, given, file, console) if command else _record_running(given, file)
    except UsageError as error:
        console.error(str(error))
        return 2


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of what stands before `--`."""
    parser = build_parser(SETTINGS, "sentinel-collector", _DESCRIPTION)
    parser.usage = "sentinel-collector [options] [-- COMMAND [ARG]...]"
    parser.add_argument("--version", action="version", version=f"sentinel-collector {__version__}")
    return parser


def _record_command(command: list[str], given: dict[str, Any], file: SettingsFile | None, console: Console) -> int:
    early = pre_start_settings(
        given, file, "accounting", "scope", "host_root", "insecure", "server_key", "key", "output", "summary_json"
    )
    # Wrong use is reported before the job starts.
    uploader_addresses({**given, **{name: early[name] for name in ("insecure", "server_key", "key")}})
    check_local_uploader_config(given, file, os.environ)
    clock = SystemClock()
    host_root = early["host_root"] or ""
    baseline = baseline_sensor.Baseline(clock, host_root=host_root)
    container = detect_container(early["scope"], os.environ, records_host=bool(host_root))

    def record(start: RecorderStart) -> int:
        from sentinel_collector.run_job import record_in_child

        return record_in_child(
            start,
            command,
            given=given,
            file=file,
            clock=clock,
            baseline=baseline,
            accounting=accounting,
            container=container,
        )

    with RunCgroupScope(early["accounting"]) as accounting:
        if not hasattr(signal, "sigwaitinfo"):
            return _record_in_parent(command, given, file, clock, baseline, accounting, container)
        try:
            return wait_for(
                lambda signals: accounting.spawn_inside(lambda: Job.spawn(command, os.environ, signals)),
                record=record,
                written_paths=(early["output"], early["summary_json"]),
                clock=clock,
                console=console,
            )
        except JobStartError as error:
            if error.lacks_process:
                # Without us the job would not need a process more: become the job.
                raise
            console.error(str(error))
            return error.exit_code


def _record_in_parent(
    command: list[str],
    given: dict[str, Any],
    file: SettingsFile | None,
    clock: SystemClock,
    baseline: baseline_sensor.Baseline,
    accounting: RunCgroupScope,
    container: ContainerView | None,
) -> int:
    """Record without a waiter, where the system has no `sigwaitinfo` (macOS)."""
    with Signals() as signals:
        try:
            job = Job.spawn(command, os.environ, signals)
        except JobStartError as error:
            Console(Verbosity.NORMAL).error(str(error))
            return error.exit_code
        from sentinel_collector.run_job import record_job

        return record_job(
            job,
            command,
            given=given,
            file=file,
            clock=clock,
            signals=signals,
            baseline=baseline,
            accounting=accounting,
            container=container,
        )


def _record_running(given: dict[str, Any], file: SettingsFile | None) -> int:
    from sentinel_collector.deferred_imports import import_session
    from sentinel_collector.run_job import console_for

    settings = merge_file(SETTINGS, given, file)
    addresses = uploader_addresses(settings)
    check_local_uploader_config(settings, None, os.environ)
    root_pid = _parse_pid(settings["pid"]) if settings["pid"] else None
    remove_orphaned_cgroups()
    host_root = settings["host_root"] or ""
    clock = SystemClock()
    console = console_for(settings)
    if settings["accounting"] == "cgroup":
        console.warn("a running process cannot be put into a cgroup: CPU time is read from /proc")
    with Signals() as signals:
        session = import_session()(
            settings=settings,
            addresses=addresses,
            environ=os.environ,
            clock=clock,
            console=console,
            signals=signals,
            baseline=baseline_sensor.Baseline(clock, host_root=host_root),
            job=None,
            argv=[],
            root_pid=root_pid,
            accounting=None,
            container=detect_container(settings["scope"], os.environ, records_host=bool(host_root)),
        )
        return session.run()


def _flush_stdout(code: int, console: Console) -> int:
    """Flush the output of `--help` or `--version`, which argparse leaves in the buffer; return the exit code."""
    try:
        # `None` when it is closed: then argparse has printed to stderr.
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        # Otherwise the interpreter flushes once more at exit, and prints a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if not isinstance(error, BrokenPipeError):
            console.error(f"cannot write the output: {error.strerror}")
        return 1
    return code


def _reserve_standard_descriptors() -> None:
    """Open /dev/null in place of closed standard streams, so that no file of ours gets their numbers.

    The job still finds them closed.
    """
    for fd in _STANDARD_DESCRIPTORS:
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


def _missing_separator_message(arguments: list[str], index: int) -> str:
    """Return the error for a command without `--`, with the command line that was probably meant."""
    import shlex

    meant = shlex.join(["sentinel-collector", *arguments[:index], "--", *arguments[index:]])
    return f"unexpected {arguments[index]!r}; the command goes after --: {meant}"


def _parse_pid(text: str) -> int:
    """Return the process to record; raises `UsageError` when there is no such process."""
    import psutil

    if not text.isascii() or not text.isdecimal() or not text.strip("0"):
        raise UsageError(f"--pid: {text!r}: must be a process id")
    # Linux pids have seven digits at most; os.kill raises OverflowError beyond 31 bits.
    if len(text) > _PID_DIGITS or not psutil.pid_exists(int(text)):
        raise UsageError(f"--pid: there is no process {text[:20]}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
