"""Samples and their CSV: the contract's columns, and bytes that depend on the numbers alone."""

import csv
import io
import math
import re
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from locations import ROOT

from sentinel_protocol.wire.sample import (
    COLUMNS,
    CSV_HEADER,
    Sample,
    csv_rows,
    decode_sample,
    decode_samples,
    encode_sample,
    shift_timestamp,
)

HEADER = (
    "timestamp,system_processes,system_utime,system_stime,system_cpu_usage,system_memory_free_mib,"
    "system_memory_used_mib,system_memory_buffers_mib,system_memory_cached_mib,system_memory_active_mib,"
    "system_memory_inactive_mib,system_disk_read_bytes,system_disk_write_bytes,system_disk_space_total_gb,"
    "system_disk_space_used_gb,system_disk_space_free_gb,system_net_recv_bytes,system_net_sent_bytes,"
    "system_gpu_usage,system_gpu_vram_mib,system_gpu_utilized,process_pid,process_children,process_utime,"
    "process_stime,process_cpu_usage,process_memory_mib,process_disk_read_bytes,process_disk_write_bytes,"
    "process_gpu_usage,process_gpu_vram_mib,process_gpu_utilized"
)
"""As the contract has it, word for word."""
_IS_INT = {name: int in typing.get_args(kind) for name, kind in typing.get_type_hints(Sample).items()}
_COUNTED = re.compile(r"(_bytes|_processes|_children|_pid|_utilized)$")

whole = st.integers(0, 2**63)
number = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    values: list[Any] = [draw(st.none() | (whole if _IS_INT[name] else number)) for name in COLUMNS[1:]]
    return Sample(draw(number), *values)


def test_columns_are_the_contract_s() -> None:
    assert ",".join(COLUMNS) == HEADER
    assert HEADER.encode() + b"\n" == CSV_HEADER
    assert len(COLUMNS) == 32


def test_what_is_counted_is_whole_and_the_rest_is_not() -> None:
    assert {name for name, is_int in _IS_INT.items() if is_int} == {name for name in COLUMNS if _COUNTED.search(name)}


def test_a_row_reads_as_the_contract_says() -> None:
    sample = Sample(1_700_000_000.125, 5, 0.0, system_disk_read_bytes=0, process_gpu_utilized=1)
    assert csv_rows([sample]) == b"1700000000.125,5,0.0" + b"," * 9 + b"0" + b"," * 20 + b"1\n"
    assert csv_rows([]) == b""
    commas = b"," * (len(COLUMNS) - 1)
    assert csv_rows([Sample(1.0), Sample(2.0)]) == b"1.0" + commas + b"\n2.0" + commas + b"\n"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_empty(value: float) -> None:
    assert csv_rows([Sample(1.0, system_utime=value)]) == csv_rows([Sample(1.0)])


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(samples(), min_size=1, max_size=3))
def test_csv_is_what_the_csv_module_writes(rows: list[Sample]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(msgspec.structs.astuple(row) for row in rows)
    ours = csv_rows(rows).decode()
    theirs = text.getvalue()
    for our_line, their_line in zip(ours.splitlines(), theirs.splitlines(), strict=True):
        for our_field, their_field in zip(our_line.split(","), their_line.split(","), strict=True):
            # Very large and very small numbers differ in how the exponent is written, never in their value.
            assert our_field == their_field or ("e" in their_field and float(our_field) == float(their_field))
    assert ours.endswith("\n")
    assert '"' not in ours


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(samples(), max_size=3))
def test_bytes_are_the_same_after_every_way_through_the_wire(rows: list[Sample]) -> None:
    once = decode_samples([encode_sample(row) for row in rows])
    assert once == rows
    twice = decode_samples([encode_sample(row) for row in once])
    assert csv_rows(once) == csv_rows(twice) == csv_rows(rows)
    assert [encode_sample(row) for row in twice] == [encode_sample(row) for row in rows]


def test_a_whole_number_in_a_column_of_fractions_is_a_fraction_once_it_was_on_the_wire() -> None:
    once = decode_sample(encode_sample(Sample(5, system_utime=0)))
    assert csv_rows([once]).startswith(b"5.0,,0.0,")


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"\x90",
        b"\xc0",
        b"\x91\xa1x",
        encode_sample(Sample(1.0))[:-1],
        b"\x92\x01\xcb\x40\x09\x21\xfb\x54\x44\x2d\x18",
    ],
)
def test_what_is_no_sample_is_refused(encoded: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_sample(encoded)


@settings(max_examples=40, deadline=None)
@given(row=samples().filter(lambda row: abs(row.timestamp) < 1e11), shift_ms=st.integers(0, 10**10))
def test_a_shift_changes_the_time_stamp_alone(row: Sample, shift_ms: int) -> None:
    shifted = decode_sample(shift_timestamp(encode_sample(row), shift_ms))
    assert shifted.timestamp == (round(row.timestamp * 1000) + shift_ms) / 1000
    assert msgspec.structs.replace(shifted, timestamp=row.timestamp) == row


def test_the_header_of_the_contract_is_not_quoted_anywhere_else() -> None:
    root = ROOT
    sources = [path for package in ("collector", "uploader", "protocol") for path in (root / package).rglob("*.py")]
    assert [path.name for path in sources if '"system_memory_buffers_mib"' in path.read_text(encoding="utf-8")] == []
