"""The user's own CSV file: header, whole lines, and trouble told once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from locations import TESTS
from rows import row

from sentinel_collector.reporting.csv_output import CsvOutput
from sentinel_collector.reporting.output_target import OutputTargets
from sentinel_protocol.wire.sample import CSV_HEADER, csv_rows, decode_sample


def line(number: int) -> bytes:
    return csv_rows([decode_sample(row(number))])


def opened(path: Path, warnings: list[str], *, continued: bool = False) -> CsvOutput:
    return CsvOutput(
        str(path), targets=OutputTargets([str(path)], started_at=0), continued=continued, warn=warnings.append
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.csv"


@pytest.mark.parametrize("before", [b"", b"other,header\n1,2\n", CSV_HEADER + b"old\n"])
def test_a_file_is_replaced(path: Path, before: bytes) -> None:
    path.write_bytes(before)
    warnings: list[str] = []
    output = opened(path, warnings)
    output.write(line(1))
    # Line by line: whoever looks sees it now.
    assert path.read_bytes() == CSV_HEADER + line(1)
    output.close()
    output.close()
    assert not warnings


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        (b"", CSV_HEADER),
        (CSV_HEADER[:10], CSV_HEADER),
        (CSV_HEADER, CSV_HEADER),
        (CSV_HEADER + line(1), CSV_HEADER + line(1)),
        (CSV_HEADER + line(1) + line(2)[:-1], CSV_HEADER + line(1)),
        (CSV_HEADER + line(1) * 300 + b"x" * 9000, CSV_HEADER + line(1) * 300),
        (b"something else\n", CSV_HEADER),
    ],
)
def test_a_continued_file_goes_on_behind_its_last_whole_line(path: Path, before: bytes, kept: bytes) -> None:
    path.write_bytes(before)
    output = opened(path, [], continued=True)
    has_rows = len(kept) > len(CSV_HEADER)
    assert output.last_timestamp == (decode_sample(row(1)).timestamp if has_rows else 0.0)
    output.write(line(7))
    output.close()
    assert path.read_bytes() == kept + line(7)


@pytest.mark.parametrize("last", [b"text\n", b"nan" + b"," * 31 + b"\n", b"-1" + b"," * 31 + b"\n", b"," * 31 + b"\n"])
def test_a_continued_file_whose_end_is_no_row_of_ours_says_nothing_about_the_time(path: Path, last: bytes) -> None:
    path.write_bytes(CSV_HEADER + last)
    output = opened(path, [], continued=True)
    output.close()
    assert output.last_timestamp == 0.0


def test_a_full_disk_is_told_once_and_leaves_whole_lines(path: Path) -> None:
    script = (
        "import resource, sys\nfrom sentinel_collector.reporting.csv_output import CsvOutput\n"
        "from sentinel_collector.reporting.output_target import OutputTargets\n"
        "from sentinel_protocol.wire.sample import csv_rows, decode_sample\nfrom rows import row\n"
        # Not before: a limit on every file would cut the compiled modules that the imports write.
        "limit = int(sys.argv[2])\nresource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
        "output = CsvOutput(sys.argv[1], targets=OutputTargets([], started_at=0), continued=False, warn=print)\n"
        "for number in range(100): output.write(csv_rows([decode_sample(row(number))]))\n"
        "output.close()\n"
    )
    limit = len(CSV_HEADER) + 2 * len(line(50)) + 20
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), str(limit)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(TESTS)},
    )
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.count("cannot write") == 1
    content = path.read_bytes()
    assert content.startswith(CSV_HEADER)
    assert content.endswith(b"\n")
    assert content.count(b"\n") == 3


def test_a_file_that_another_run_writes_is_left_alone_until_that_has_ended(path: Path) -> None:
    warnings: list[str] = []
    first = opened(path, warnings)
    first.write(line(1))
    for continued in (False, True):
        second = opened(path, warnings, continued=continued)
        second.write(line(2))
        assert second.last_timestamp == 0.0
        second.close()
    first.write(line(3))
    assert path.read_bytes() == CSV_HEADER + line(1) + line(3)
    assert [f"cannot write {path}: another run is writing it" in text for text in warnings] == [True, True]
    first.close()
    third = opened(path, [], continued=True)
    third.write(line(4))
    third.close()
    assert path.read_bytes() == CSV_HEADER + line(1) + line(3) + line(4)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("mode", ["w", "a"])
def test_a_file_that_a_standard_stream_goes_to_is_appended_to_with_it(path: Path, stream: str, mode: str) -> None:
    script = (
        "import sys\nfrom sentinel_collector.reporting.csv_output import CsvOutput\n"
        "from sentinel_collector.reporting.output_target import OutputTargets\n"
        "from sentinel_protocol.wire.sample import csv_rows, decode_sample\n"
        "from rows import row\n"
        "stream = getattr(sys, sys.argv[1])\n"
        "print('before', file=stream, flush=True)\n"
        "path = f'/dev/{sys.argv[1]}'\n"
        "targets = OutputTargets([path], started_at=0)\n"
        "output = CsvOutput(path, targets=targets, continued=False, warn=lambda text: sys.exit(text))\n"
        "for number in (1, 2):\n"
        "    output.write(csv_rows([decode_sample(row(number))]))\n"
        "    print('between', number, file=stream, flush=True)\n"
        "output.close()\n"
    )
    path.write_bytes(b"earlier\n")
    with open(path, mode) as file:
        subprocess.run(
            [sys.executable, "-c", script, stream],
            check=True,
            env=os.environ | {"PYTHONPATH": str(TESTS)},
            stdout=file if stream == "stdout" else None,
            stderr=file if stream == "stderr" else None,
        )
    expected = b"before\n" + CSV_HEADER + line(1) + b"between 1\n" + line(2) + b"between 2\n"
    assert path.read_bytes() == (b"earlier\n" if mode == "a" else b"") + expected


def test_directories_of_a_file_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "out.csv"
    opened(path, []).close()
    assert path.read_bytes() == CSV_HEADER


def test_what_cannot_be_opened_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "x", Path("/dev/full")):
        warnings: list[str] = []
        output = opened(path, warnings)
        output.write(line(1))
        output.write(line(2))
        output.close()
        assert [str(path) in text for text in warnings] == [True]


def test_a_pipe_gets_the_same_lines_and_nobody_waits_for_its_reader(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    warnings: list[str] = []
    output = opened(fifo, warnings, continued=True)
    output.write(line(1))
    assert os.read(reader, 1 << 16) == CSV_HEADER + line(1)
    for number in range(10_000):
        output.write(line(number))
    assert len(warnings) == 1
    output.close()
    os.close(reader)
