"""The file of undelivered samples: what is read back is a prefix of what was written, whatever happened to it."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from locations import TESTS
from rows import numbers, row, timestamps

from sentinel_collector.delivery.overflow_file.file import OverflowFile, OverflowFileInUseError, Position
from sentinel_collector.delivery.overflow_file.format import OverflowFileError, OverflowHeader
from sentinel_protocol.wire.messages import Finish

HEAD = OverflowHeader(run_key="key", incarnation="one", uploader_url="ipc:///nowhere", hello=b"hello")
FINISH = Finish(0, 0, "finished", 1.0)


def held(overflow: OverflowFile) -> list[bytes]:
    count = overflow.numbered_rows + overflow.unnumbered_rows
    rows = list(overflow.rows_from(overflow.start))
    assert len(rows) == count
    return rows


def reopened(path: Path) -> OverflowFile:
    return OverflowFile.open(str(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.rows"


def test_rows_and_their_numbers_are_read_back(path: Path) -> None:
    overflow = OverflowFile.open(str(path), create=True)
    overflow.write_header(HEAD)
    overflow.append_rows([row(1), row(2)], 0)
    overflow.write_seq_base(11, start=overflow.start)
    overflow.append_rows([row(3)], 13)
    overflow.write_finish(FINISH)
    overflow.close()
    again = reopened(path)
    assert (again.header, again.finish, again.last_row) == (HEAD, FINISH, row(3))
    assert (again.first_seq, again.numbered_rows, again.unnumbered_rows) == (11, 3, 0)
    assert numbers(held(again)) == [1, 2, 3]
    assert path.stat().st_mode & 0o777 == 0o600
    again.close()


def test_a_base_that_does_not_follow_means_that_the_rows_before_were_durable(path: Path) -> None:
    overflow = OverflowFile.open(str(path), create=True)
    overflow.append_rows([row(1), row(2)], 5)
    overflow.append_rows([row(3), row(4)], 0)
    overflow.write_seq_base(20, start=overflow.advance(overflow.start, 0))
    overflow.close()
    again = reopened(path)
    assert (again.first_seq, again.numbered_rows) == (20, 2)
    assert numbers(held(again)) == [3, 4]
    again.close()


def test_rows_that_go_into_another_run_lose_their_numbers_in_one_record(path: Path) -> None:
    overflow = OverflowFile.open(str(path), create=True)
    overflow.write_header(HEAD)
    overflow.append_rows([row(1), row(2), row(3)], 5)
    overflow.append_rows([row(4)], 8)
    other = OverflowHeader(run_key="other", incarnation="one", uploader_url="", hello=b"")
    overflow.write_reset(other, overflow.advance(overflow.start, 2))
    overflow.close()
    again = reopened(path)
    assert again.header == other
    assert (again.numbered_rows, again.unnumbered_rows) == (0, 2)
    assert numbers(held(again)) == [3, 4]
    again.write_seq_base(1, start=again.start)
    again.append_rows([row(5)], 3)
    again.close()
    third = reopened(path)
    assert (third.first_seq, third.numbered_rows) == (1, 3)
    assert numbers(held(third)) == [3, 4, 5]
    third.close()


def test_a_shift_is_remembered_and_applies_to_its_rows_alone(path: Path) -> None:
    overflow = OverflowFile.open(str(path), create=True)
    overflow.append_rows([row(1, timestamp=10.0)], 1)
    overflow.append_rows([row(2, timestamp=5.0), row(3, timestamp=6.5)], 0)
    overflow.write_seq_base(2, start=overflow.advance(Position(8, 0), 1), shift_ms=5001)
    overflow.append_rows([row(4, timestamp=12.0)], 4)
    assert timestamps(list(overflow.rows_from(Position(8, 0)))) == [10.0, 10.001, 11.501, 12.0]
    overflow.close()
    again = reopened(path)
    assert timestamps(held(again)) == [10.0, 10.001, 11.501, 12.0]
    again.close()


def test_the_newest_row_is_shifted_as_well(path: Path) -> None:
    overflow = OverflowFile.open(str(path), create=True)
    overflow.append_rows([row(2, timestamp=5.0)], 0)
    overflow.write_seq_base(2, start=Position(8, 0), shift_ms=5001)
    overflow.close()
    again = reopened(path)
    assert again.last_row == row(2, timestamp=10.001)
    again.close()


def test_clearing_keeps_an_end_that_is_not_delivered(path: Path) -> None:
    overflow = OverflowFile.open(str(path), create=True)
    overflow.write_header(HEAD)
    overflow.append_rows([row(1)], 1)
    overflow.write_finish(FINISH)
    overflow.truncate(HEAD)
    overflow.close()
    again = reopened(path)
    assert again.finish == FINISH
    again.close()


CLEARS_AND_DIES = """
import os, signal, sys
from sentinel_collector.delivery.overflow_file.file import OverflowFile
from sentinel_collector.delivery.overflow_file.format import OverflowHeader
_, path, call, when, run_key = sys.argv
overflow = OverflowFile.open(path)
real = getattr(os, call)
def dying(*arguments):
    if when == "after":
        real(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(os, call, dying)
overflow.truncate(OverflowHeader(run_key=run_key, incarnation="one", uploader_url="ipc:///nowhere", hello=b"hello"))
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("call", "run_key"), [("ftruncate", "key"), ("rename", "another")], ids=["same head", "another head"]
)
def test_a_file_whose_owner_is_killed_while_it_is_emptied_says_whose_it_is(
    path: Path, call: str, run_key: str, when: str
) -> None:
    overflow = OverflowFile.open(str(path), create=True)
    overflow.write_header(HEAD)
    overflow.append_rows([row(1), row(2)], 1)
    overflow.close()
    done = subprocess.run([sys.executable, "-c", CLEARS_AND_DIES, str(path), call, when, run_key], check=False)
    assert done.returncode == -signal.SIGKILL
    again = reopened(path)
    assert again.header is not None
    assert (again.header.run_key, numbers(held(again))) == ((run_key, []) if when == "after" else ("key", [1, 2]))
    again.append_rows([row(3)], 3)
    assert list(path.parent.iterdir()) == [path]
    again.close()
    third = reopened(path)
    assert numbers(held(third))[-1:] == [3]
    third.close()


def test_a_file_that_another_takes_the_place_of_stays_in_use(path: Path) -> None:
    overflow = OverflowFile.open(str(path), create=True)
    overflow.write_header(HEAD)
    overflow.append_rows([row(1)], 1)
    overflow.truncate(OverflowHeader(run_key="another", incarnation="one", uploader_url="", hello=b""))
    with pytest.raises(OverflowFileInUseError):
        OverflowFile.open(str(path))
    overflow.close()
    reopened(path).close()


def test_a_file_in_use_is_refused_to_another_process(path: Path) -> None:
    overflow = OverflowFile.open(str(path), create=True)
    script = (
        "import sys\nfrom sentinel_collector.delivery.overflow_file.file import OverflowFile, OverflowFileInUseError\n"
        "try: OverflowFile.open(sys.argv[1])\nexcept OverflowFileInUseError: print('in use')\n"
    )
    refused = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert refused.stdout == "in use\n", refused.stderr
    with pytest.raises(OverflowFileInUseError):
        reopened(path)
    overflow.close()
    reopened(path).close()


def test_a_foreign_file_is_refused_and_left_as_it_is(path: Path) -> None:
    path.write_bytes(b"SSPILL2\nfrom the future")
    with pytest.raises(OverflowFileError, match="not a file of undelivered samples"):
        reopened(path)
    assert path.read_bytes() == b"SSPILL2\nfrom the future"


def _limited(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk_leaves_the_file_intact(path: Path) -> None:
    """A process whose files may not grow beyond 3000 bytes writes until it fails, then once more."""
    script = (
        "import sys\nfrom sentinel_collector.delivery.overflow_file.file import OverflowFile\nfrom rows import row\n"
        "overflow = OverflowFile.open(sys.argv[1], create=True)\n"
        "for attempt in range(2):\n"
        "    try:\n"
        "        while True: overflow.append_rows([row(1)] * 10, 0)\n"
        "    except OSError as error: print(type(error).__name__)\n"
        "for _ in range(3): overflow.append_rows([row(2)], 0)\n"
        "print('fits')\n"
    )
    environ = os.environ | {"PYTHONPATH": str(TESTS)}
    # Writes that would cross the limit are cut short or refused: both must leave whole records.
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        env=environ,
        preexec_fn=_limited(3000),
    )
    assert done.stdout.splitlines()[:2] == ["OSError", "OSError"], done.stderr
    overflow = reopened(path)
    count = overflow.unnumbered_rows
    assert count >= 10
    assert set(numbers(held(overflow))) <= {1, 2}
    assert overflow.quarantined_path is None
    overflow.close()


@pytest.mark.parametrize("room", [0, 5])
def test_a_full_disk_leaves_no_file_that_could_not_be_begun(path: Path, room: int) -> None:
    script = (
        "import sys; from sentinel_collector.delivery.overflow_file.file import OverflowFile;"
        "OverflowFile.open(sys.argv[1], create=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        preexec_fn=_limited(room),
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 1
    assert "OSError" in done.stderr.splitlines()[-1]
    assert not path.exists()


def test_damage_in_the_middle_is_set_aside_and_never_deleted(path: Path) -> None:
    overflow = OverflowFile.open(str(path), create=True)
    overflow.write_header(HEAD)
    overflow.append_rows([row(1)], 1)
    intact = overflow.size_bytes
    overflow.append_rows([row(2)], 2)
    overflow.append_rows([row(3)], 3)
    overflow.close()
    content = bytearray(path.read_bytes())
    content[intact + 30] ^= 1
    path.write_bytes(content)
    again = reopened(path)
    assert numbers(held(again)) == [1]
    assert again.quarantined_path is not None
    assert Path(again.quarantined_path).read_bytes() == content[intact:]
    again.close()


Step = tuple[str, int]
steps = st.lists(st.tuples(st.sampled_from(["rows", "base", "anew", "head", "finish"]), st.integers(1, 5)), max_size=12)


class Written:
    """Writes what a backlog would and notes what is held after each record."""

    def __init__(self, path: Path) -> None:
        self.overflow = OverflowFile.open(str(path), create=True)
        self.rows: list[int] = []
        self.numbered = 0
        self.first_seq = 0
        self.made = 0
        self.states: list[tuple[int, list[int], int, int]] = []
        self.note()

    def note(self) -> None:
        first = self.first_seq if self.numbered else 0
        self.states.append((self.overflow.size_bytes, list(self.rows), self.numbered, first))

    def do(self, kind: str, count: int) -> None:
        overflow = self.overflow
        front = Position(8, 0)
        dropped = self.made - len(self.rows)
        if kind == "rows":
            made = [row(self.made + index + 1) for index in range(count)]
            is_numbered = self.numbered > 0 and self.numbered == len(self.rows)
            overflow.append_rows(made, self.first_seq + self.numbered if is_numbered else 0)
            self.rows += range(self.made + 1, self.made + count + 1)
            self.made += count
            self.numbered += count if is_numbered else 0
        elif kind == "base" and len(self.rows) > self.numbered:
            base = self.first_seq + self.numbered if self.numbered else 100 + count
            overflow.write_seq_base(base, start=overflow.advance(front, dropped + self.numbered))
            if not self.numbered:
                self.first_seq = base
            self.numbered = len(self.rows)
        elif kind == "anew":
            gone = min(count, len(self.rows))
            overflow.write_reset(HEAD, overflow.advance(front, dropped + gone))
            self.rows = self.rows[gone:]
            self.numbered = 0
            self.first_seq = 0
        elif kind == "head":
            overflow.write_header(HEAD)
        elif kind == "finish":
            overflow.write_finish(FINISH)
        self.note()


def recovered(path: Path) -> tuple[list[int], int, int]:
    overflow = reopened(path)
    try:
        return numbers(held(overflow)), overflow.numbered_rows, overflow.first_seq if overflow.numbered_rows else 0
    finally:
        overflow.close()


@settings(max_examples=60, deadline=None)
@given(plan=steps, data=st.data())
def test_a_file_cut_at_any_byte_is_as_it_was_after_some_record(
    tmp_path_factory: pytest.TempPathFactory, plan: list[Step], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cut") / "x.rows"
    written = Written(path)
    for kind, count in plan:
        written.do(kind, count)
    written.overflow.close()
    cut = data.draw(st.integers(0, path.stat().st_size))
    with path.open("r+b") as file:
        file.truncate(cut)
    whole = [state for state in written.states if state[0] <= cut] or written.states[:1]
    assert recovered(path) == whole[-1][1:]


@settings(max_examples=60, deadline=None)
@given(plan=steps, data=st.data())
def test_a_file_with_any_byte_changed_holds_nothing_invented(
    tmp_path_factory: pytest.TempPathFactory, plan: list[Step], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("flip") / "x.rows"
    written = Written(path)
    for kind, count in plan:
        written.do(kind, count)
    written.overflow.close()
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    if place < 8:
        with pytest.raises(OverflowFileError):
            reopened(path)
        assert path.read_bytes() == content
        return
    whole = [state for state in written.states if state[0] <= place]
    assert recovered(path) == whole[-1][1:]


@given(content=st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_rubbish_behind_the_magic_is_no_row(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("rubbish") / "x.rows"
    path.write_bytes(b"SSPILL1\n" + content)
    assert recovered(path) == ([], 0, 0)


def test_positions_add_up(path: Path) -> None:
    overflow = OverflowFile.open(str(path), create=True)
    for start in (1, 4, 7):
        overflow.append_rows([row(start), row(start + 1), row(start + 2)], start)
    places = [overflow.advance(Position(8, 0), count) for count in range(10)]
    assert len(set(places)) == 10
    assert [place.row_index for place in places] == [0, 1, 2] * 3 + [0]
    for begin in range(9):
        assert list(overflow.rows_from(places[begin])) == [row(number) for number in range(begin + 1, 10)]
        for end in range(begin, 10):
            assert overflow.advance(places[begin], end - begin) == places[end]
    with pytest.raises(OverflowFileError, match="missing"):
        overflow.advance(places[0], 10)
    overflow.close()
