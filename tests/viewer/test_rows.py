"""Rows are read as they are: gaps stay gaps, unknown stays unknown, what is damaged costs no more than itself."""

import gzip
from math import isnan
from pathlib import Path

import pytest
from fakes.delivered_runs import START, packed, sample, write_run
from hypothesis import given
from hypothesis import strategies as st

from sentinel_protocol.wire.run_statistics import RunStatistics
from sentinel_protocol.wire.sample import CSV_HEADER, Sample, csv_rows
from sentinel_viewer.output.sparkline import row_sparkline, sparkline
from sentinel_viewer.rows.downsample import into_buckets
from sentinel_viewer.rows.reader import parse_rows, read_rows
from sentinel_viewer.rows.statistics import all_statistics, column_statistics, percentile
from sentinel_viewer.rows.table import Rows
from sentinel_viewer.runs.naming import Library


def rows_of(*samples: Sample, interval_s: float | None = 1.0) -> Rows:
    return parse_rows([("0001.csv.gz", packed(samples))], interval_s)


def read(directory: Path) -> Rows:
    library = Library(str(directory.parent), {"XDG_CACHE_HOME": str(directory.parent / "cache")})
    return read_rows(library.find([str(directory)])[0])


def test_objects_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    directory = write_run(tmp_path, "run", [sample(second, process_pid=second + 1) for second in range(25)], objects=5)
    (directory / "0005.csv.gz").rename(directory / "10000.csv.gz")
    (directory / "run.json").unlink()
    (directory / "0004.csv.gz").rename(directory / "9999.csv.gz")
    rows = read(directory)
    assert [int(pid) for pid in rows.values("process_pid")] == list(range(1, 26))
    assert rows.remarks == []


def test_a_run_that_is_still_recorded_has_the_rows_delivered_so_far(tmp_path: Path) -> None:
    directory = write_run(tmp_path, "run", [sample(second) for second in range(6)], objects=2)
    (directory / "run.json").write_text('{"run_id": "run", "state": "running"}')
    assert len(read(directory)) == 6


def test_unknown_is_not_zero() -> None:
    rows = rows_of(sample(0, process_memory_mib=None), sample(1, process_memory_mib=50.0))
    first, second = rows.values("process_memory_mib")
    assert isnan(first)
    assert second == 50
    statistics = column_statistics(rows, "process_memory_mib")
    assert statistics is not None
    assert (statistics.known_rows, statistics.mean, statistics.low) == (1, 50, 50)
    assert not rows.has("process_gpu_usage")
    assert column_statistics(rows, "process_gpu_usage") is None


def test_a_gap_is_where_nobody_sampled() -> None:
    rows = rows_of(*(sample(second) for second in (0, 1, 2, 60, 61)))
    (gap,) = rows.gaps
    assert (gap.start - START, gap.end - START) == (2, 59)
    assert list(rows.lengths) == [1, 1, 1, 1, 1]
    assert rows.duration_s == 5


def test_a_late_row_that_covers_the_time_is_no_gap() -> None:
    late = sample(10, system_utime=12.0, system_stime=4.0)
    rows = rows_of(sample(0), sample(1), sample(2), late)
    assert rows.gaps == []
    assert list(rows.lengths) == [1, 1, 1, 8]


def test_a_gap_without_cpu_figures_counts_one_interval() -> None:
    rows = rows_of(*(sample(second, system_cpu_usage=None) for second in (0, 1, 30)))
    assert len(rows.gaps) == 1
    assert rows.lengths[2] == 1


def test_a_counter_that_gains_after_a_gap_has_the_rate_of_its_interval() -> None:
    rows = rows_of(sample(0), sample(1), sample(50, process_disk_write_bytes=5000))
    assert rows.rates("process_disk_write_bytes")[2] == 5000


@pytest.mark.parametrize("cut", [30, 200, 900])
def test_what_is_left_of_a_cut_object_is_read(cut: int) -> None:
    whole = packed(sample(second, process_pid=second + 1) for second in range(400))
    assert cut < len(whole)
    rows = parse_rows([("0001.csv.gz", whole[:cut]), ("0002.csv.gz", packed([sample(1000)]))], 1.0)
    assert 1 <= len(rows) < 401
    assert [int(pid) for pid in rows.values("process_pid")][:-1] == list(range(1, len(rows)))
    assert rows.remarks == ["0001.csv.gz is cut off: what can be read of it is shown"]


def test_an_object_whose_bytes_are_changed_does_not_hide_the_others() -> None:
    broken = bytearray(packed(sample(second) for second in range(400)))
    broken[len(broken) // 2] ^= 0xFF
    rows = parse_rows([("0001.csv.gz", bytes(broken)), ("0002.csv.gz", packed([sample(1000)]))], 1.0)
    assert list(rows.times) == [START + 1000]
    assert rows.remarks[0].startswith("0001.csv.gz is damaged")


def test_an_object_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    directory = write_run(tmp_path, "run", [sample(second) for second in range(9)], objects=3)
    (directory / "0002.csv.gz").unlink()
    rows = read(directory)
    assert len(rows) == 6
    assert "0002.csv.gz" in rows.remarks[0]


def test_columns_of_another_version_are_read_with_it() -> None:
    old = b"timestamp,process_memory_mib\n1796000000.0,5.0\n"
    new = b"timestamp,process_memory_mib,host_swap_mib\n1796000001.0,6.0,7.5\n"
    rows = parse_rows([("0001.csv.gz", gzip.compress(old)), ("0002.csv.gz", gzip.compress(new))])
    assert list(rows.values("process_memory_mib")) == [5, 6]
    assert isnan(rows.values("host_swap_mib")[0])
    assert rows.values("host_swap_mib")[1] == 7.5


def test_lines_that_are_no_rows_are_left_out() -> None:
    text = b"timestamp,process_memory_mib\n1796000000.0,5.0\nnonsense\nnan,1.0\n1796000001.0,inf\n1796000002.0,x\n"
    rows = parse_rows([("rows.csv", text)])
    assert len(rows) == 3
    assert [value == value for value in rows.values("process_memory_mib")] == [True, False, False]
    assert rows.remarks == ["rows.csv: 2 rows cannot be read and are left out"]


def test_rows_out_of_order_are_put_into_it() -> None:
    rows = parse_rows([("0002.csv.gz", packed([sample(5)])), ("0001.csv.gz", packed([sample(1)]))], 1.0)
    assert list(rows.times) == [START + 1, START + 5]
    assert rows.remarks == ["the rows were not in time order"]


def test_the_file_that_a_collector_wrote_is_read_too() -> None:
    rows = parse_rows([("rows.csv", CSV_HEADER + csv_rows([sample(0), sample(1)]))])
    assert len(rows) == 2


@given(st.lists(st.tuples(st.floats(0, 64), st.integers(0, 2**40), st.floats(0, 1e6)), min_size=1, max_size=60))
def test_figures_are_those_of_the_uploader(values: list[tuple[float, int, float]]) -> None:
    samples = [
        sample(second, cores=cores, process_disk_write_bytes=size, process_memory_mib=memory)
        for second, (cores, size, memory) in enumerate(values)
    ]
    expected = RunStatistics()
    expected.add(samples)
    summary = expected.summary()
    found = all_statistics(rows_of(*samples))
    for name in ("process_cpu_usage", "process_memory_mib"):
        assert found[name].mean == pytest.approx(summary[name]["mean"], abs=1e-3)
        assert found[name].high == pytest.approx(summary[name]["max"], abs=1e-3)
    assert found["process_disk_write_bytes"].total == summary["process_disk_write_bytes"]["total"]


def test_percentiles_are_values_that_occurred() -> None:
    assert percentile([1.0], 95) == 1
    assert percentile([float(number) for number in range(1, 101)], 95) == 95
    assert percentile([float(number) for number in range(1, 101)], 50) == 50


@given(
    st.lists(st.tuples(st.floats(0, 10), st.one_of(st.just(float("nan")), st.floats(-1e9, 1e9))), min_size=1),
    st.integers(1, 50),
)
def test_downsampling_keeps_the_lowest_and_the_highest(steps: list[tuple[float, float]], count: int) -> None:
    times, now = [], 100.0
    for step, _ in steps:
        now += step
        times.append(now)
    values = [value for _, value in steps]
    buckets = into_buckets(times, values, 100.0, now or 101.0, count) if now > 100 else []
    known = [value for value in values if value == value]
    if buckets and known:
        assert min(bucket.low for bucket in buckets if bucket.low is not None) == min(known)
        assert max(bucket.high for bucket in buckets if bucket.high is not None) == max(known)
        assert all(bucket.low <= bucket.mean <= bucket.high for bucket in buckets if bucket.low is not None
                   and bucket.mean is not None and bucket.high is not None and abs(bucket.high) < 1)  # fmt: skip
    assert len(buckets) in {0, count}


def test_a_peak_of_one_row_is_seen_in_a_line_of_bars() -> None:
    rows = rows_of(*(sample(second, cores=3.0 if second == 777 else 0.1) for second in range(2000)))
    assert "█" in row_sparkline(rows, rows.values("process_cpu_usage"), 20)
    assert sparkline([0.0, None, 8.0]) == "▁·█"
