"""Reads a run's objects into `Rows`. Cut or foreign objects are read as far as possible."""

import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import inf, nan

from sentinel_viewer.errors import ReadError
from sentinel_viewer.rows.table import TIME, Rows, Values
from sentinel_viewer.runs.naming import FoundRun

_GZIP_MAGIC = b"\x1f\x8b"
_WINDOW = 31  # zlib: a gzip header is expected
_LINES = 2048  # so many are split at a time: a day in one object would otherwise take ten times its size
_MAX_OBJECT_BYTES = 1 << 30
_MAX_REMARKS = 20


def read_rows(found: FoundRun) -> Rows:
    """Read all rows of a run; raises `ReadError` only where its objects cannot even be listed."""
    place, run = found
    names = run.objects or list(place.list_objects(run.name))
    reader = _Reader()

    def fetch(name: str) -> bytes | ReadError:
        try:
            return place.read_object(run.name, name)
        except ReadError as error:
            return error

    for name, content in zip(names, _fetched(fetch, names, place.parallel), strict=True):
        if isinstance(content, ReadError):
            reader.remark(str(content))
        else:
            reader.add(name, content)
    return reader.rows(run.interval_s)


def parse_rows(objects: Iterable[tuple[str, bytes]], interval_s: float | None = None) -> Rows:
    """Return the rows of objects (name, gzipped or plain CSV with a header)."""
    reader = _Reader()
    for name, content in objects:
        reader.add(name, content)
    return reader.rows(interval_s)


def _fetched(fetch: Callable[[str], bytes | ReadError], names: list[str], parallel: int) -> Iterator[bytes | ReadError]:
    if parallel == 1:
        yield from map(fetch, names)
        return
    with ThreadPoolExecutor(parallel) as pool:
        yield from pool.map(fetch, names)


class _Reader:
    """Appends objects to columns; a column that an object lacks is unknown in its rows."""

    def __init__(self) -> None:
        self._columns: dict[str, Values] = {}
        self._fractional: set[str] = set()
        self._count = 0
        self._remarks: list[str] = []

    def remark(self, text: str) -> None:
        if len(self._remarks) < _MAX_REMARKS:
            self._remarks.append(text)

    def add(self, name: str, content: bytes) -> None:
        try:
            text, is_whole = _unpacked(content)
        except zlib.error as error:
            self.remark(f"{name} is damaged ({error}): it is left out")
            return
        if not is_whole:
            self.remark(f"{name} is cut off: what can be read of it is shown")
        lines = text.decode("utf-8", "replace").splitlines()
        if not lines:
            return
        header = lines[0].split(",")
        if TIME not in header or len(set(header)) != len(header):
            self.remark(f"{name} has no header with a timestamp: it is left out")
            return
        if not is_whole and len(lines) > 1 and not text.endswith(b"\n"):
            del lines[-1]
        for start in range(1, len(lines), _LINES):
            self._append(name, header, lines[start : start + _LINES])

    def rows(self, interval_s: float | None) -> Rows:
        integers = self._columns.keys() - self._fractional
        return Rows(self._columns, integers=integers, interval_s=interval_s, remarks=self._remarks)

    def _append(self, name: str, header: list[str], lines: list[str]) -> None:
        split = [line.split(",") for line in lines]
        width = len(header)
        cells = [fields for fields in split if len(fields) == width]
        place = header.index(TIME)
        # A row without a time has no place.
        cells = [fields for fields in cells if 0.0 < _number(fields[place]) < inf]
        if len(cells) < len(split):
            self.remark(f"{name}: {len(split) - len(cells)} rows cannot be read and are left out")
        if not cells:
            return
        for column, texts in zip(header, zip(*cells, strict=True), strict=True):
            values = self._columns.get(column)
            if values is None:
                values = self._columns[column] = array("d", [nan]) * self._count
            joined = "".join(texts)
            if not joined.isdecimal():
                self._fractional.update([column] if "." in joined or "e" in joined else [])
            values.extend(_numbers(texts))
        self._count += len(cells)
        for values in self._columns.values():
            if len(values) < self._count:
                values.extend(array("d", [nan]) * (self._count - len(values)))


def _numbers(texts: Sequence[str]) -> list[float]:
    # Many columns hardly ever change.
    if texts.count(texts[0]) == len(texts):
        return _numbers(texts[:1]) * len(texts) if len(texts) > 1 else [_finite(texts[0])]
    try:
        numbers = [float(text) if text else nan for text in texts]
    except ValueError:
        numbers = [_number(text) for text in texts]
    # Infinity is not a measurement.
    return numbers if inf not in numbers and -inf not in numbers else [nan if abs(n) == inf else n for n in numbers]


def _finite(text: str) -> float:
    number = _number(text)
    return nan if abs(number) == inf else number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return nan


def _unpacked(content: bytes) -> tuple[bytes, bool]:
    """Return an object's text, and whether it is whole; several gzip members follow each other.

    Raises `zlib.error` where bytes were changed: what is before the damage may be wrong as well.
    """
    if not content.startswith(_GZIP_MAGIC):
        return content, True
    parts: list[bytes] = []
    size = 0
    while content.startswith(_GZIP_MAGIC):
        member = zlib.decompressobj(_WINDOW)
        part = member.decompress(content, _MAX_OBJECT_BYTES - size)
        parts.append(part)
        size += len(part)
        if not member.eof:
            return b"".join(parts), False
        content = member.unused_data
    return b"".join(parts), not content
