"""Rows to the bytes of an object."""

import gzip
import math
import zlib
from typing import Any

import msgspec
import pytest
from fakes.uploader_harness import finish, hello, row_numbers, sample, samples
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from sentinel_protocol.wire.messages import MAX_SEQUENCE, Samples, encode
from sentinel_protocol.wire.sample import COLUMNS, CSV_HEADER, Sample, csv_rows
from sentinel_uploader.delivery.csv_batch import decompress_rows, gzip_csv, to_csv
from sentinel_uploader.intake.validation import has_valid_timestamps, is_valid_finish, validate_hello
from sentinel_uploader.limits import ClientLimits
from sentinel_uploader.runs.ports import object_uri
from sentinel_uploader.spool.open_run import OpenRun
from sentinel_uploader.spool.run_record import new_record
from sentinel_uploader.spool.types import decode_frames


def test_body_is_one_gzip_member_without_a_time_and_depends_on_the_rows_alone() -> None:
    rows = decode_frames([encode(samples(1, 50)), encode(samples(51, 60))])
    body = gzip_csv(to_csv(rows))
    assert body == gzip_csv(to_csv([sample(seq) for seq in range(1, 61)]))
    assert body[4:8] == b"\0\0\0\0"
    unpacked = zlib.decompressobj(wbits=31)
    text = unpacked.decompress(body)
    assert unpacked.eof
    assert not unpacked.unused_data
    assert text.startswith(CSV_HEADER)
    assert text == gzip.decompress(body)
    assert row_numbers(decompress_rows(body)) == list(range(1, 61))


@pytest.mark.parametrize(("prefix", "number", "uri"), [
    ("s3://b/runs/1", 1, "s3://b/runs/1/0001.csv.gz"),
    ("s3://b/a b+c@d/", 37, "s3://b/a b+c@d/0037.csv.gz"),
    ("file:///d/r", 12345, "file:///d/r/12345.csv.gz"),
])  # fmt: skip
def test_objects_are_numbered_from_one_with_four_digits(prefix: str, number: int, uri: str) -> None:
    assert object_uri(prefix, number) == uri


def test_frame_of_a_newer_client_with_more_fields_still_decodes() -> None:
    fields = msgspec.msgpack.decode(encode(samples(1, 2)))
    assert [row.timestamp for row in decode_frames([msgspec.msgpack.encode([*fields, "new"])])] == [
        sample(1).timestamp,
        sample(2).timestamp,
    ]


numbers = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**64 - 1),
    st.integers(-40, 130),
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def _is_float(column: str) -> bool:
    return "float" in str(Sample.__annotations__[column])


values_of_a_row = st.lists(numbers, min_size=len(COLUMNS) - 1, max_size=len(COLUMNS) - 1)


@given(st.lists(values_of_a_row, min_size=1, max_size=5), st.booleans())
def test_estimate_of_a_runs_csv_is_never_too_low(rows: list[list[int | float | None]], short: bool) -> None:
    encoded = []
    for seq, row in enumerate(rows, 1):
        values = [
            value if value is None or _is_float(column) else int(value) if math.isfinite(value) else None
            for column, value in zip(COLUMNS[1:], row, strict=True)
        ]
        values = [value if not isinstance(value, int) or -(2**63) <= value < 2**64 else 0 for value in values]
        encoded.append([seq, *(values[:3] if short else values)])
    payload = msgspec.msgpack.encode(["s", 1, encoded])
    decoded = decode_frames([payload])
    run = OpenRun(1, new_record(hello(), uid="u", owner="", now=0.0), now=0.0)
    run.unbatched_rows, run.unbatched_bytes = len(decoded), len(payload)
    facts = run.scheduling_facts()
    assert len(to_csv(decoded)) <= facts.total_csv_bytes


def test_rows_with_values_that_are_no_numbers_have_empty_fields() -> None:
    row = csv_rows([Sample(timestamp=1.5, system_utime=math.nan, system_stime=math.inf)]).decode()
    assert row.startswith("1.5,,,,")
    assert row.count(",") == len(COLUMNS) - 1


def test_screening_of_times_and_ends() -> None:
    assert has_valid_timestamps(samples(1, 3))
    for bad in (0.0, -1.0, math.nan, math.inf):
        assert not has_valid_timestamps(Samples(1, [sample(1), Sample(timestamp=bad)]))
    assert is_valid_finish(finish(1))
    assert is_valid_finish(finish(1, None))
    assert is_valid_finish(finish(1, 3, "failed"))
    bad_ends: list[dict[str, Any]] = [
        {"status": "fine"},
        {"exit_code": 256},
        {"exit_code": -1},
        {"exit_code": 3},
        {"time": math.nan},
        {"time": 1e300},
        {"peak_memory_mib": math.inf},
        {"accounting": "x" * 65},
    ]
    for changes in bad_ends:
        assert not is_valid_finish(replace(finish(1), **changes)), changes


def test_greetings_that_cannot_be_taken_are_told_why() -> None:
    assert validate_hello(hello(), ClientLimits()) is None
    bad_greetings: list[tuple[dict[str, Any], str]] = [
        ({"version": 2}, "unknown-version"),
        ({"run_key": ""}, "not-allowed"),
        ({"run_key": "a\nb"}, "not-allowed"),
        ({"run_key": "x" * 201}, "not-allowed"),
        ({"epoch": ""}, "not-allowed"),
        ({"interval_s": math.nan}, "not-allowed"),
        ({"interval_s": 0.0}, "not-allowed"),
        ({"first_available_seq": -1}, "not-allowed"),
        ({"first_available_seq": MAX_SEQUENCE + 1}, "not-allowed"),
        ({"metadata": {"x": "y" * 20_000}}, "too-big"),
    ]
    for changes, code in bad_greetings:
        unfit = validate_hello(replace(hello(), **changes), ClientLimits())
        assert unfit is not None
        assert unfit.reject.code == code
