"""The load generator: its count of rows tells what is wrong, and a small crowd is counted right."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from locations import ROOT

from benchmarks.load.conversation import RESEND_TIMEOUT_S, WINDOW_ROWS, Conversation
from benchmarks.load.latency import Latencies
from benchmarks.load.rows import Count, RowCounter, RowMaker, count_local_runs, row_id
from sentinel_protocol.wire.messages import (
    Ack,
    CollectorMessage,
    Finish,
    Hello,
    Reject,
    RejectCode,
    Samples,
    UploaderMessage,
    Welcome,
    decode_from_collector,
    encode,
)
from sentinel_protocol.wire.sample import COLUMNS, CSV_HEADER, csv_rows


def csv_of(collector: int, first: int, last: int) -> bytes:
    """An object's text, made as the uploader makes it from what was sent."""
    message = decode_from_collector(RowMaker(1).message(collector, first, last, began_at=1.7e9, interval_s=1.0))
    assert isinstance(message, Samples)
    assert message.first_seq == first
    return CSV_HEADER + csv_rows(message.samples)


def counted(*objects: bytes, last_seqs: dict[int, int]) -> Count:
    counter = RowCounter(last_seqs)
    for csv in objects:
        counter.add_object(csv)
    return counter.count()


def test_a_row_carries_its_id_and_all_columns() -> None:
    lines = csv_of(9_999, 3, 4).splitlines()
    assert [int(line.split(b",")[1]) for line in lines[1:]] == [row_id(9_999, 3), row_id(9_999, 4)]
    assert all(len([field for field in line.split(b",") if field]) == len(COLUMNS) for line in lines)


def test_each_row_once_is_exact() -> None:
    found = counted(csv_of(1, 1, 3), csv_of(1, 4, 5), csv_of(2, 1, 1), last_seqs={1: 5, 2: 1, 3: 0})
    assert found == Count(objects=3, rows=6, missing=0, repeated=0, unknown=0, unfinished=0)
    assert found.is_exact


@pytest.mark.parametrize(
    ("objects", "wrong"),
    [
        ([(1, 1, 3)], "missing"),
        ([(1, 1, 4), (1, 4, 5)], "repeated"),
        ([(1, 1, 5), (1, 6, 6)], "unknown"),
        ([(1, 1, 5), (4, 1, 1)], "unknown"),
    ],
)
def test_a_wrong_row_is_counted(objects: Sequence[tuple[int, int, int]], wrong: str) -> None:
    found = counted(*(csv_of(*one) for one in objects), last_seqs={1: 5})
    assert not found.is_exact
    assert {name for name in ("missing", "repeated", "unknown") if getattr(found, name)} == {wrong}


def write_run(directory: Path, *, state: str = "finished", objects: Sequence[str], files: Sequence[str]) -> None:
    directory.mkdir()
    (directory / "run.json").write_text(json.dumps({"state": state, "objects": objects}))
    for number, name in enumerate(files):
        (directory / name).write_bytes(gzip.compress(csv_of(1, 1 + 2 * number, 2 + 2 * number)))


@pytest.mark.parametrize(
    ("state", "objects", "wrong"),
    [
        ("finished", ["0001.csv.gz", "0002.csv.gz"], set()),
        ("running", ["0001.csv.gz", "0002.csv.gz"], {"unfinished"}),
        ("finished", ["0001.csv.gz", "0002.csv.gz", "0003.csv.gz"], {"unfinished"}),
        ("finished", ["0001.csv.gz"], {"unknown", "missing"}),
    ],
)
def test_a_run_and_its_files_have_to_agree(tmp_path: Path, state: str, objects: Sequence[str], wrong: set[str]) -> None:
    write_run(tmp_path / "run", state=state, objects=objects, files=["0001.csv.gz", "0002.csv.gz"])
    found = count_local_runs(tmp_path, {1: 4})
    assert {name for name in ("missing", "repeated", "unknown", "unfinished") if getattr(found, name)} == wrong


def test_percentiles_are_those_of_all_parts() -> None:
    fast, slow = Latencies(), Latencies()
    fast.add(0.001, 98)
    slow.add(2.0, 2)
    fast.merge(slow)
    assert fast.percentile_s(50) == pytest.approx(0.001, rel=0.02)
    assert fast.percentile_s(98) == pytest.approx(0.001, rel=0.02)
    assert fast.percentile_s(99) == pytest.approx(2.0, rel=0.02)
    assert Latencies().percentile_s(50) is None


class Line:
    """A connection that can be cut; keeps what was said."""

    def __init__(self, *, is_saturating: bool = False) -> None:
        self.is_open = True
        self.said: list[CollectorMessage] = []
        self.latencies = Latencies()
        self.conversation = Conversation(
            7,
            maker=RowMaker(1),
            send=self._send,
            latencies=self.latencies,
            began_at=1.7e9,
            interval_s=1.0,
            rows_per_message=4,
            is_saturating=is_saturating,
        )

    def hear(self, message: UploaderMessage, now: float) -> list[CollectorMessage]:
        """Let the collector hear a message and return what it says then."""
        self.said.clear()
        self.conversation.hear(encode(message), now)
        return list(self.said)

    def _send(self, frame: bytes) -> bool:
        if self.is_open:
            self.said.append(decode_from_collector(frame))
        return self.is_open


def test_what_was_not_acknowledged_is_sent_again() -> None:
    line = Line()
    line.conversation.poll(0.0)
    assert isinstance(line.said[0], Hello)
    line.hear(Welcome(1), 0.0)
    line.conversation.make_rows(1.0)
    line.conversation.make_rows(2.0)
    line.hear(Ack(4), 2.5)
    line.said.clear()
    line.conversation.poll(2.5 + RESEND_TIMEOUT_S)
    (greeting,) = line.said
    assert isinstance(greeting, Hello)
    assert greeting.first_available_seq == 5
    (again,) = line.hear(Welcome(5), 6.0)
    assert isinstance(again, Samples)
    assert (again.first_seq, len(again.samples)) == (5, 4)
    line.conversation.finish(6.0)
    assert isinstance(line.said[-1], Finish)
    assert line.said[-1].last_seq == 8
    line.hear(Ack(8, finish=True), 7.0)
    assert line.conversation.acked_seq == 8
    assert line.conversation.is_finish_durable
    # From when a row was made: not from when it was sent again.
    assert line.latencies.percentile_s(100) == pytest.approx(5.0, rel=0.02)


def test_a_refused_run_says_why() -> None:
    line = Line()
    line.hear(Reject(RejectCode.SUPERSEDED, "a newer one"), 0.0)
    assert line.conversation.refusal == "superseded: a newer one"
    line.conversation.poll(100.0)
    assert line.said == []


def test_a_saturating_collector_keeps_its_window_full() -> None:
    line = Line(is_saturating=True)
    sent = line.hear(Welcome(1), 0.0)
    assert sum(len(each.samples) for each in sent if isinstance(each, Samples)) == WINDOW_ROWS
    (more,) = line.hear(Ack(4), 0.1)
    assert isinstance(more, Samples)
    assert (more.first_seq, len(more.samples)) == (WINDOW_ROWS + 1, 4)


@pytest.mark.parametrize("options", [["--storm", "--rate", "10"], ["--keys", "--reconnects", "10", "--rows", "5"]])
def test_a_small_crowd_is_counted_right(options: Sequence[str]) -> None:
    sizes = ["--collectors", "20", "--duration", "3", "--settle", "0.2", "--upload-interval", "1"]
    words = [sys.executable, "-m", "benchmarks.load", *sizes, *options]
    done = subprocess.run(
        words, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| exactly once | True |" in done.stdout
