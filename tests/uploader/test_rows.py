"""`sentinel-uploader rows`: what is not delivered, read from a spool that somebody else owns."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fakes.process_harness import COLLECTOR, UPLOADER, Home, wait_until
from fakes.scripted_backend import failing
from fakes.uploader_harness import UploaderHarness, delivery, frame, hello, row_numbers

from sentinel_protocol.common.errors import UsageError
from sentinel_protocol.wire.sample import CSV_HEADER
from sentinel_uploader.admin.rows_reader import UndeliveredRows, read_undelivered


@pytest.fixture
def up(tmp_path: Path) -> Iterator[UploaderHarness]:
    with delivery(tmp_path / "spool") as made:
        yield made


def read(tmp_path: Path, **how: int) -> UndeliveredRows:
    (found,) = read_undelivered(str(tmp_path / "spool"), [1], **how)
    return found


def numbers(found: UndeliveredRows) -> list[int]:
    assert found.csv.startswith(CSV_HEADER)
    listed = row_numbers(found.csv.removeprefix(CSV_HEADER))
    assert len(listed) == found.rows
    return listed


def test_rows_of_sealed_batches_and_of_frames_are_there_until_they_are_delivered(
    up: UploaderHarness, tmp_path: Path
) -> None:
    run = up.begin(rows=5)
    up.settle()
    assert numbers(read(tmp_path)) == [1, 2, 3, 4, 5]
    up.store.always["put"] = failing(500)
    up.advance(61.0)
    up.add(run, 3)
    up.add(run, 2)
    found = read(tmp_path)
    assert (numbers(found), found.last_seq, found.objects) == (list(range(1, 11)), 10, [])
    for after in range(12):
        assert numbers(read(tmp_path, after=after)) == list(range(after + 1, 11))
    for newest in range(12):
        assert numbers(read(tmp_path, newest=newest)) == list(range(max(1, 11 - newest), 11))
    assert numbers(read(tmp_path, after=3, newest=6)) == [5, 6, 7, 8, 9, 10]
    del up.store.always["put"]
    up.advance(300.0)
    found = read(tmp_path)
    assert (numbers(found), found.last_seq) == ([], 10)
    assert found.objects[-1].endswith("/0002.csv.gz")


def test_no_row_is_left_out_where_numbers_are_missing(up: UploaderHarness, tmp_path: Path) -> None:
    run = up.begin(rows=3)
    up.settle()
    up.spool.open_run(hello(first_available_seq=11), owner="")
    up.spool.append([frame(run, 11, 14)], [])
    assert numbers(read(tmp_path)) == [1, 2, 3, 11, 12, 13, 14]
    assert numbers(read(tmp_path, after=12)) == [13, 14]
    up.store.always["put"] = failing(500)
    up.advance(61.0)
    assert numbers(read(tmp_path, after=12))[-2:] == [13, 14]


def test_damaged_rows_are_told_in_one_line(up: UploaderHarness, tmp_path: Path) -> None:
    up.begin(rows=3)
    with closing(sqlite3.connect(tmp_path / "spool" / "spool.db")) as connection, connection:
        connection.execute("UPDATE frames SET payload = x'00'")
    with pytest.raises(UsageError, match="cannot read rows of run"):
        read(tmp_path)


def test_rows_are_read_beside_a_running_uploader(home: Home) -> None:
    spool = str(home.directory / "spool")
    home.start_uploader("--upload-interval", "3600")
    words = ["--connect", home.address, "--interval", "0.1", "--run-key", "live", "--", "sleep", "600"]
    job = home.start(COLLECTOR, *words)

    def rows(*more: str) -> tuple[list[str], int]:
        done = home.run(UPLOADER, "rows", "live", "--spool", spool, *more)
        if done.returncode:
            assert "there is no run 'live'" in done.stderr or "no spool" in done.stderr, done.stderr
            return [], 0
        lines = done.stdout.splitlines(keepends=True)
        assert lines[0].encode() == CSV_HEADER
        return lines[1:], int(done.stderr.partition("--after ")[2].split()[0])

    seen, last = wait_until(lambda: (found := rows())[0] and found, "there are rows")
    assert len(seen) == last
    later, newest = wait_until(lambda: (found := rows("--after", str(last)))[0] and found, "there are more rows")
    assert len(later) == newest - last
    assert rows()[0][:newest] == seen + later
    done = home.run(UPLOADER, "rows", "--json", "--newest", "2", "--spool", spool)
    (entry,) = json.loads(done.stdout)
    assert (entry["key"], entry["rows"], entry["objects"]) == ("live", 2, [])
    job.terminate()
    job.communicate(timeout=60)


@pytest.mark.parametrize(
    ("words", "text"),
    [(["rows"], "name a RUN"), (["rows", "x", "--after", "-1"], "--after"), (["rows", "x"], "there is no run 'x'")],
)
def test_wrong_use_is_told(home: Home, words: list[str], text: str) -> None:
    done = home.run(UPLOADER, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert text in done.stderr
