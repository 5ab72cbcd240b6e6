"""Figures of a run: the same for the same rows, however they came in."""

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sentinel_protocol.wire.run_statistics import RunStatistics
from sentinel_protocol.wire.sample import Sample


def test_means_are_weighted_by_each_row_s_interval_and_totals_are_sums() -> None:
    statistics = RunStatistics()
    statistics.add(
        [
            Sample(10.0, system_utime=1.0, system_stime=1.0, system_cpu_usage=2.0, process_disk_read_bytes=10),
            Sample(13.0, system_utime=3.0, system_stime=0.0, system_cpu_usage=1.0, process_disk_read_bytes=5),
        ]
    )
    summary = statistics.summary()
    # The first row's interval is its CPU seconds divided by the cores in use: one second.
    assert summary["duration_seconds"] == 4.0
    assert summary["rows"] == 2
    assert summary["system_cpu_usage"] == {"mean": pytest.approx((2.0 * 1 + 1.0 * 3) / 4), "max": 2.0}
    assert summary["system_utime"] == {"total": 4.0}
    assert summary["process_disk_read_bytes"] == {"total": 15}
    assert "process_cpu_usage" not in summary


def test_a_run_without_rows_has_figures_too() -> None:
    assert RunStatistics().summary() == {"rows": 0, "duration_seconds": 0.0}


def test_a_copy_does_not_change_the_original() -> None:
    statistics = RunStatistics()
    statistics.add([Sample(1.0, system_cpu_usage=1.0, system_utime=1.0)])
    before = statistics.summary()
    statistics.copy().add([Sample(2.0, system_cpu_usage=3.0, system_utime=1.0)])
    assert statistics.summary() == before


def test_totals_stay_whole_across_a_restart() -> None:
    statistics = RunStatistics()
    statistics.add([Sample(1.0, system_net_recv_bytes=2**60 + 1)])
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(statistics), type=RunStatistics)
    again.add([Sample(2.0, system_net_recv_bytes=1)])
    assert again.summary()["system_net_recv_bytes"] == {"total": 2**60 + 2}
    assert isinstance(again.totals["system_net_recv_bytes"], int)


values = st.none() | st.floats() | st.integers(0, 2**64 - 1).map(float)
counts = st.none() | st.integers(-(2**63), 2**64 - 1)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.builds(
            Sample,
            st.floats(0, 1e11),
            system_utime=values,
            system_stime=values,
            system_cpu_usage=values,
            process_memory_mib=values,
            system_disk_read_bytes=counts,
        ),
        max_size=8,
    ),
    cut=st.integers(0, 8),
)
def test_rows_that_lie_break_nothing_and_batches_do_not_matter(rows: list[Sample], cut: int) -> None:
    together, apart = RunStatistics(), RunStatistics()
    together.add(rows)
    apart.add(rows[:cut])
    # A batch is committed, and read again after a restart.
    apart = msgspec.msgpack.decode(msgspec.msgpack.encode(apart), type=RunStatistics)
    apart.add(rows[cut:])
    assert json.dumps(apart.summary()) == json.dumps(together.summary())
