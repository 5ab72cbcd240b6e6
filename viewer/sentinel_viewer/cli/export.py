"""`sentinel-stream export`: the rows of runs as one table, each row with its run and its interval."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import IO, Any

import msgspec

from sentinel_protocol.common.errors import UsageError
from sentinel_viewer.cli import options
from sentinel_viewer.output.console import note
from sentinel_viewer.rows.columns import COLUMNS
from sentinel_viewer.rows.reader import read_rows
from sentinel_viewer.rows.table import Rows
from sentinel_viewer.runs.naming import FoundRun

_FORMATS = ("csv", "json", "parquet")
_FIRST = ("run_id", "interval_seconds")
_LINES = 4096
_json = msgspec.json.Encoder()


def run(words: list[str]) -> int:
    """Write the table."""
    parser = options.parser(
        "export",
        "Write the rows of runs as one table. Each row has its run id and the interval that it was sampled at;\n"
        "unknown is empty in CSV and null in JSON and Parquet.",
        examples="  sentinel-stream export latest > rows.csv\n"
        "  sentinel-stream export train train~1 --format parquet -o rows.parquet\n",
    )
    parser.add_argument("run", metavar="RUN", nargs="+", help="see `sentinel-stream --help`")
    parser.add_argument("--format", choices=_FORMATS, default="csv", help="default csv; parquet needs pyarrow")
    parser.add_argument("-o", "--output", metavar="FILE", help="default the standard output")
    args = parser.parse_args(words)
    found = options.library(args).find(args.run)
    if args.format == "parquet":
        _write_parquet(args, found)
        return 0
    write = _write_csv if args.format == "csv" else _write_json
    with _opened(args.output) as file:
        write(file, found)
    return 0


def _write_csv(file: IO[str], found: Sequence[FoundRun]) -> None:
    names = None
    for one, rows in _tables(found):
        if names is None:
            # All known columns, so that the header does not depend on which run comes first.
            names = [*COLUMNS, *(name for name in rows.columns if name not in COLUMNS)]
            file.write(",".join([*_FIRST, *names]) + "\n")
        if left_out := [name for name in rows.columns if name not in names]:
            note(f"{one.run.run_id}: columns that the first run does not have are left out: {', '.join(left_out)}")
        first = f"{_csv_text(one.run.run_id)},{_numbers_text([one.run.interval_s])}"
        columns = [_values(rows, name) for name in names]
        lines = (f"{first},{_numbers_text(cells)}\n" for cells in zip(*columns, strict=True))
        while part := "".join(islice(lines, _LINES)):
            file.write(part)


def _write_json(file: IO[str], found: Sequence[FoundRun]) -> None:
    separator = "[\n"
    for one, rows in _tables(found):
        names = list(rows.columns)
        columns = [_values(rows, name) for name in names]
        for cells in zip(*columns, strict=True):
            row = {"run_id": one.run.run_id, "interval_seconds": one.run.interval_s} | dict(
                zip(names, cells, strict=True)
            )
            file.write(separator + json.dumps(row, ensure_ascii=False))
            separator = ",\n"
    file.write("\n]\n" if separator == ",\n" else "[]\n")


def _write_parquet(args: argparse.Namespace, found: Sequence[FoundRun]) -> None:
    if args.output is None:
        raise UsageError("--format parquet needs -o FILE: it is not text")
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise UsageError("--format parquet needs one more package: pip install pyarrow") from None
    integers = {name for name, column in COLUMNS.items() if column.decimals == 0}
    tables = []
    for one, rows in _tables(found):
        count = len(rows)
        columns: dict[str, Any] = {
            "run_id": pa.array([one.run.run_id] * count, pa.string()),
            "interval_seconds": pa.array([one.run.interval_s] * count, pa.float64()),
        }
        for name in [*COLUMNS, *(name for name in rows.columns if name not in COLUMNS)]:
            is_whole = name in integers and (name in rows.integers or name not in rows.columns)
            kind = pa.int64() if is_whole else pa.float64()
            columns[name] = pa.array(list(_values(rows, name)), kind)
        tables.append(pa.table(columns))
    parquet.write_table(pa.concat_tables(tables, promote_options="permissive"), args.output, compression="zstd")


def _tables(found: Sequence[FoundRun]) -> Iterator[tuple[FoundRun, Rows]]:
    for one in found:
        rows = read_rows(one)
        for remark in rows.remarks:
            note(f"{one.run.run_id}: {remark}")
        yield one, rows


def _values(rows: Rows, name: str) -> Iterator[float | None]:
    is_whole = name in rows.integers
    for value in rows.values(name):
        yield None if value != value else int(value) if is_whole else value


def _numbers_text(values: Sequence[float | None]) -> str:
    """Return numbers as a collector writes them: as short as they can be told apart, unknown is empty."""
    return _json.encode(values)[1:-1].replace(b"null", b"").decode("ascii")


def _csv_text(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(char in text for char in ',"\n\r') else text


@contextlib.contextmanager
def _opened(path: str | None) -> Iterator[IO[str]]:
    """Open the output; a file takes its name only when it is whole."""
    if path is None or path == "-":
        yield sys.stdout
        sys.stdout.flush()
        return
    temporary = f"{path}.part"
    try:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
