"""How a run may end, one way a test: real processes, and then rows are counted.

Ctrl-C is in test_terminal.py, an uploader that is told to end while storage hangs in test_service.py, what a power cut
leaves in test_spool_faults.py.
"""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from fakes.backend import Backend
from fakes.process_harness import (
    COLLECTOR,
    DEADLINE_S,
    Home,
    has_state,
    job_of,
    kill_collector,
    python,
    recorder_of,
    rows_of_file,
    wait_until,
)
from fakes.recorded_job import RecordedJob

from sentinel_protocol.wire.sample import COLUMNS
from sentinel_uploader.admin.status_reader import read_status

TOLD = """
import os, signal, sys, time
def note(signum, frame):
    with open(sys.argv[1], "a") as log: print(signal.Signals(signum).name, file=log)
signal.signal(signal.SIGTERM, note)
open(sys.argv[1], "a").close()
while not os.path.exists(sys.argv[2]): time.sleep(0.01)
raise SystemExit(int(sys.argv[3]))
"""
"""A job that notes each SIGTERM in a file and goes on, until another file is there; its last word is the exit code."""
LEAVES = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
open(sys.argv[1], "a").close()
while True: time.sleep(0.01)
"""


def stored(home: Home) -> int:
    if not (home.directory / "spool" / "spool.db").exists():
        return 0
    runs = read_status(str(home.directory / "spool"))["runs"]
    return sum(run["rows_waiting"] + run["rows_delivered"] for run in runs)


def test_collector_that_is_killed_and_never_comes_back_has_its_run_closed_as_failed_without_an_exit_code(
    home: Home, backend: Backend
) -> None:
    home.start_uploader("--stale-after", "1", env=backend.environ)
    output = home.directory / "rows.csv"
    words = ("--connect", home.address, "--interval", "0.1", "--output", str(output))
    collector = home.start(COLLECTOR, *words, "--", *python("import time; time.sleep(60)"))
    wait_until(lambda: backend.api.runs and stored(home) > 3, "rows arrive")
    kill_collector(collector)
    assert collector.wait() == -signal.SIGKILL
    acknowledged = stored(home)
    run = backend.only_run()
    wait_until(lambda: run.finish is not None, "the run is closed")

    assert run.finish["run_status"] == "failed"
    assert "exit_code" not in run.finish
    rows, written = backend.rows(run), rows_of_file(output)
    assert len(rows) >= acknowledged
    assert rows == written[: len(rows)]
    (shown,) = home.status("--spool", str(home.directory / "spool"))
    assert (shown["state"], shown["closed_as_stale"], shown["rows_waiting"]) == ("failed", True, 0)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_job_that_is_killed_by_a_signal_ends_its_run_as_failed_with_128_and_the_signal(
    home: Home, signum: signal.Signals
) -> None:
    output = home.directory / "rows.csv"
    job = python(f"import os, time; time.sleep(0.5); os.kill(os.getpid(), {int(signum)})")
    done = home.collector("--quiet", "--interval", "0.1", "--output", str(output), "--", *job)

    assert done.returncode == 128 + signum
    (run,) = home.local_runs()
    assert (run["state"], run["status"], run["exit_code"]) == ("finished", "failed", 128 + signum)
    assert home.local_rows(run) == rows_of_file(output) != []


def test_end_of_a_job_is_seen_at_once_and_all_rows_are_summed(home: Home) -> None:
    home.start_uploader()
    summary = home.directory / "summary.json"
    recording = RecordedJob(home, "--summary-json", str(summary))
    recording.wait_for_rows(65)
    before = len(recording.rows())
    recording.end()
    after = len(recording.rows())
    assert before <= after <= before + 20
    assert json.loads(summary.read_bytes())["rows"] == after


def test_job_that_ends_while_its_collector_is_stopped_has_one_row_more_and_none_without_memory(home: Home) -> None:
    home.start_uploader()
    recording = RecordedJob(home)
    recording.wait_for_rows(5)
    collector = recording.process
    job = job_of(collector.pid)
    both = [recorder_of(collector.pid), collector.pid]
    for pid in both:
        os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: all(has_state(pid, "T") for pid in both), "the collector is stopped")
    before = len(recording.rows())
    stopped_at = time.monotonic()
    recording.let_job_end()
    wait_until(lambda: has_state(job, "Z"), "the job is over")
    wait_until(lambda: time.monotonic() - stopped_at > 0.3, "a sample is due")
    for pid in both:
        os.kill(pid, signal.SIGCONT)
    recording.end()

    rows = [dict(zip(COLUMNS, row.split(","), strict=True)) for row in recording.rows()]
    assert len(rows) <= before + 1
    assert all(float(row["process_memory_mib"]) > 0 for row in rows)


def test_job_that_ignores_termination_is_recorded_until_its_own_end(home: Home, tmp_path: Path) -> None:
    home.start_uploader()
    output, heard, go = home.directory / "rows.csv", tmp_path / "heard", tmp_path / "go"
    words = ("--connect", home.address, "--interval", "0.1", "--output", str(output), "--wait", "50")
    collector = home.start(COLLECTOR, *words, "--", *python(TOLD), str(heard), str(go), "3")
    wait_until(heard.exists, "the job is ready")
    collector.send_signal(signal.SIGTERM)
    wait_until(lambda: heard.read_text() == "SIGTERM\n", "the job hears of it")
    # The job may hear of it before the recorder has imported what it needs.
    wait_until(lambda: output.exists() and output.stat().st_size, "rows are taken")
    before = wait_until(lambda: output.exists() and len(rows_of_file(output)), "rows are written")
    wait_until(lambda: len(rows_of_file(output)) > before + 3, "it is recorded all the same")
    collector.send_signal(signal.SIGTERM)
    wait_until(lambda: heard.read_text() == "SIGTERM\n" * 2, "the job hears of the second one, too")
    assert collector.poll() is None
    go.touch()
    collector.communicate(timeout=DEADLINE_S)

    assert collector.returncode == 3
    (run,) = home.local_runs()
    assert (run["status"], run["exit_code"]) == ("failed", 3)
    assert home.local_rows(run) == rows_of_file(output)


def test_termination_of_everything_at_once_loses_neither_rows_nor_the_end(home: Home, backend: Backend) -> None:
    """As `docker stop` of a whole project does; what could not be said any more is said after the next start."""
    uploader = home.start_uploader(env=backend.environ)
    output, ready = home.directory / "rows.csv", home.directory / "ready"
    words = ("--connect", home.address, "--interval", "0.1")
    collector = home.start(
        COLLECTOR, *words, "--run-key", "stopped", "--output", str(output), "--", *python(LEAVES), str(ready)
    )
    wait_until(lambda: ready.exists() and stored(home) > 3, "rows arrive")
    job = job_of(collector.pid)
    for pid in (uploader.pid, job, collector.pid):  # the job before the collector, which may end it and reap it
        os.kill(pid, signal.SIGTERM)
    _, said = collector.communicate(timeout=DEADLINE_S)
    assert (collector.returncode, uploader.wait(DEADLINE_S)) == (7, 0), said
    assert "stopping" in (home.directory / "uploader.log").read_text(encoding="utf-8")

    home.start_uploader(env=backend.environ)
    assert home.collector(*words, "--wait", "50", "--", "true").returncode == 0
    run = backend.api.runs["run-1"]
    wait_until(lambda: run.finish is not None, "the end is said")
    assert run.finish is not None
    assert (run.finish["run_status"], run.finish["exit_code"]) == ("failed", 7)
    assert backend.rows(run) == rows_of_file(output)
    assert list((home.state / "collector").glob("*.rows")) == []
