"""The whole collector in a terminal: the job has it to itself."""

import signal
from pathlib import Path

from fakes.process_harness import COLLECTOR, Home, python, rows_of_file, wait_until
from fakes.terminal import Terminal

# Not by print(): a signal that comes while that writes would find it busy.
COUNTS = """
import os, signal, sys, time
def show(text): os.write(1, f"{text}\\n".encode())
def note(signum, frame):
    show(signal.Signals(signum).name)
    if signum == signal.SIGINT and sys.argv[1] == "end": sys.exit(42)
for signum in (signal.SIGINT, signal.SIGWINCH): signal.signal(signum, note)
show(f"ready {sys.stdin.isatty()} {os.tcgetpgrp(0) == os.getpgrp()}")
end = time.monotonic() + 30
while time.monotonic() < end: time.sleep(0.01)
"""


def test_interrupt_reaches_the_job_once_and_its_exit_code_comes_back(home: Home) -> None:
    output = home.directory / "rows.csv"
    words = ["--quiet", "--interval", "0.1", "--output", str(output)]
    with Terminal([COLLECTOR, *words, "--", *python(COUNTS), "end"], home.environ) as terminal:
        terminal.wait_for(b"ready True True")
        terminal.type(b"\x03")
        terminal.wait_for(b"SIGINT")
        assert terminal.wait() == 42
        assert terminal.shown.count(b"SIGINT") == 1
    (run,) = home.local_runs()
    assert (run["status"], run["exit_code"]) == ("failed", 42)
    assert home.local_rows(run) == rows_of_file(output) != []


def test_second_interrupt_ends_the_collector_and_leaves_the_job(home: Home) -> None:
    output = home.directory / "rows.csv"
    words = ["--interval", "0.1", "--output", str(output)]
    # A shell leads the session, as it does for people: its end, not the collector's, would hang up on the job.
    shell = ["sh", "-c", 'trap : INT; "$@"; echo "code=$?"; read line', "sh"]
    with Terminal([*shell, COLLECTOR, *words, "--", *python(COUNTS), "stay"], home.environ) as terminal:
        terminal.wait_for(b"ready")
        # Two interrupts in the collector's first moments are one to the kernel, as long as none was looked at.
        wait_until(lambda: output.exists() and rows_of_file(output), "the collector samples")
        terminal.type(b"\x03")
        terminal.wait_for(b"SIGINT")
        # A second one while the first is pending would be none.
        wait_until(lambda: not _is_pending(signal.SIGINT, _pid_with(home, COLLECTOR)), "the first one is looked at")
        terminal.type(b"\x03")
        terminal.wait_for(f"code={128 + signal.SIGINT}".encode())
        assert f"the job continues (process {_pid_with(home, COUNTS)})".encode() in terminal.shown
        assert _pid_with(home, COUNTS)
    # It ends as soon as the uploader holds everything: the delivery may come later.
    (run,) = wait_until(lambda: [run for run in home.local_runs() if "status" in run], "the run is delivered")
    assert (run["status"], run["exit_code"]) == ("failed", None)


def test_window_change_reaches_the_job_once(home: Home) -> None:
    with Terminal([COLLECTOR, "--quiet", "--", *python(COUNTS), "end"], home.environ) as terminal:
        terminal.wait_for(b"ready")
        terminal.resize(40, 120)
        terminal.wait_for(b"SIGWINCH")
        terminal.type(b"\x03")
        terminal.wait_for(b"SIGINT")
        assert terminal.wait() == 42
        assert terminal.shown.count(b"SIGWINCH") == 1


def _pid_with(home: Home, word: str) -> int | None:
    """Return the process of this home that has the word in its command line, the youngest of them."""
    mark = f"XDG_RUNTIME_DIR={home.runtime}\0".encode()
    found = None
    for entry in Path("/proc").iterdir():
        try:
            if mark in (entry / "environ").read_bytes() and f"\0{word}\0".encode() in (entry / "cmdline").read_bytes():
                # The shell that has the collector's words in its own is older.
                found = max(found or 0, int(entry.name))
        except OSError:
            continue
    return found


def _is_pending(signum: int, pid: int | None) -> bool:
    """Whether the signal waits to be taken (`ShdPnd` of `/proc/PID/status`, proc(5))."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    (pending,) = [int(line.split()[1], 16) for line in lines if line.startswith("ShdPnd:")]
    return bool(pending >> (signum - 1) & 1)
