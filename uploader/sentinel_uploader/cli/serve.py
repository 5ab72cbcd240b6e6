"""`sentinel-uploader serve`, the default command."""

import argparse
import signal
import threading
from collections.abc import Mapping
from typing import Any

from sentinel_protocol.common.clock import Clock, SystemClock
from sentinel_uploader.app.factory import make_backend, service_config
from sentinel_uploader.app.service import Service
from sentinel_uploader.cli.command import Command, read_settings
from sentinel_uploader.telemetry.logging_setup import set_up_logging
from sentinel_uploader.telemetry.sd_notify import SystemdNotifier


def open_service(
    values: Mapping[str, Any], environ: Mapping[str, str], clock: Clock, *, listen: bool = True
) -> Service:
    """Set up logging and return a service that stops on SIGTERM and SIGINT; raises `SentinelStreamError`."""
    set_up_logging(values["log_format"], verbose=values["verbose"])
    target = make_backend(values, environ, clock)
    config = service_config(values, environ, target, listen=listen)
    service = Service(config, target=target, clock=clock, notifier=SystemdNotifier(environ, clock=clock))
    _stop_on_signals(service)
    return service


def _run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    open_service(read_settings(args, environ), environ, SystemClock()).run()
    return 0


def _stop_on_signals(service: Service) -> None:
    """Wait for signals in a thread: a signal handler would run with the main thread's locks held."""
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    def wait() -> None:
        while True:
            signal.sigwait(signals)
            service.stop()

    threading.Thread(target=wait, name="signals", daemon=True).start()


SERVE = Command("listen, store and deliver until stopped", _run)
