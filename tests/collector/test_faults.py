"""What may happen to a collector, one fault a test: real processes, and then rows are counted."""

import itertools
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from chaos.clock import ShiftedClock
from fakes.offset_clock import OffsetClock
from fakes.process_harness import (
    COLLECTOR,
    DEADLINE_S,
    Home,
    busy,
    has_state,
    python,
    recorder_of,
    rows_of_file,
    timestamps,
    wait_until,
)
from fakes.small_disk import SmallDisk
from msgspec import convert, structs
from rows import FIRST_TIMESTAMP

from sentinel_collector.console import Console, Verbosity
from sentinel_collector.delivery.delivery import Delivery
from sentinel_collector.run_description import RunDescription
from sentinel_protocol.common.endpoints import parse_address
from sentinel_protocol.wire.sample import COLUMNS, CSV_HEADER, Sample, csv_rows, decode_sample, encode_sample
from sentinel_uploader.admin.status_reader import read_status

INTERVAL_S = 0.1
MINUTE_S = 60.0
DAY_ROWS = 86_400
CHUNK_ROWS = 3600
"""Most rows of an object."""
GROWTH_KIB = 8 << 10
"""What a process may grow by for reasons of its own; a day of samples is more than twice that."""
_FULL = convert([1234.25 if "float" in str(field.type) else 1 << 40 for field in structs.fields(Sample)], Sample)


def runs_of(home: Home) -> list[dict[str, Any]]:
    if not (home.directory / "spool" / "spool.db").exists():
        return []
    runs: list[dict[str, Any]] = read_status(str(home.directory / "spool"))["runs"]
    return runs


def stored(home: Home, *, key: str | None = None) -> int:
    """Rows of all runs, or of one, that the uploader holds or has delivered."""
    return sum(run["rows_waiting"] + run["rows_delivered"] for run in runs_of(home) if key in {None, run["key"]})


def taken(output: Path) -> list[str]:
    """Whole lines that are in an `--output` file by now."""
    return rows_of_file(output) if output.exists() and output.stat().st_size >= len(CSV_HEADER) else []


def sleeper(home: Home) -> subprocess.Popen[str]:
    return home.start(*python("import time; time.sleep(300)"))


def kib(process: subprocess.Popen[str], what: str) -> int:
    """A figure of `/proc/PID/status` (proc(5)), 0 of a process that is gone."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{what}:"))


def end(process: subprocess.Popen[str], target: subprocess.Popen[str]) -> str:
    """End the tracked process, wait for the collector, which has nothing to complain of, and return what it said."""
    target.kill()
    target.wait()
    _, said = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, said
    assert "Traceback" not in said
    return said


def finished_run(home: Home) -> dict[str, Any]:
    (run,) = [run for run in home.local_runs() if run["state"] == "finished"]
    return run


def row_files(home: Home) -> list[Path]:
    return sorted((home.state / "collector").glob("*.rows"))


def full_row(number: int) -> bytes:
    """A sample with a value in every column, as a machine with GPUs has them."""
    return encode_sample(structs.replace(_FULL, timestamp=FIRST_TIMESTAMP + number, process_pid=number))


def recorded_for_a_day(home: Home, key: str) -> None:
    """Be a collector that takes a sample a second, finds nobody for a day, and is killed then."""
    clock = OffsetClock()
    delivery = Delivery(
        run_key=key,
        incarnation="yesterday",
        addresses=[parse_address(home.address, bind=False)],
        local_uploader=None,
        state_dir=str(home.state / "collector"),
        description=RunDescription(interval_s=1.0, metadata={}, host={}, cloud={}, cloud_pending=False),
        clock=clock,
        console=Console(Verbosity.QUIET),
        on_welcome=lambda _: None,
    )
    before = 0
    for number in range(1, DAY_ROWS + 1):
        delivery.add(full_row(number))
        clock.monotonic_s += 1.0
        if number == DAY_ROWS // 24:
            before = own_kib()
    assert own_kib() - before < GROWTH_KIB
    assert delivery.undelivered_rows == DAY_ROWS
    delivery._queue.close()  # a kill: nothing is said
    delivery._transport.close()


def own_kib() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 10


@pytest.mark.timeout(240)
def test_uploader_that_was_away_for_a_day_gets_everything_in_chunks_and_starves_nobody(home: Home) -> None:
    recorded_for_a_day(home, "day")
    target, output, other = sleeper(home), home.directory / "day.csv", home.directory / "other.csv"
    common = ("--connect", home.address, "--wait", "150")
    # One window an interval: with what lies there this goes on for more than a minute.
    day = home.start(
        COLLECTOR, *common, "--interval", "1", "--run-key", "day", "--output", str(output), "--pid", str(target.pid)
    )
    wait_until(lambda: taken(output), "it samples on its own")
    alone_kib = kib(day, "VmHWM")
    assert row_files(home)[0].stat().st_size > 2 * GROWTH_KIB << 10
    home.start_uploader()
    wait_until(lambda: stored(home), "the day's rows begin to arrive")
    words = ("--interval", "0.1", "--run-key", "other", "--output", str(other))
    done = home.collector(*common, *words, "--", *busy(0.5))
    assert done.returncode == 0
    assert stored(home, key="day") < DAY_ROWS, "nothing was waiting while the other one was served"
    assert home.local_rows(next(run for run in home.local_runs() if run["run_key"] == "other")) == taken(other)

    target.kill()
    target.wait()
    peak_kib = alone_kib
    while day.poll() is None:
        peak_kib = max(peak_kib, kib(day, "VmHWM"))
        time.sleep(0.02)
    assert day.returncode == 0
    assert peak_kib - alone_kib < GROWTH_KIB
    run = next(run for run in home.local_runs() if run["run_key"] == "day")
    expected = csv_rows([decode_sample(full_row(number)) for number in range(1, DAY_ROWS + 1)]).decode().splitlines()
    assert home.local_rows(run) == expected + taken(output)
    assert len(run["objects"]) >= DAY_ROWS / CHUNK_ROWS
    assert row_files(home) == []


def test_killed_while_its_rows_are_on_disk_it_goes_on_with_all_of_them(home: Home) -> None:
    target, output = sleeper(home), home.directory / "rows.csv"
    words = ("--connect", home.address, "--interval", "0.1", "--output", str(output), "--wait", "50")
    first = home.start(COLLECTOR, *words, "--pid", str(target.pid))
    wait_until(lambda: row_files(home), "the run's file")
    (file,) = row_files(home)
    empty = file.stat().st_size
    wait_until(lambda: file.stat().st_size > empty, "rows are written to disk: nobody takes them")
    wait_until(lambda: len(taken(output)) >= 30, "rows are taken")
    first.kill()
    assert first.wait() == -signal.SIGKILL
    at_kill = taken(output)

    home.start_uploader()
    second = home.start(COLLECTOR, *words, "--pid", str(target.pid))
    wait_until(lambda: len(taken(output)) > len(at_kill) + 3, "the next one goes on")
    end(second, target)
    rows, written = home.local_rows(finished_run(home)), taken(output)
    assert written[: len(at_kill)] == at_kill
    # The row of the kill's instant may be in the output and not yet in the file of rows.
    assert rows in (written, [line for line in written if line != at_kill[-1]])
    assert timestamps(rows) == sorted(set(timestamps(rows)))


def test_output_of_a_killed_run_is_continued_though_another_collector_delivered_its_rows(home: Home) -> None:
    target, output = sleeper(home), home.directory / "rows.csv"
    words = ("--connect", home.address, "--interval", "0.1", "--output", str(output), "--wait", "50")
    first = home.start(COLLECTOR, *words, "--pid", str(target.pid))
    wait_until(lambda: len(taken(output)) >= 25, "rows are taken")
    first.kill()
    first.wait()
    at_kill = taken(output)
    (file,) = row_files(home)
    # More than the minute for which it is left to whoever continues the run.
    os.utime(file, (time.time() - 300, time.time() - 300))
    home.start_uploader()
    other = home.collector("--connect", home.address, "--wait", "20", "--", "true")
    assert "delivered for an earlier collector" in other.stderr
    (left,) = [run for run in runs_of(home) if run["state"] != "finished"]
    assert left["rows_waiting"] >= len(at_kill) - 1

    second = home.start(COLLECTOR, *words, "--pid", str(target.pid))
    wait_until(lambda: len(taken(output)) > len(at_kill) + 3, "the output is gone on with")
    end(second, target)
    written = taken(output)
    assert written[: len(at_kill)] == at_kill
    (run,) = [run for run in home.local_runs() if run["run_key"] == left["key"]]
    assert home.local_rows(run) in (written, [line for line in written if line != at_kill[-1]])


def test_state_directory_that_cannot_be_written_is_told_once_and_rows_wait_in_memory(home: Home) -> None:
    (home.directory / "file").write_text("")
    state = home.directory / "file" / "state"
    target, output = sleeper(home), home.directory / "rows.csv"
    words = ("--connect", home.address, "--interval", "0.1", "--output", str(output), "--state-dir", str(state))
    process = home.start(COLLECTOR, *words, "--wait", "50", "--pid", str(target.pid))
    wait_until(lambda: len(taken(output)) >= 30, "rows are taken for longer than they stay in memory otherwise")
    home.start_uploader()
    wait_until(lambda: stored(home) >= 30, "they are delivered from memory")
    said = end(process, target)
    (told,) = [line for line in said.splitlines() if "in memory" in line]
    assert f"cannot keep undelivered samples in {state}" in told
    assert "Not a directory" in told
    assert home.local_rows(finished_run(home)) == taken(output)
    assert row_files(home) == []


def test_full_disk_below_the_state_directory_is_told_and_rows_wait_in_memory(home: Home, tmp_path: Path) -> None:
    target, output = sleeper(home), home.directory / "rows.csv"
    with SmallDisk(tmp_path / "disk") as disk:
        words = ("--connect", home.address, "--interval", "0.1", "--output", str(output), "--wait", "50")
        where = ("--state-dir", str(disk.mount / "state"))
        process = home.start(*disk.prefix, COLLECTOR, *words, *where, "--pid", str(target.pid))
        wait_until(lambda: len(taken(output)) >= 5, "rows are taken")
        disk.fill()
        # The first rows may still fit into the page that their file has begun.
        wait_until(lambda: len(taken(output)) >= 60, "rows are taken for longer than they stay in memory otherwise")
        home.start_uploader()
        wait_until(lambda: stored(home) >= 60, "all are delivered")
        said = end(process, target)
    assert said.count("cannot write undelivered samples to disk; keeping them in memory") == 1
    assert home.local_rows(finished_run(home)) == taken(output)


def test_older_of_two_collectors_with_one_run_key_stops_with_a_clear_line_and_its_job_goes_on(home: Home) -> None:
    home.start_uploader()
    outputs = [home.directory / "older.csv", home.directory / "newer.csv"]
    go = home.directory / "go"
    job = python(f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.02)\nraise SystemExit(4)")
    common = ("--connect", home.address, "--interval", "0.1", "--run-key", "shared", "--wait", "50")
    older = home.start(COLLECTOR, *common, "--output", str(outputs[0]), "--", *job)
    wait_until(lambda: stored(home) >= 3, "the older one is heard")
    newer = home.start(COLLECTOR, *common, "--output", str(outputs[1]), "--pid", str(os.getpid()))
    wait_until(lambda: len(taken(outputs[1])) >= 5, "the newer one samples")
    at_rest = wait_until_it_rests(outputs[0])
    assert older.poll() is None, "its job still runs"
    go.touch()
    _, said = older.communicate(timeout=DEADLINE_S)
    assert older.returncode == 4
    assert said.count("a newer collector has taken over this run; this one stops recording") == 1
    newer.send_signal(signal.SIGTERM)
    newer.communicate(timeout=DEADLINE_S)
    assert newer.returncode == 0

    run = finished_run(home)
    assert run["run_key"] == "shared"
    rows, kept = home.local_rows(run), sorted((home.state / "collector" / "kept").glob("shared-*.csv"))
    aside = [line for path in kept for line in taken(path)]
    # Every row of both is in the run or set aside, and in one of them only.
    assert sorted(rows + aside) == sorted(at_rest + taken(outputs[1]))
    assert rows[: len(at_rest) - len(aside)] == at_rest[: len(at_rest) - len(aside)]
    assert [path.name for path in kept if str(path) not in said] == []


def wait_until_it_rests(output: Path) -> list[str]:
    """Return the rows when none was added for ten intervals."""
    while True:
        rows = taken(output)
        time.sleep(10 * INTERVAL_S)
        if taken(output) == rows:
            return rows


def test_process_that_is_gone_before_the_first_sample_leaves_a_run_that_has_ended(home: Home) -> None:
    target, output = sleeper(home), home.directory / "rows.csv"
    home.start_uploader()
    words = ("--connect", home.address, "--interval", "60", "--output", str(output), "--wait", "50")
    process = home.start(COLLECTOR, *words, "--pid", str(target.pid))
    wait_until(lambda: runs_of(home), "the run begins")
    assert (taken(output), stored(home)) == ([], 0)
    end(process, target)
    run = finished_run(home)
    assert (run["status"], run["exit_code"]) == ("finished", None)
    assert home.local_rows(run) == taken(output)
    assert len(taken(output)) <= 1


def test_process_that_is_dead_but_not_buried_leaves_a_run_that_has_ended(home: Home) -> None:
    target = home.start("true")
    wait_until(lambda: has_state(target.pid, "Z"), "the process is a zombie")
    done = home.collector("--pid", str(target.pid))
    assert done.returncode == 0, done.stderr
    (run,) = home.local_runs()
    assert (run["state"], run["exit_code"]) == ("finished", None)
    assert run["rows"] == len(home.local_rows(run)) <= 1


def true_intervals(rows: Sequence[str], *, but: int = 0) -> None:
    """Check each row's own figures: CPU seconds over cores in use is the time since the row before.

    `but` rows follow a step of the clock, which their time stamps show.
    """
    cells = [dict(zip(COLUMNS, line.split(","), strict=True)) for line in rows]
    times = timestamps(rows)
    wrong = 0
    for before, at, cell in zip(times, times[1:], cells[1:], strict=False):
        used = float(cell["system_utime"]) + float(cell["system_stime"])
        if float(cell["system_cpu_usage"]) < 0.2 or at - before < INTERVAL_S / 2:
            # Ticks are too coarse to tell.
            continue
        wrong += at - before != pytest.approx(used / float(cell["system_cpu_usage"]), rel=0.1, abs=0.02)
    assert wrong == but


@pytest.mark.parametrize("seconds", [-3600, 3600], ids=["back", "forth"])
def test_clock_that_is_stepped_leaves_time_stamps_increasing_and_intervals_true(
    home: Home, tmp_path: Path, seconds: int
) -> None:
    wall, output = ShiftedClock(tmp_path, "wall"), home.directory / "rows.csv"
    home.start_uploader()
    words = ("--connect", home.address, "--interval", "0.1", "--output", str(output), "--wait", "50")
    job = python("while True: sum(range(10**5))")
    process = home.start(COLLECTOR, *words, "--", *job, env=wall.environ)
    wait_until(lambda: len(taken(output)) >= 8, "rows before the step")
    assert not wall.wrong_readings
    began, before = time.time(), len(taken(output))
    wall.turn(seconds)
    wait_until(lambda: len(taken(output)) >= before + 12, "rows after the step")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=DEADLINE_S)
    elapsed = time.time() - began

    assert wall.wrong_readings > 12
    rows = taken(output)
    assert home.local_rows(finished_run(home)) == rows
    times = timestamps(rows)
    assert times == sorted(set(times))
    steps = [after - at for at, after in itertools.pairwise(times)]
    jumps = [step for step in steps if step > 60]
    # Forth is followed, at once and once; back is waited for.
    assert len(jumps) == (1 if seconds > 0 else 0)
    assert sum(steps[before - 1 :]) - sum(jumps) < elapsed + 2
    true_intervals(rows, but=len(jumps))


def test_clock_that_is_set_back_between_two_collectors_of_a_run_leaves_time_stamps_increasing(
    home: Home, tmp_path: Path
) -> None:
    wall, target, output = ShiftedClock(tmp_path, "wall"), sleeper(home), home.directory / "rows.csv"
    home.start_uploader()
    words = ("--connect", home.address, "--interval", "0.1", "--output", str(output), "--wait", "50")
    first = home.start(COLLECTOR, *words, "--pid", str(target.pid), env=wall.environ)
    wait_until(lambda: stored(home) >= 8, "rows before the step")
    first.kill()
    first.wait()
    at_kill = taken(output)
    wall.turn(-3600)
    second = home.start(COLLECTOR, *words, "--pid", str(target.pid), env=wall.environ)
    wait_until(lambda: len(taken(output)) >= len(at_kill) + 8, "rows after the step")
    end(second, target)
    assert wall.wrong_readings
    assert time.time() - 3600 < timestamps(at_kill)[0], "the clock is behind what was recorded"

    rows, written = home.local_rows(finished_run(home)), taken(output)
    times = timestamps(rows)
    assert times == sorted(set(times))
    assert times[-1] - times[0] < 600
    assert len(rows) in (len(written), len(written) - 1)


@pytest.mark.timeout(240)
def test_collector_that_is_suspended_for_a_minute_makes_one_row_of_it_and_no_burst(home: Home) -> None:
    home.start_uploader()
    output, ready, rest = home.directory / "rows.csv", home.directory / "ready", home.directory / "rest"
    # Nothing is used up in the minute: others need the machine.
    code = (
        f"import os, time\nopen({str(ready)!r}, 'w').close()\n"
        f"while True: time.sleep(0.1) if os.path.exists({str(rest)!r}) else sum(range(10**5))"
    )
    words = ("--connect", home.address, "--interval", "0.1", "--output", str(output), "--wait", "50")
    process = home.start(COLLECTOR, *words, "--", *python(code))
    wait_until(lambda: ready.exists() and len(taken(output)) >= 8, "rows before")
    recorder = recorder_of(process.pid)
    os.kill(recorder, signal.SIGSTOP)
    wait_until(lambda: has_state(recorder, "T"), "the recorder is stopped")
    before = len(taken(output))
    rest.touch()
    time.sleep(MINUTE_S)
    rest.unlink()
    assert len(taken(output)) == before
    resumed = time.monotonic()
    os.kill(recorder, signal.SIGCONT)
    wait_until(lambda: len(taken(output)) >= before + 10, "rows after")
    after = len(taken(output)) - before
    assert after <= (time.monotonic() - resumed) / INTERVAL_S + 2
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=DEADLINE_S)

    rows = taken(output)
    assert home.local_rows(finished_run(home)) == rows
    times = timestamps(rows)
    gaps = [at - earlier for earlier, at in itertools.pairwise(times)]
    # The one row behind the gap holds all of the time; what the job used then is not lost.
    assert gaps[before - 1] >= MINUTE_S or gaps[before] >= MINUTE_S
    true_intervals(rows)
