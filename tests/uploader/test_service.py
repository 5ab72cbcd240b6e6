"""The uploader as a process: how it ends, and that it loses nothing by it."""

import contextlib
import io
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from fakes.backend import TOKEN, Backend
from fakes.process_harness import UPLOADER, Home, wait_until
from fakes.raw_collector import Collectors, RawCollector
from fakes.uploader_harness import finish, hello, row_numbers, samples

from sentinel_protocol.wire.messages import Ack, Finished, Ping, Reject, Welcome
from sentinel_uploader.admin.status_reader import read_status
from sentinel_uploader.app.service import SHUTDOWN_DRAIN_S
from sentinel_uploader.cli.main import main
from sentinel_uploader.delivery.csv_batch import decompress_rows

STOP_LIMIT_S = 20.0
"""Eight seconds of delivering, and what a loaded machine may take beside; a stop that hangs takes for ever."""


def delivered_rows(backend: Backend) -> list[int]:
    """Row numbers that `finish` of the only run names."""
    return row_numbers("\n".join(backend.rows(backend.only_run())).encode())


def greet(collector: RawCollector, **more: Any) -> Welcome:
    collector.say(hello(**more))
    return collector.hear_until(Welcome)


def send(collector: RawCollector, first: int, last: int) -> None:
    collector.say(samples(first, last))
    while collector.hear_until(Ack).seq < last:
        pass


def stop(process: "subprocess.Popen[str]", *signals: int) -> float:
    """Send the signals and wait for the end; returns how long that took."""
    began = time.monotonic()
    for signum in signals or (signal.SIGTERM,):
        process.send_signal(signum)
    process.wait(60)
    return time.monotonic() - began


def log_of(home: Home) -> str:
    text = (home.directory / "uploader.log").read_text(encoding="utf-8")
    assert "Traceback" not in text, text
    return text


def runs_of(home: Home) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = read_status(str(home.directory / "spool"))["runs"]
    return runs


def states(home: Home) -> list[str]:
    return [run["state"] for run in runs_of(home)]


def stored_rows(home: Home) -> int:
    return sum(run["rows_waiting"] for run in runs_of(home))


def test_termination_delivers_the_open_rows_and_tells_the_rest_next_time(
    home: Home, backend: Backend, collectors: Collectors
) -> None:
    first, second = collectors.connect(), collectors.connect()
    uploader = home.start_uploader(env=backend.environ)
    greet(first)
    send(first, 1, 20)
    assert stop(uploader) < STOP_LIMIT_S
    assert uploader.returncode == 0
    assert [row_numbers(decompress_rows(body)) for body in backend.s3.objects().values()] == [list(range(1, 21))]

    home.start_uploader(env=backend.environ)
    assert greet(second).next_seq == 21
    second.say(samples(21, 22), finish(22))
    assert second.hear_until(Finished).rows == 22
    assert delivered_rows(backend) == list(range(1, 23))
    log_of(home)


def test_end_of_a_job_that_is_told_to_stop_at_the_same_moment_is_still_delivered(
    home: Home, backend: Backend, collector: RawCollector
) -> None:
    uploader = home.start_uploader(env=backend.environ)
    greet(collector)
    send(collector, 1, 5)
    uploader.send_signal(signal.SIGTERM)
    collector.say(samples(6, 6), finish(6, 143, "failed"))
    assert collector.hear_until(Finished).rows == 6
    uploader.wait(60)
    assert uploader.returncode == 0
    (run,) = backend.api.runs.values()
    assert run.finish is not None
    assert run.finish["exit_code"] == 143
    assert delivered_rows(backend) == list(range(1, 7))


def test_termination_while_storage_hangs_ends_in_time_and_loses_nothing(
    home: Home, backend: Backend, collectors: Collectors
) -> None:
    collector, later = collectors.connect(), collectors.connect()
    hang = backend.s3.faults.add("put", hang=True)
    uploader = home.start_uploader("--upload-interval", "0.2", env=backend.environ)
    greet(collector)
    send(collector, 1, 10)
    wait_until(lambda: hang.fired, "storage hangs")
    send(collector, 11, 15)
    assert SHUTDOWN_DRAIN_S <= 8.0
    assert stop(uploader) < STOP_LIMIT_S
    assert uploader.returncode == 0
    assert "rows_left=5 objects_left=1" in log_of(home).splitlines()[-1]
    hang.lift()
    assert stored_rows(home) == 15

    home.start_uploader("--upload-interval", "0.2", env=backend.environ)
    assert greet(later).next_seq == 16
    later.say(finish(15))
    later.hear_until(Finished)
    assert delivered_rows(backend) == list(range(1, 16))


def test_second_signal_skips_the_delivery(home: Home, backend: Backend, collector: RawCollector) -> None:
    hang = backend.s3.faults.add("put", hang=True)
    uploader = home.start_uploader("--upload-interval", "0.2", env=backend.environ)
    greet(collector)
    send(collector, 1, 10)
    wait_until(lambda: hang.fired, "storage hangs")
    uploader.send_signal(signal.SIGTERM)
    wait_until(lambda: "stopping" in log_of(home), "the first signal is noticed")
    uploader.send_signal(signal.SIGINT)
    uploader.wait(60)
    assert uploader.returncode == 0
    assert stored_rows(home) == 10


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_heeded_whatever_the_main_thread_does(home: Home, signum: int) -> None:
    uploader = home.start_uploader()
    for _ in range(20):
        states(home)
    stop(uploader, signum)
    assert uploader.returncode == 0
    assert not (home.runtime / "u.sock").exists()


def test_stopped_for_longer_than_the_stale_limit_it_closes_no_run_whose_collector_is_alive(
    home: Home, collector: RawCollector
) -> None:
    uploader = home.start_uploader("--stale-after", "1")
    greet(collector, interval_s=0.1)
    send(collector, 1, 3)
    uploader.send_signal(signal.SIGSTOP)
    time.sleep(4.5)
    collector.say(Ping())
    uploader.send_signal(signal.SIGCONT)
    send(collector, 4, 5)
    assert "collector is silent" not in log_of(home)
    assert collector.hear_until(Reject).code == "closed"
    assert "collector is silent" in log_of(home)


def test_idle_uploader_leaves_some_time_after_its_last_delivery(home: Home, collector: RawCollector) -> None:
    uploader = home.start_uploader("--exit-when-idle", "1")
    greet(collector)
    send(collector, 1, 3)
    collector.say(finish(3))
    assert collector.hear_until(Finished).rows == 3
    uploader.wait(60)
    assert uploader.returncode == 0
    assert stored_rows(home) == 0


def test_uploader_with_an_open_run_is_not_idle(home: Home, collector: RawCollector) -> None:
    uploader = home.start_uploader("--exit-when-idle", "0.2")
    greet(collector)
    send(collector, 1, 3)
    with pytest.raises(subprocess.TimeoutExpired):
        uploader.wait(1.0)


def ask(home: Home, *words: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    command, *rest = words
    return home.run(UPLOADER, command, "--spool", str(home.directory / "spool"), *rest, **options)


def ask_here(home: Home, *words: str) -> "subprocess.CompletedProcess[str]":
    """The same without a process of its own, which takes most of the time."""
    command, *rest = words
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([command, "--spool", str(home.directory / "spool"), *rest])
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def test_drain_delivers_what_is_there_and_ends_the_uploader_though_collectors_go_on(
    home: Home, backend: Backend, collector: RawCollector
) -> None:
    uploader = home.start_uploader(env=backend.environ)
    greet(collector)
    send(collector, 1, 10)
    done = ask(home, "drain", "--timeout", "30", env=backend.environ)
    assert (done.returncode, done.stdout) == (0, "everything is delivered\n"), done.stderr
    assert uploader.wait(60) == 0
    assert [row_numbers(decompress_rows(body)) for body in backend.s3.objects().values()] == [list(range(1, 11))]


def test_drain_without_an_uploader_delivers_by_itself(home: Home, backend: Backend, collector: RawCollector) -> None:
    away = backend.api.faults.add("register", status=503)
    uploader = home.start_uploader(env=backend.environ)
    greet(collector)
    send(collector, 1, 4)
    collector.say(finish(4))
    assert collector.hear_until(Ack).finish
    wait_until(lambda: away.fired, "the API is away")
    uploader.kill()
    uploader.wait()

    done = ask(home, "drain", "--timeout", "1", env=backend.environ)
    assert done.returncode == 1, done.stderr
    assert "left to deliver: 1" in done.stdout
    away.lift()
    done = ask(home, "drain", env=backend.environ)
    assert (done.returncode, done.stdout) == (0, "everything is delivered\n"), done.stderr
    assert delivered_rows(backend) == [1, 2, 3, 4]


@pytest.mark.parametrize("running", [True, False], ids=["uploader running", "no uploader"])
def test_parked_run_is_retried_and_discarded_on_request(
    home: Home, backend: Backend, collector: RawCollector, running: bool
) -> None:
    gone = backend.api.faults.add("finish", status=404)
    uploader = home.start_uploader(env=backend.environ)
    greet(collector)
    send(collector, 1, 4)
    collector.say(finish(4))
    wait_until(lambda: states(home) == ["parked"], "the run is parked")
    if not running:
        uploader.kill()
        uploader.wait()

    shown = json.loads(ask_here(home, "show", "run", "--json").stdout)
    assert shown["rows_waiting"] + shown["rows_delivered"] == 4
    assert "404" in shown["last_error"]
    refused = ask_here(home, "show", "nobody")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "no run 'nobody'" in refused.stderr

    retried = ask_here(home, "retry", "run")
    assert retried.returncode == 0, retried.stderr
    if running:
        wait_until(lambda: gone.fired == 2, "it is tried again")
        wait_until(lambda: states(home) == ["parked"], "the run is parked again")
    else:
        again = ask_here(home, "retry", "run")
        assert again.returncode == 1
        assert "not parked" in again.stderr
    discarded = ask(home, "discard", "run")
    assert discarded.returncode == 0, discarded.stderr
    assert [(run["state"], run["rows_waiting"]) for run in runs_of(home)] == [("discarded", 0)]
    over = ask_here(home, "discard", "run")
    assert over.returncode == 1
    assert over.stderr == "sentinel-uploader: the run is over\n"
    if running:
        assert collector.hear_until(Reject).code == "closed"
        log_of(home)


def test_socket_and_lock_of_a_killed_uploader_are_no_hindrance(home: Home, collectors: Collectors) -> None:
    uploader = home.start_uploader()
    greet(first := collectors.connect())
    send(first, 1, 3)
    uploader.kill()
    uploader.wait()
    assert (home.runtime / "u.sock").exists()
    home.start_uploader()
    assert greet(collectors.connect()).next_seq == 4


def test_full_target_disk_is_waited_for(home: Home, collector: RawCollector) -> None:
    runs = home.directory / "runs"
    home.start_uploader("--target", str(runs), "--upload-interval", "0.2")
    greet(collector)
    (run_directory,) = wait_until(lambda: runs.exists() and list(runs.iterdir()), "the run is registered")
    wait_until((run_directory / "run.json").exists, "the run is described")
    # What stands in the way of the object's name stops everybody, root included.
    (run_directory / "0001.csv.gz").mkdir()
    send(collector, 1, 3)
    wait_until(lambda: "cannot write" in runs_of(home)[0]["last_error"], "status says so")
    (run_directory / "0001.csv.gz").rmdir()
    collector.say(finish(3))
    assert collector.hear_until(Finished).rows == 3


def test_token_is_nowhere_but_in_the_environment(home: Home, backend: Backend, collector: RawCollector) -> None:
    uploader = home.start_uploader("-v", "--upload-interval", "0.2", env=backend.environ)
    refused = backend.api.faults.add("finish", status=422, body=f"no, Bearer {TOKEN}".encode(), times=1)
    greet(collector)
    send(collector, 1, 3)
    wait_until(backend.s3.objects, "an object")
    assert TOKEN.encode() not in Path(f"/proc/{uploader.pid}/cmdline").read_bytes()
    collector.say(finish(3))
    wait_until(lambda: refused.fired, "finish is refused")
    wait_until(lambda: states(home) == ["parked"], "the run is parked")
    (run,) = backend.api.runs.values()
    secrets = [TOKEN, *(issued.secret_key for issued in run.credentials)]
    texts = [log_of(home), ask_here(home, "status").stdout, ask_here(home, "show", "run").stdout]
    files = [path for path in (home.directory / "spool").iterdir() if path.is_file()]
    for secret in secrets:
        assert not [text for text in texts if secret in text]
        assert not [path for path in files if secret.encode() in path.read_bytes()]
    assert os.stat(home.directory / "spool").st_mode & 0o777 == 0o700
