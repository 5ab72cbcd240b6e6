"""Rows as they are kept in a report: every value exactly, in half the size of gzipped CSV in base64.

Values become whole numbers (times a power of ten), these become differences from row to row where that is smaller, and
their bytes are put together by significance before they are compressed: the high ones hardly change. Of cores in use
only what differs from CPU seconds divided by time is kept.
`assets/data.js` is the other half.
"""

import base64
import zlib
from array import array
from itertools import pairwise
from math import floor, isnan
from operator import sub
from typing import Any, NamedTuple

from sentinel_viewer.rows.table import TIME, Rows, Values, known

_MAX_DECIMALS = 6
_MAX_BYTES = 6  # a double counts to 2^53, and a difference takes twice as much
_MAX_WHOLE = 2**46
_MAX_CORES = 2**20
_LEVEL = 6  # 9 takes three times as long for half a percent
_FEW = 200
_SOME = 10_000
_ALPHABET = bytes.maketrans(b"<>&", b",:.")


class PackedRows(NamedTuple):
    """`columns` describes each column for the page; `block` is base85 text without `<`, `>` and `&`."""

    columns: list[dict[str, Any]]
    block: str


def pack_rows(rows: Rows) -> PackedRows:
    """Pack all columns of the rows."""
    packer = zlib.compressobj(_LEVEL)
    parts: list[bytes] = []
    columns = []
    for name, values in rows.columns.items():
        described, content = _column(name, values, is_whole=name in rows.integers, expected=_expected(rows, name))
        columns.append(described)
        parts.append(packer.compress(content))
    parts.append(packer.flush())
    return PackedRows(columns, base64.b85encode(b"".join(parts)).translate(_ALPHABET).decode("ascii"))


def _expected(rows: Rows, name: str) -> list[float] | None:
    """Return what a column of cores in use should hold, `None` for any other; the page computes the same."""
    scope = name.removesuffix("_cpu_usage")
    needed = [TIME, f"{scope}_utime", f"{scope}_stime"]
    before = list(rows.columns)[: list(rows.columns).index(name)]
    if scope == name or any(one not in before or any(map(isnan, rows.values(one))) for one in needed):
        return None
    user, system = map(rows.values, needed[1:])
    lengths = [rows.interval_s, *(later - earlier for earlier, later in pairwise(rows.times))]
    return [
        (one + other) / length if length > 0 else 0.0 for one, other, length in zip(user, system, lengths, strict=True)
    ]


def _column(name: str, values: Values, *, is_whole: bool, expected: list[float] | None) -> tuple[dict[str, Any], bytes]:
    described: dict[str, Any] = {"name": name}
    if is_whole:
        described["whole"] = True
    found = known(values)
    before = b""
    if len(found) < len(values):
        described["known"] = len(found)
        before = bytes(map(float.__eq__, values, values))
    if found and found.count(found[0]) == len(found):
        # Many columns hardly ever change: one value, and no step after it.
        scaled = _scaled(found[:1])
        if scaled is not None:
            content, width = _smallest([*_zigzag(scaled[1]), *bytes(len(found) - 1)])
            described |= {"decimals": scaled[0], "width": width, "delta": True}
            return described, before + content
    scaled = _scaled(found)
    if scaled is None:
        described["raw"] = True
        return described, before + _planes(array("d", found), 8)
    decimals, numbers = scaled
    if expected is not None and len(found) == len(values) and max(expected, default=0.0) < _MAX_CORES:
        described["expected"] = True
        factor = 10**decimals
        numbers = [number - floor(one * factor + 0.5) for number, one in zip(numbers, expected, strict=True)]
    plain = _zigzag(numbers)
    steps = _zigzag([*numbers[:1], *map(sub, numbers[1:], numbers)])
    # A part of the column tells which of the two is smaller.
    is_delta = _packed_size(steps[:_SOME]) < _packed_size(plain[:_SOME])
    content, width = _smallest(steps if is_delta else plain)
    described |= {"decimals": decimals, "width": width, "delta": is_delta}
    return described, before + content


def _packed_size(numbers: list[int]) -> int:
    return len(zlib.compress(_smallest(numbers)[0], 1))


def _scaled(values: list[float]) -> tuple[int, list[int]] | None:
    """Return decimals and whole numbers that give exactly these values, `None` where nothing small enough does."""
    largest = max(map(abs, values), default=0.0)
    for decimals in range(_MAX_DECIMALS + 1):
        factor = 10**decimals
        if largest * factor >= _MAX_WHOLE:
            break
        # A few of them tell nearly always that more decimals are needed.
        for some in (values[:_FEW], values):
            numbers = [round(value * factor) for value in some]
            if [number / factor for number in numbers] != some:
                break
        else:
            return decimals, numbers
    return None


def _zigzag(numbers: list[int]) -> list[int]:
    return [(number << 1) ^ (number >> 63) for number in numbers]


def _smallest(numbers: list[int]) -> tuple[bytes, int]:
    """Return the numbers' bytes by significance, and how many of them a number takes."""
    width = max(1, (max(numbers, default=0).bit_length() + 7) // 8)
    assert width <= _MAX_BYTES
    return _planes(array("Q", numbers), width), width


def _planes(values: "array[int] | array[float]", width: int) -> bytes:
    content = values.tobytes()
    return b"".join(content[plane::8] for plane in range(width))
