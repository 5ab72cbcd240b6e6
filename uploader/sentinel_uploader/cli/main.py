"""`sentinel-uploader`: serve, and what people ask of it."""

import argparse
import functools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from sentinel_protocol import __version__
from sentinel_protocol.common.clock import Clock, SystemClock
from sentinel_protocol.common.core_dumps import keep_memory_out_of_core_files
from sentinel_protocol.common.errors import SentinelStreamError, UsageError
from sentinel_protocol.common.local_uploader import spool_dirs, spools_home
from sentinel_protocol.common.settings.sources import (
    SettingsFile,
    build_parser,
    check_flags_and_environment,
    merge_file,
    nearest,
    resolve,
)
from sentinel_uploader.admin.client import ask, ask_to_drain
from sentinel_uploader.admin.status import (
    NoSpoolError,
    describe_run,
    has_something_left,
    matches,
    read_status,
    status_text,
)
from sentinel_uploader.app.service import Service
from sentinel_uploader.app.settings import (
    FIND_SPOOL,
    LOG_FORMAT,
    SETTINGS,
    TARGET,
    VERBOSE,
    open_target,
    service_config,
    spool_dir,
)
from sentinel_uploader.cli.console import complain, discard_output, write_output
from sentinel_uploader.cli.keys import run_keys
from sentinel_uploader.spool.control_channel import DISCARD, RETRY
from sentinel_uploader.spool.lock import lock_owner_pid
from sentinel_uploader.telemetry.logging_setup import set_up_logging
from sentinel_uploader.telemetry.sd_notify import Notifier

_DESCRIPTION = """Takes samples from collectors, makes them durable and delivers them.

commands (the default is serve):
  serve           listen, store, deliver
  status          every run: state, rows waiting, objects, next try and last error
  show RUN        everything about one run
  drain           deliver what is there, then end
  retry RUN       take up a parked run again
  discard RUN     give a run up and delete its undelivered rows
  doctor          check spool, disk, token, API, storage and clock, and say what to do
  keys …          init, add NAME, list, revoke NAME: who may come in over a network
`sentinel-uploader COMMAND --help` says more."""


class _Spools(NamedTuple):
    """What an inspecting command is about: the spool that was named, or all of this user's own."""

    directories: list[str]
    is_named: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    keep_memory_out_of_core_files()
    try:
        code = _run(words)
        # Whatever argparse has printed is written at the end of the process, where nobody catches anything.
        write_output("", required=False)
    except UsageError as error:
        return complain(error, 2)
    except SentinelStreamError as error:
        return complain(error, 1)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        discard_output()
        return 1
    return code


def _run(words: list[str]) -> int:
    command = _default if not words or words[0].startswith("-") else _command(words.pop(0))
    try:
        return command(words, os.environ)
    except SystemExit as ended:
        # What argparse ends with: `--help`, `--version`, a flag that it does not know.
        return int(str(ended.code))


def _command(word: str) -> Callable[[list[str], Mapping[str, str]], int]:
    if word not in _COMMANDS:
        raise UsageError(f"there is no command {word!r}{nearest(word, _COMMANDS)}; see `sentinel-uploader --help`")
    return _COMMANDS[word]


def _default(words: list[str], environ: Mapping[str, str]) -> int:
    parser = build_parser(SETTINGS, "sentinel-uploader", _DESCRIPTION)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--version", action="version", version=f"sentinel-uploader {__version__}")
    return _serve_as(parser, words, environ)


def _serve(words: list[str], environ: Mapping[str, str]) -> int:
    parser = build_parser(SETTINGS, "sentinel-uploader serve", "Listen, store, deliver, until told to stop.")
    return _serve_as(parser, words, environ)


def _serve_as(parser: argparse.ArgumentParser, words: list[str], environ: Mapping[str, str]) -> int:
    args = parser.parse_args(words)
    values = resolve(SETTINGS, args, environ, args.config)
    service = _open_service(values, environ, SystemClock())
    _stop_on_signals(service)
    service.run()
    return 0


def _drain(words: list[str], environ: Mapping[str, str]) -> int:
    parser = build_parser(SETTINGS, "sentinel-uploader drain", "Deliver what is there, then end; 1 if rows are left.")
    parser.add_argument("--timeout", metavar="SECONDS", type=_seconds, default=300.0, help="default 300")
    args = parser.parse_args(words)
    values = resolve(SETTINGS, args, environ, args.config)
    clock = SystemClock()
    directory = spool_dir(values, environ)
    if lock_owner_pid(directory) is not None:
        ask_to_drain(directory, args.timeout, clock=clock)
    else:
        service = _open_service(values, environ, clock, listen=False)
        _stop_on_signals(service)
        service.drain(args.timeout)
        service.run()
    left = sum(1 for run in read_status(directory)["runs"] if has_something_left(run))
    write_output(f"runs with something left to deliver: {left}\n")
    return 1 if left else 0


def _status(words: list[str], environ: Mapping[str, str]) -> int:
    args, spools = _inspect(words, environ, "status", "Every run: state, rows, objects, next try and last error.")
    statuses, without = _statuses(spools)
    for error in without:
        complain(error, 0)
    if args.json:
        write_output(_json(statuses))
    elif not statuses:
        write_output(f"no spool in {spools_home(environ)}; --spool DIR or --config FILE names one elsewhere\n")
    else:
        write_output(status_text(statuses, now=SystemClock().now()))
    return 0


def _show(words: list[str], environ: Mapping[str, str]) -> int:
    args, spools = _inspect(words, environ, "show", "Everything about one run.", run=True)
    _, run = _find_run(spools, args.run)
    write_output(_json(run) if args.json else describe_run(run))
    return 0


def _change(kind: str, description: str, words: list[str], environ: Mapping[str, str]) -> int:
    args, spools = _inspect(words, environ, kind, description, run=True)
    directory, run = _find_run(spools, args.run)
    ask(directory, kind, run["number"], clock=SystemClock())
    write_output(f"{kind}: {run['run_id'] or run['key']} done\n")
    return 0


def _doctor(words: list[str], environ: Mapping[str, str]) -> int:
    from sentinel_uploader.doctor.findings import exit_code, report
    from sentinel_uploader.doctor.run import examine

    description = "Check what the uploader needs, one line a finding; 1 if something does not work."
    parser = build_parser(SETTINGS, "sentinel-uploader doctor", description)
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--put", action="store_true", help="also register, store and finish one empty run")
    args = parser.parse_args(words)
    values = resolve(SETTINGS, args, environ, args.config)
    found = []
    for finding in examine(values, environ, clock=SystemClock(), put=args.put):
        found.append(finding)
        if not args.json:
            write_output(report([finding]))
    if args.json:
        write_output(_json(msgspec.to_builtins(found)))
    return exit_code(found)


def _inspect(
    words: list[str], environ: Mapping[str, str], command: str, description: str, *, run: bool = False
) -> tuple[argparse.Namespace, _Spools]:
    """Parse an inspecting command's words and return them with the spools that it is about."""
    parser = build_parser((FIND_SPOOL,), f"sentinel-uploader {command}", description)
    parser.add_argument("--json", action="store_true", help="for programs")
    if run:
        parser.add_argument("run", metavar="RUN", help="run id (its beginning will do) or run key")
    args = parser.parse_args(words)
    given = check_flags_and_environment((FIND_SPOOL, TARGET), args, environ)
    file = None if args.config is None else SettingsFile(args.config)
    values = merge_file(SETTINGS, given, file)
    # With a file it is the one spool that an uploader with that file has.
    if values["spool"] or args.config:
        return args, _Spools([spool_dir(values, environ)], is_named=True)
    return args, _Spools(spool_dirs(environ), is_named=False)


def _statuses(spools: _Spools) -> tuple[list[dict[str, Any]], list[NoSpoolError]]:
    """Return what the spools say, and why some say nothing: of this user's own, one does not keep the others back."""
    statuses, without = [], []
    for directory in spools.directories:
        try:
            statuses.append(read_status(directory))
        except NoSpoolError as error:
            if spools.is_named:
                raise
            without.append(error)
    return statuses, without


def _find_run(spools: _Spools, name: str) -> tuple[str, dict[str, Any]]:
    statuses, _ = _statuses(spools)
    found = [(status["spool"], run) for status in statuses for run in status["runs"] if matches(run, name)]
    if not found:
        where = ", ".join(spools.directories) or "any spool of this user's"
        raise UsageError(f"there is no run {name!r} in {where}; `sentinel-uploader status` lists them")
    if len(found) > 1:
        raise UsageError(f"{name!r} is the beginning of {len(found)} runs; write more of it")
    return found[0]


def _open_service(
    values: Mapping[str, Any], environ: Mapping[str, str], clock: Clock, *, listen: bool = True
) -> Service:
    set_up_logging(values[LOG_FORMAT.name], verbose=values[VERBOSE.name])
    target = open_target(values, environ, clock)
    config = service_config(values, environ, target, listen=listen)
    return Service(config, target=target, clock=clock, notifier=Notifier(environ, clock=clock))


def _stop_on_signals(service: Service) -> None:
    """Let a thread of its own wait for the signals: a handler would run with the main thread's locks held."""
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    def wait() -> None:
        while True:
            signal.sigwait(signals)
            service.stop()

    threading.Thread(target=wait, name="signals", daemon=True).start()


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 86_400 * 365:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0")
    return value


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


_COMMANDS: dict[str, Callable[[list[str], Mapping[str, str]], int]] = {
    "serve": _serve,
    "status": _status,
    "show": _show,
    "drain": _drain,
    "retry": functools.partial(_change, RETRY, "Take up a parked run again."),
    "doctor": _doctor,
    "discard": functools.partial(_change, DISCARD, "Give a run up and delete its undelivered rows."),
    "keys": run_keys,
}

if __name__ == "__main__":
    sys.exit(main())
