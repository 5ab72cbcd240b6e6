"""What the user reads at the end of a run, and at the start of one of the whole machine."""

import os
import re
import signal
import time

import pytest
from fakes.process_harness import COLLECTOR, Home, busy, python, wait_until

_END = re.compile(r"sentinel-collector: (run \S+: )?(.*) after [0-9.]+ s")


@pytest.mark.parametrize(
    ("code", "exit_code", "words"),
    [
        ("raise SystemExit(3)", 3, "failed with exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", 137, "killed by SIGKILL (137)"),
        ("import os; os.kill(os.getpid(), 11)", 139, "crashed: SIGSEGV (139)"),
        ("pass", 0, "finished"),
    ],
)
def test_a_job_ends_in_words(home: Home, code: str, exit_code: int, words: str) -> None:
    done = home.collector("--interval", "0.1", "--", *python(code))
    assert (done.returncode, done.stdout) == (exit_code, ""), done.stderr
    lines = done.stderr.splitlines()
    match = next(filter(None, map(_END.fullmatch, lines)))
    assert match[2] == words
    used, delivered, look = lines[-3:]
    assert re.search(r"CPU [0-9.]+ of [0-9]+ cores on average", used)
    assert f" delivered to {home.runs}/" in delivered
    assert "`sentinel-stream report latest --open` shows it" in look
    assert "process-" not in done.stderr


def test_quiet_is_quiet(home: Home) -> None:
    done = home.collector("--quiet", "--interval", "0.1", "--", *busy(0.3, 3))
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")


def test_the_result_is_there_before_the_delivery(home: Home) -> None:
    """Nobody answers at the API: the wait is long, and the result is read at once."""
    env = {"SENTINEL_API_TOKEN": "x", "SENTINEL_API_URL": "http://127.0.0.1:9"}
    log = home.directory / "log"
    began = time.monotonic()
    with log.open("w") as file:
        process = home.start(COLLECTOR, "--wait", "600", "--interval", "0.1", "--", "true", env=env, stderr=file)
    wait_until(lambda: "cores on average" in log.read_text(), "the result")
    assert process.poll() is None, log.read_text()
    assert "finished after " in log.read_text()
    assert time.monotonic() - began < 30
    wait_until(lambda: "not delivered yet, waiting" in log.read_text(), "the uploader has the run")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert "sentinel-uploader show" in log.read_text()


def test_a_recording_of_the_machine_says_so(home: Home) -> None:
    log = home.directory / "log"
    with log.open("w") as file:
        process = home.start(COLLECTOR, "--interval", "0.1", stderr=file)
    line = "sentinel-collector: recording this machine as run "
    wait_until(lambda: log.read_text().startswith(line), "the line")
    assert "; Ctrl-C ends" in log.read_text()
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert "finished after " in log.read_text()
