"""What was sampled: the rows of a collector's `--output` as they were seen to come, process by process, run by run."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from sentinel_protocol.wire.sample import CSV_HEADER


@dataclass(frozen=True)
class End:
    """How a run is to be reported to the API."""

    status: str
    exit_code: int | None


VANISHED = End("failed", None)


@dataclass
class Part:
    """The rows of one collector process.

    Row number N was written between `not_before[N]` and `not_after[N]` (monotonic), whatever its time stamp says.
    """

    was_killed: bool = False
    was_ending: bool = False
    """It was told to end, or its job had ended, before it was killed."""
    was_replaced: bool = False
    """It did not go on with the file that was there."""
    rows: list[str] = field(default_factory=list)
    not_before: list[float] = field(default_factory=list)
    not_after: list[float] = field(default_factory=list)


@dataclass
class Generation:
    """The parts of one run, up to an end that a collector lived to report.

    `ends` are the ends that were begun: more than one where a collector was killed while it ended. An `abandoned` run
    has no collector any more, which nobody has told the uploader.
    """

    name: str
    parts: list[Part] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    abandoned: bool = False


class Tail:
    """Reads the rows of a part from a growing file; what other parts wrote before is left out."""

    def __init__(self, path: Path, part: Part) -> None:
        self._path = path
        self._part = part
        self._before = _whole_lines(path) or CSV_HEADER
        self._size = len(self._before) if path.exists() else 0
        self._looked_at = time.monotonic()

    def look(self) -> None:
        """Take in what has been written since the last look."""
        now = time.monotonic()
        size = self._path.stat().st_size if self._path.exists() else 0
        if size < self._size:
            self._begin_anew()
        if size > self._size:
            with self._path.open("rb") as file:
                file.seek(self._size)
                piece = file.read()
            piece = piece[: piece.rfind(b"\n") + 1]
            self._size += len(piece)
            self._add(piece.removeprefix(CSV_HEADER), now)
        self._looked_at = now

    def close(self) -> None:
        """The part's process is gone: look for the last time, at all of it."""
        self.look()
        content = _whole_lines(self._path)
        part = self._part
        begin = CSV_HEADER if part.was_replaced else self._before
        if content and content != begin + "".join(f"{row}\n" for row in part.rows).encode():
            self._begin_anew()
            self._add(content.removeprefix(CSV_HEADER), time.monotonic())

    def _begin_anew(self) -> None:
        part = self._part
        part.was_replaced = self._before != CSV_HEADER
        part.rows, part.not_before, part.not_after = [], [], []
        self._size = 0

    def _add(self, lines: bytes, now: float) -> None:
        rows = lines.decode().splitlines()
        self._part.rows += rows
        self._part.not_before += [self._looked_at] * len(rows)
        self._part.not_after += [now] * len(rows)


def _whole_lines(path: Path) -> bytes:
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1]
