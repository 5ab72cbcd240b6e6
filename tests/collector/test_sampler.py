"""Rows: time stamps, bounds, exact sums, and what the columns hold."""

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Collection
from pathlib import Path

import pytest
from fakes.scripted_backend import SteppedClock
from hypothesis import given
from hypothesis import strategies as st
from locations import TESTS

from sentinel_collector.sampling.carry_over import ByteCarryOver, CpuCarryOver
from sentinel_collector.sampling.sampler import Sampler
from sentinel_collector.sampling.timestamps import MonotonicTimestamps
from sentinel_collector.sensors import baseline
from sentinel_collector.sensors.interfaces import GpuReading
from sentinel_protocol.common.clock import SystemClock
from sentinel_protocol.wire.sample import COLUMNS, Sample

linux = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs Linux' /proc")


class PassingClock(SteppedClock):
    """Times as the test sets them; `wait` lets them pass."""

    def wait_for(self, event: threading.Event, timeout_s: float | None) -> bool:
        self.advance(timeout_s or 0.0)
        return event.is_set()


def test_time_goes_on_while_the_wall_clock_is_behind() -> None:
    timeline = MonotonicTimestamps(wall=1000.0, monotonic=0.0)
    assert timeline.next(wall=1001.0, monotonic=1.0) == 1001.0
    # An hour back, then seconds of it are made up, then all.
    assert timeline.next(wall=-2598.0, monotonic=2.0) == 1002.0
    assert timeline.next(wall=-2597.5, monotonic=2.5) == 1002.5
    assert timeline.next(wall=1003.0, monotonic=3.5) == 1003.5
    assert timeline.next(wall=1010.0, monotonic=4.5) == 1010.0


def test_a_clock_set_forward_is_followed() -> None:
    timeline = MonotonicTimestamps(wall=1000.0, monotonic=0.0)
    assert timeline.next(wall=5000.0, monotonic=1.0) == 5000.0
    assert timeline.next(wall=5001.0, monotonic=2.0) == 5001.0


def test_a_continued_run_goes_on_after_its_last_row() -> None:
    timeline = MonotonicTimestamps(wall=1000.0, monotonic=0.0)
    timeline.advance_past(2000.5, monotonic=1.0)
    assert timeline.next(wall=1001.0, monotonic=1.0) == 2000.501
    assert timeline.next(wall=1002.0, monotonic=2.0) == 2001.5
    timeline.advance_past(1.0, monotonic=2.0)
    assert timeline.next(wall=1003.0, monotonic=3.0) == 2002.5


@given(st.lists(st.tuples(st.floats(-1e5, 1e5), st.floats(0, 10)), max_size=40))
def test_time_stamps_always_increase(steps: list[tuple[float, float]]) -> None:
    timeline = MonotonicTimestamps(wall=1.7e9, monotonic=100.0)
    wall, monotonic, last = 1.7e9, 100.0, 1.7e9
    for jump, elapsed in steps:
        wall, monotonic = wall + jump + elapsed, monotonic + elapsed
        stamp = timeline.next(wall=wall, monotonic=monotonic)
        assert stamp > last
        assert stamp == round(stamp, 3)
        last = stamp


@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 10**7), st.integers(0, 10**7)), max_size=40))
def test_carried_cpu_is_bounded_and_loses_nothing(rows: list[tuple[int, int, int]]) -> None:
    carried = CpuCarryOver()
    shown_user = shown_system = 0
    for user, system, limit in rows:
        row = carried.for_row((user, system), limit)
        assert min(row) >= 0
        assert sum(row) <= limit
        shown_user, shown_system = shown_user + row[0], shown_system + row[1]
    last = carried.for_row((0, 0), None)
    assert shown_user + last[0] == sum(row[0] for row in rows)
    assert shown_system + last[1] == sum(row[1] for row in rows)


def test_carried_growth_is_never_shown_below_zero() -> None:
    carried = ByteCarryOver()
    assert [carried.for_row(grown) for grown in (10, -4, 3, None, 5)] == [10, 0, 0, None, 4]
    cpu = CpuCarryOver()
    assert [cpu.for_row(grown, 100) for grown in ((50, 0), (-20, 5), (30, 0))] == [(50, 0), (0, 5), (10, 0)]


def made_up(proc: Path, *, user: int, free: int = 600, forks: int = 9) -> None:
    (proc / "net").mkdir(parents=True, exist_ok=True)
    (proc / "self").mkdir(exist_ok=True)
    (proc / "stat").write_text(f"cpu  {user} 0 0 0\ncpu0 1\ncpu1 1\nprocesses {forks}\n")
    (proc / "meminfo").write_text(f"MemTotal: 1024 kB\nMemFree: {free} kB\nMemAvailable: {free} kB\n")
    (proc / "diskstats").write_text("")
    (proc / "net/dev").write_text("a\nb\n")


def made_up_sampler(tmp_path: Path, clock: PassingClock) -> Sampler:
    proc = tmp_path / "proc"
    made_up(proc, user=100)
    before = baseline.Baseline(clock, proc=str(proc))
    return Sampler(
        clock=clock, baseline=before, root_pid=None, own_child=False, interval_s=1.0, proc=str(proc), sys=str(tmp_path)
    )


def test_a_row_never_has_more_cpu_than_the_machine_and_the_sum_is_true(tmp_path: Path) -> None:
    clock = PassingClock()
    sampler = made_up_sampler(tmp_path, clock)
    rows = []
    for user in (303, 503, 503):
        made_up(tmp_path / "proc", user=user)
        clock.advance(1.0)
        rows.append(sampler.sample())
    assert [row.system_utime for row in rows] == [2.0, 2.0, 0.03]
    assert [row.system_cpu_usage for row in rows] == [2.0, 2.0, 0.03]
    made_up(tmp_path / "proc", user=504)
    clock.advance(0.002)
    last = sampler.final(None)
    assert last is not None
    # 10 ms in a row of 2 ms: the seconds are true, the rate is bounded.
    assert (last.system_utime, last.system_cpu_usage) == (0.01, 2.0)
    assert sampler.final(None) is None
    sampler.close()


def test_what_cannot_be_read_is_empty(tmp_path: Path) -> None:
    clock = PassingClock()
    sampler = made_up_sampler(tmp_path, clock)
    for name in ("meminfo", "diskstats", "net/dev"):
        os.unlink(tmp_path / "proc" / name)
    sampler.close()
    clock.advance(1.0)
    row = sampler.sample()
    assert row.system_memory_used_mib is None
    assert row.system_disk_read_bytes is None
    assert row.system_net_sent_bytes is None
    assert row.system_disk_space_total_gb is None
    assert row.system_cpu_usage == 0.0
    sampler.close()


def check_types(row: Sample) -> None:
    """Floats and integers as the columns declare them, no negative zero, no more decimals than promised."""
    for name in COLUMNS:
        value = getattr(row, name)
        declared = str(Sample.__annotations__[name])
        if value is None:
            continue
        assert type(value).__name__ in declared, name
        assert value >= 0, name
        assert str(value)[0] != "-", name
        if isinstance(value, float):
            assert value == round(value, 6), name


class TwoGpus:
    """A GPU sensor that remembers whom it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def read(self, pids: Collection[int]) -> GpuReading:
        self.asked = sorted(pids)
        return GpuReading(1.5, 2048.0, 2, 0.5, 1024.0, None)


@linux
def test_a_host_row_has_every_system_column_and_no_process_column() -> None:
    clock = SystemClock()
    sampler = Sampler(clock=clock, baseline=baseline.Baseline(clock), root_pid=None, own_child=False, interval_s=1.0)
    row = sampler.sample()
    check_types(row)
    empty = {name for name in COLUMNS if getattr(row, name) is None}
    storage = {name for name in COLUMNS if "disk_space" in name}
    assert empty - storage == {name for name in COLUMNS if name.startswith("process_")}
    assert (row.system_gpu_usage, row.system_gpu_vram_mib, row.system_gpu_utilized) == (0.0, 0.0, 0)
    assert not sampler.root_alive()
    assert (sampler.living, sampler.peak_memory_mib, sampler.accounting) == (0, None, "proc")
    sampler.close()


@linux
def test_a_tracked_row_has_every_column() -> None:
    clock = SystemClock()
    before = baseline.Baseline(clock)
    code = "import sys; print('up', flush=True); sys.stdin.read()"
    job = subprocess.Popen(
        [sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert job.stdout is not None
    # Before its exec it has next to no memory.
    assert job.stdout.readline() == b"up\n"
    gpu = TwoGpus()
    sampler = Sampler(clock=clock, baseline=before, root_pid=job.pid, own_child=True, interval_s=1.0, gpu=gpu)
    try:
        row = sampler.sample()
        check_types(row)
        assert {name for name in COLUMNS if getattr(row, name) is None} - {
            name for name in COLUMNS if "disk_space" in name
        } == {"process_gpu_utilized"}
        assert (row.process_pid, row.process_children, row.system_gpu_usage) == (job.pid, 0, 1.5)
        assert gpu.asked == [job.pid]
        assert sampler.root_alive()
        assert sampler.sample().timestamp > row.timestamp
        sampler.advance_past(row.timestamp + 100)
        assert sampler.sample().timestamp > row.timestamp + 100
        peak = sampler.peak_memory_mib
        assert peak is not None
        assert peak > 1
    finally:
        job.communicate(b"\n")
        sampler.close()


class FixedAccounting:
    """A counter that says what it was made with, then goes bad."""

    name = "cgroup"

    def __init__(self, *growths: tuple[int, int] | None) -> None:
        self._growths = list(growths)

    def growth_us(self) -> tuple[int, int] | None:
        return self._growths.pop(0)


@linux
def test_another_counter_stands_in_for_the_ledger_until_it_goes_bad() -> None:
    clock = SystemClock()
    before = baseline.Baseline(clock)
    job = subprocess.Popen([sys.executable, "-S", "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    exact = FixedAccounting((3, 1), None)
    sampler = Sampler(clock=clock, baseline=before, root_pid=job.pid, own_child=True, interval_s=1.0, accounting=exact)
    try:
        assert sampler.accounting == "cgroup"
        row = sampler.sample()
        assert (row.process_utime, row.process_stime) == (3e-6, 1e-6)
        sampler.sample()
        assert sampler.accounting == "proc"
    finally:
        job.communicate(b"\n")
        sampler.close()


@linux
def test_a_small_jobs_peak_is_not_the_collectors_own() -> None:
    ballast = bytearray(os.urandom(1 << 20) * 64)
    clock = SystemClock()
    before = baseline.Baseline(clock)
    code = "import sys; print('up', flush=True); sys.stdin.read()"
    job = subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    # Before its exec it is a copy of this process, and just after it hardly anything.
    assert job.stdout is not None
    assert job.stdout.readline() == b"up\n"
    job.stdout.close()
    sampler = Sampler(clock=clock, baseline=before, root_pid=job.pid, own_child=True, interval_s=1.0)
    sampler.sample()
    assert job.stdin is not None
    job.stdin.close()

    def reap() -> resource.struct_rusage:
        _pid, status, usage = os.wait4(job.pid, 0)
        job.returncode = status
        return usage

    last = sampler.final(reap)
    assert last is not None
    assert last.process_memory_mib is not None
    assert 1 < last.process_memory_mib < 40
    peak = sampler.peak_memory_mib
    assert peak is not None
    assert 1 < peak < 40
    assert len(ballast) == 64 << 20
    sampler.close()


@linux
@linux
def test_a_job_that_nobody_has_seen_alive_has_no_peak_rather_than_none_at_all() -> None:
    ballast = bytearray(os.urandom(1 << 20) * 64)
    clock = SystemClock()
    before = baseline.Baseline(clock)
    pid = os.posix_spawn("/bin/true", ["true"], os.environ)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    sampler = Sampler(clock=clock, baseline=before, root_pid=pid, own_child=True, interval_s=1.0)
    last = sampler.final(lambda: os.wait4(pid, 0)[2])
    assert last is not None
    assert (last.process_memory_mib, sampler.peak_memory_mib) == (None, None)
    assert len(ballast) == 64 << 20
    sampler.close()


def test_the_base_line_needs_nothing_heavy() -> None:
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); before = set(sys.modules);"
        "import sentinel_collector.sensors.baseline; print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, str(TESTS.parent / "collector")], capture_output=True, text=True, check=True
    )
    package = "sentinel_collector"
    loaded = [package, f"{package}.procfs", f"{package}.sensors", f"{package}.sensors.baseline"]
    assert done.stdout.strip() == str(loaded)


def test_a_base_line_without_proc_is_empty(tmp_path: Path) -> None:
    clock = PassingClock()
    found = baseline.Baseline(clock, proc=str(tmp_path))
    assert (found.stat, found.diskstats, found.net_dev, found.status) == (b"", b"", b"", b"")
    assert (found.wall, found.monotonic) == (clock.wall, clock.mono)


def test_without_a_linux_proc_psutil_reads(tmp_path: Path) -> None:
    clock = SystemClock()
    before = baseline.Baseline(clock, proc=str(tmp_path))
    code = "import time\nwhile time.process_time() < .15: pass\nprint(1, flush=True)\ninput()"
    job = subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert job.stdout is not None
    assert job.stdout.readline() == b"1\n"
    sampler = Sampler(
        clock=clock, baseline=before, root_pid=job.pid, own_child=True, interval_s=1.0, proc=str(tmp_path)
    )
    row = sampler.sample()
    check_types(row)
    assert row.process_pid == job.pid
    assert row.process_utime is not None
    assert row.process_stime is not None
    assert 0.1 <= row.process_utime + row.process_stime <= 0.5
    assert row.system_memory_used_mib is not None
    assert row.system_memory_used_mib > 1
    assert sampler.root_alive()
    sampler.exclude(1)
    assert sampler.living == 1

    def reap() -> resource.struct_rusage:
        _pid, status, usage = os.wait4(job.pid, 0)
        job.returncode = status
        return usage

    job.stdin.close() if job.stdin else None
    last = sampler.final(reap)
    assert last is not None
    assert not sampler.root_alive()
    job.stdout.close()
    sampler.close()
