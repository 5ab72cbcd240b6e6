"""`--output` and `--summary-json`: each target works or the user is told; nothing blocks, nothing is destroyed."""

import json
import os
import pty
import socket
import subprocess
from pathlib import Path
from typing import IO, Any

import pytest
from fakes.process_harness import COLLECTOR, Home

from sentinel_collector.reporting.output_target import OutputTargets, RegularFile, Stream
from sentinel_protocol.wire.sample import CSV_HEADER

JOB = ("sh", "-c", "for i in 1 2 3; do echo result $i; sleep 0.05; done; exit 7")
RESULTS = ["result 1", "result 2", "result 3"]
OPTIONS = ("--output", "--summary-json")


def wrapped(home: Home, *words: str, job: tuple[str, ...] = JOB, **options: Any) -> subprocess.CompletedProcess[str]:
    home.start_uploader("--exit-when-idle", "30")
    done = home.collector(
        "--connect", home.address, "--wait", "0", "--interval", "0.1", "--quiet", *words, "--", *job, **options
    )
    assert done.returncode == 7, done.stderr
    return done


def check_content(option: str, text: str) -> None:
    """All rows, or the figures, between the job's own lines."""
    assert [line for line in text.splitlines() if line.startswith("result")] == RESULTS
    rest = "".join(line for line in text.splitlines(keepends=True) if not line.startswith(("result", "earlier")))
    if option == "--output":
        header, *rows = rest.splitlines(keepends=True)
        assert header.encode() == CSV_HEADER
        assert rows
        assert all(row.count(",") == header.count(",") for row in rows)
    else:
        assert json.loads(rest)["exit_code"] == 7


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_that_is_a_pipe_gets_both(home: Home, option: str, name: str) -> None:
    check_content(option, wrapped(home, option, name).stdout)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("mode", ["w", "a"])
@pytest.mark.parametrize("name", ["-", "itself", "link"])
def test_the_file_of_the_jobs_output_gets_both(home: Home, option: str, mode: str, name: str) -> None:
    log = home.directory / "log"
    log.write_text("earlier\n", encoding="utf-8")
    (home.directory / "link").symlink_to(log)
    target = {"-": "-", "itself": str(log), "link": str(home.directory / "link")}[name]
    with open(log, mode, encoding="utf-8") as file:
        wrapped(home, option, target, stdout=file)
    text = log.read_text(encoding="utf-8")
    assert text.startswith("earlier\n") == (mode == "a")
    check_content(option, text)


@pytest.mark.parametrize("option", OPTIONS)
def test_a_file_that_the_job_inherited_as_another_descriptor_gets_both(home: Home, option: str) -> None:
    log = home.directory / "log"
    job = ("sh", "-c", f"exec >&3; {JOB[2]}")
    with open(log, "wb") as file:
        options = {"pass_fds": (3,), "preexec_fn": lambda: os.dup2(file.fileno(), 3, inheritable=True)}
        wrapped(home, option, str(log), job=job, **options)
    check_content(option, log.read_text(encoding="utf-8"))


@pytest.mark.parametrize("option", OPTIONS)
def test_a_terminal_gets_both(home: Home, option: str) -> None:
    primary, secondary = pty.openpty()
    wrapped(home, option, os.ttyname(secondary), stdout=secondary)
    os.close(secondary)
    text = b""
    with open(primary, "rb", buffering=0) as terminal:
        try:
            while part := terminal.read(1 << 16):
                text += part
        except OSError:
            pass
    check_content(option, text.decode().replace("\r\n", "\n"))


@pytest.mark.parametrize("option", OPTIONS)
def test_a_fifo_with_a_reader_gets_it(home: Home, option: str) -> None:
    fifo = home.directory / "fifo"
    os.mkfifo(fifo)
    reader = subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE, text=True)
    done = wrapped(home, option, str(fifo))
    text, _ = reader.communicate(timeout=20)
    assert done.stderr == ""
    check_content(option, done.stdout + text)


def unwritable(home: Home, kind: str) -> str:
    directory = home.directory
    if kind == "fifo without a reader":
        os.mkfifo(directory / "fifo")
        return str(directory / "fifo")
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("/proc/self/cwd/socket" if os.getcwd() == str(directory) else str(directory / "s"))
        return str(directory / "s")
    return {
        "full": "/dev/full",
        "directory": str(directory),
        "below a file": "/etc/passwd/x",
        "closed descriptor": "/dev/fd/77",
        "in the root directory": "/no-such-directory-of-ours/a/b",
        "the jobs input": str(directory / "input"),
        "nowhere": "/proc/nowhere",
    }[kind]


KINDS = (
    "fifo without a reader",
    "socket",
    "full",
    "directory",
    "below a file",
    "closed descriptor",
    "in the root directory",
    "the jobs input",
    "nowhere",
)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_place_that_cannot_be_written_is_told_once(home: Home, option: str, kind: str) -> None:
    (home.directory / "input").write_text("precious\n", encoding="utf-8")
    before = os.listdir("/")
    path = unwritable(home, kind)
    with open(home.directory / "input", "rb") as stdin:
        done = wrapped(home, option, path, stdin=stdin)
    assert done.stderr.count(f"cannot write {path}: ") == 1, done.stderr
    assert done.stdout.split("\n")[:-1] == RESULTS
    assert (home.directory / "input").read_text(encoding="utf-8") == "precious\n"
    assert os.listdir("/") == before


def test_both_options_share_standard_output(home: Home) -> None:
    text = wrapped(home, "--output", "-", "--summary-json", "-").stdout
    rows = [line for line in text.splitlines(keepends=True) if line.count(",") > 20]
    assert rows[0].encode() == CSV_HEADER
    assert json.loads(text[text.index("{\n") :])["rows"] == len(rows) - 1


def test_a_file_that_the_job_writes_is_not_replaced_by_the_summary(home: Home) -> None:
    path = home.directory / "result.json"
    done = wrapped(home, "--summary-json", str(path), job=("sh", "-c", f"echo precious >{path}; exit 7"))
    assert path.read_text(encoding="utf-8") == "precious\n"
    assert "it was written while the job ran" in done.stderr


def test_a_file_that_the_job_opens_later_is_written_no_more(home: Home) -> None:
    path = home.directory / "rows.csv"
    done = wrapped(
        home, "--output", str(path), job=("sh", "-c", f"sleep 0.5; echo precious >{path}; sleep 0.5; exit 7")
    )
    assert path.read_text(encoding="utf-8") == "precious\n"
    assert "another process has changed it" in done.stderr


def test_an_earlier_summary_is_replaced(home: Home) -> None:
    path = home.directory / "summary.json"
    path.write_text("x" * 100_000, encoding="utf-8")
    wrapped(home, "--summary-json", str(path))
    assert json.loads(path.read_text(encoding="utf-8"))["exit_code"] == 7


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_a_closed_standard_output_is_told(home: Home, option: str, name: str) -> None:
    home.start_uploader("--exit-when-idle", "30")
    words = (COLLECTOR, "--connect", home.address, "--quiet", option, name, "--", "sh", "-c", "exit 7")
    done = home.run("sh", "-c", 'exec >&-; exec "$@"', "sh", *words)
    assert (done.returncode, done.stdout) == (7, "")
    assert f"cannot write {name}: it is closed" in done.stderr


def test_the_flags_of_a_shared_pipe_are_left_alone() -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)  # noqa: FBT003 -- it takes no keyword
    name = f"/dev/fd/{writer}"
    target = OutputTargets([name], started_at=0).open(name)
    assert os.get_blocking(writer)
    assert isinstance(target, Stream)
    lines = b"".join(b"%d\n" % number for number in range(30_000))
    # More than the pipe holds: the rest waits for the reader.
    target.write(lines)
    os.close(writer)
    got = b""
    while len(got) < len(lines):
        got += os.read(reader, 1 << 16)
        target.write(b"")
    assert got == lines
    target.write(b"last\n" * 10_000)
    with pytest.raises(BlockingIOError, match="too slow"):
        target.write(b"x" * (1 << 20))
    target.close()
    os.close(reader)


def test_a_socket_of_the_jobs_gets_it() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.set_inheritable(True)
        name = f"/dev/fd/{theirs.fileno()}"
        target = OutputTargets([name], started_at=0).open(name)
        target.write(b"line\n")
        assert ours.recv(100) == b"line\n"
        assert theirs.getblocking()
        target.close()


def test_a_regular_file_is_left_whole_when_its_disk_is_full(tmp_path: Path) -> None:
    file = OutputTargets([], started_at=0).open(str(tmp_path / "f"))
    assert isinstance(file, RegularFile)
    file.truncate(0)
    file.write(b"whole\n")
    stream: IO[bytes]
    with open(tmp_path / "f", "ab") as stream:
        stream.write(b"another's\n")
    with pytest.raises(OSError, match="another process"):
        file.write(b"more\n")
    file.close()
    assert (tmp_path / "f").read_bytes() == b"whole\nanother's\n"
