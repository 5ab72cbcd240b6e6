"""NVIDIA GPUs: the collector's code and pynvml against a stub of the driver's library."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.nvml import START_US, GpuReader, NvmlPlay, break_library, build_nvml_stub, wait_until

from sentinel_collector.sensors.gpu.nvml_process_usage import ProcessUsage, UsageSample
from sentinel_collector.sensors.interfaces import GpuReading

TWO_GPUS = """\
device 0 used 1000 reserved 500 total 81920 util 80 mig 0 name NVIDIA H100 80GB HBM3
device 1 used 24 reserved 500 total 81920 util 0 mig 0 name NVIDIA H100 80GB HBM3"""
MIG_GPU = """\
device 0 used 0 reserved 500 total 40960 util 0 mig 1 name NVIDIA A100-SXM4-40GB
instance 0/0 used 3000 reserved 20 total 20096
instance 0/2 used 100 reserved 20 total 9984"""
UNKNOWN = GpuReading(None, None, None, None, None, None)
FIRST_GPU, SECOND_GPU = GpuReading(0.8, 1000, 1, 0, 0, 0), GpuReading(0, 24, 0, 0, 0, 0)
OURS, OUR_CHILD, FOREIGN = 4101, 4102, 999
TREE = [OURS, OUR_CHILD]


@pytest.fixture(scope="session")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_nvml_stub(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def play(tmp_path: Path) -> NvmlPlay:
    return NvmlPlay(tmp_path)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc of the initial pid namespace, in which only our own processes and one other live."""
    for pid in (OURS, OUR_CHILD, FOREIGN):
        (tmp_path / "proc" / str(pid)).mkdir(parents=True)
    (tmp_path / "proc/self/ns").mkdir(parents=True)
    (tmp_path / "proc/self/ns/pid").symlink_to("pid:[4026531836]")
    return tmp_path / "proc"


@pytest.fixture
def reader(stub: Path, play: NvmlPlay, proc: Path) -> Iterator[GpuReader]:
    with GpuReader(stub, play, proc=proc) as reader:
        yield reader


def enter_container(proc: Path) -> None:
    (proc / "self/ns/pid").unlink()
    (proc / "self/ns/pid").symlink_to("pid:[4026532817]")


def test_without_a_driver_there_is_no_sensor_and_pynvml_stays_out(tmp_path: Path, proc: Path) -> None:
    with GpuReader(break_library(tmp_path), proc=proc) as reader:
        opened = reader.open()
        assert reader.read(TREE).reading is None
    assert opened == (None, [], 0.0, 1, {}, False)


def test_all_devices_are_summed_and_reserved_memory_is_not_used_memory(reader: GpuReader, play: NvmlPlay) -> None:
    play.say(TWO_GPUS)
    opened = reader.open()
    answer = reader.read([])
    assert answer.reading == GpuReading(0.8, 1024, 1, 0, 0, 0)
    assert opened.info == {
        "host_gpu_model": "NVIDIA H100 80GB HBM3",
        "host_gpu_count": 2,
        "host_gpu_memory_mib": 163840,
    }
    assert (opened.warnings, opened.threads, answer.held_s) == ([], 2, 0)
    assert play.count("nvmlDeviceGetProcessUtilization 0") == 0, "nobody is tracked"


def test_the_most_frequent_model_stands_for_mixed_gpus(reader: GpuReader, play: NvmlPlay) -> None:
    models = ["NVIDIA L4", "NVIDIA T4", "NVIDIA T4"]
    play.say(*(f"device {i} used 0 reserved 0 total 16000 util 0 mig 0 name {m}" for i, m in enumerate(models)))
    assert reader.open().info == {"host_gpu_model": "NVIDIA T4", "host_gpu_count": 3, "host_gpu_memory_mib": 48000}


def test_the_tree_gets_its_own_memory_and_usage_over_all_devices(reader: GpuReader, play: NvmlPlay) -> None:
    play.say(
        TWO_GPUS,
        f"process 0 compute {OURS} 300\nprocess 0 graphics {OURS} 340\nprocess 0 mps {OUR_CHILD} 60",
        f"process 0 compute {FOREIGN} 500\nprocess 1 compute {OURS} 24",
        f"sample 0 {OURS} {START_US + 500_000} 30\nsample 0 {OUR_CHILD} {START_US + 300_000} 20",
        f"sample 0 {FOREIGN} {START_US + 500_000} 25\nsample 0 {OURS} {START_US - 9_000_000} 90",
    )
    reader.open()
    answer = reader.read(TREE)
    assert answer.reading == GpuReading(0.8, 1024, 1, 0.5, 340 + 60 + 24, 1)


def test_a_device_without_new_samples_means_zero_after_its_sample_period(reader: GpuReader, play: NvmlPlay) -> None:
    play.say(TWO_GPUS, f"sample 0 {OURS} {START_US + 50_000} 40")
    reader.open()
    usage = []
    for _ in range(6):
        reading = reader.read(TREE, advance_s=0.25).reading
        assert reading
        usage.append(reading.process_usage)
    # Repeated within the driver's sample period, then its "not found" is believed.
    assert usage == [0.4, 0.4, 0.4, 0.4, 0, 0]
    assert play.count("nvmlDeviceGetProcessUtilization 0") == 1 + len(usage), (
        "pynvml calls twice when there are samples"
    )


def test_memory_that_the_driver_does_not_tell_is_unknown_for_that_tree_only(reader: GpuReader, play: NvmlPlay) -> None:
    play.say(TWO_GPUS, f"process 0 compute {OURS} -1\nprocess 0 compute {FOREIGN} 10")
    reader.open()
    assert reader.read(TREE).reading == GpuReading(0.8, 1024, 1, 0, None, 0)
    assert reader.read([FOREIGN]).reading == GpuReading(0.8, 1024, 1, 0, 10, 0)


def test_mig_instances_give_memory_and_leave_usage_unknown(reader: GpuReader, play: NvmlPlay) -> None:
    play.say(MIG_GPU, f"process 0/0 compute {OURS} 2800\nprocess 0/2 compute {FOREIGN} 80")
    info = reader.open().info
    answer = reader.read(TREE)
    assert answer.reading == GpuReading(None, 3100, None, None, 2800, None)
    assert answer.warnings == []
    assert info["host_gpu_count"] == 1
    assert play.count("nvmlDeviceGetComputeRunningProcesses_v3 0/2") > 0


def test_what_is_not_permitted_is_unknown_and_the_rest_is_read(reader: GpuReader, play: NvmlPlay) -> None:
    play.say(TWO_GPUS, "error nvmlDeviceGetProcessUtilization * 4", f"process 0 compute {OURS} 30")
    reader.open()
    answer = reader.read(TREE)
    assert answer.reading == GpuReading(0.8, 1024, 1, None, 30, None)
    assert answer.warnings == []
    assert play.count("error nvmlDeviceGetProcessUtilization 0") == 1


def test_an_older_driver_is_asked_by_older_calls(reader: GpuReader, play: NvmlPlay) -> None:
    missing = ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetMigMode")
    play.say(TWO_GPUS, f"process 0 compute {OURS} 30", *(f"error {name} * 13" for name in missing))
    reader.open()
    assert reader.read(TREE).reading == GpuReading(0.8, 2024, 1, 0, 30, 0)
    assert all(play.count(f"error {name} 0") > 0 for name in missing)


@pytest.mark.parametrize("call", ["nvmlDeviceGetUtilizationRates", "nvmlDeviceGetHandleByIndex_v2"])
def test_a_lost_device_is_left_out_warns_once_and_comes_back(call: str, reader: GpuReader, play: NvmlPlay) -> None:
    lost = f"error {call} 1 15"
    play.say(TWO_GPUS, lost if "Handle" in call else "")
    reader.open()
    if "Handle" not in call:
        assert reader.read(TREE).reading == GpuReading(0.8, 1024, 1, 0, 0, 0)
    play.say(TWO_GPUS, lost)
    answers = [reader.read(TREE) for _ in range(3)]
    assert play.count(f"error {call} 1") >= 3
    assert [answer.reading for answer in answers] == [FIRST_GPU] * 3
    (warning,) = answers[-1].warnings
    assert "NVIDIA GPU 1: GPU is lost" in warning
    play.say(TWO_GPUS)
    back = reader.read(TREE)
    assert back.reading == GpuReading(0.8, 1024, 1, 0, 0, 0)
    assert back.warnings == [warning]


def test_nvml_is_started_anew_while_a_device_stays_lost(reader: GpuReader, play: NvmlPlay) -> None:
    play.say(TWO_GPUS)
    reader.open()
    play.say(TWO_GPUS, "error nvmlDeviceGetUtilizationRates 0 15")
    for _ in range(10):
        assert reader.read(TREE, advance_s=5).reading == SECOND_GPU
    assert play.count("error nvmlDeviceGetUtilizationRates 0") == 10
    assert play.count("nvmlShutdown -") == 1
    assert play.count("nvmlInitWithFlags -") == 2


def test_devices_that_are_missing_after_a_new_start_are_told_and_the_others_count(
    reader: GpuReader, play: NvmlPlay
) -> None:
    play.say(TWO_GPUS)
    reader.open()
    play.say(TWO_GPUS, "error nvmlDeviceGetUtilizationRates 1 15")
    assert reader.read(TREE).reading == FIRST_GPU
    play.say(TWO_GPUS.splitlines()[0])
    answers = [reader.read(TREE, advance_s=20) for _ in range(3)]
    assert play.count("nvmlShutdown -") >= 1
    assert [answer.reading for answer in answers] == [FIRST_GPU] * 3
    assert any("1 of 2 GPUs are left" in warning for warning in answers[-1].warnings)


def test_without_a_readable_device_all_is_unknown(reader: GpuReader, play: NvmlPlay) -> None:
    play.say(TWO_GPUS)
    reader.open()
    play.say(TWO_GPUS, "error nvmlDeviceGetUtilizationRates * 15")
    assert [reader.read(TREE).reading for _ in range(2)] == [UNKNOWN] * 2


def test_a_hanging_call_holds_nobody_up_and_readings_go_on_when_it_returns(reader: GpuReader, play: NvmlPlay) -> None:
    play.say(TWO_GPUS)
    reader.open()
    assert reader.read(TREE).reading == GpuReading(0.8, 1024, 1, 0, 0, 0)
    play.say(TWO_GPUS, "hang nvmlDeviceGetMemoryInfo_v2 1")
    first = reader.read(TREE, patience_s=0)
    play.wait_for("hang nvmlDeviceGetMemoryInfo_v2 1")
    # One interval old: it stands, and the caller was held for the budget alone.
    assert (first.reading, first.held_s, first.warnings) == (GpuReading(0.8, 1024, 1, 0, 0, 0), 0.02, [])

    later = [reader.read(TREE, patience_s=0) for _ in range(50)]
    assert {(answer.reading, answer.held_s, answer.threads) for answer in later} == {(UNKNOWN, 0.0, 2)}
    (warning,) = later[-1].warnings
    assert "does not return" in warning
    assert play.count("hang nvmlDeviceGetMemoryInfo_v2 1") == 1

    play.say(TWO_GPUS.replace("util 80", "util 60"))
    play.wait_for("back nvmlDeviceGetMemoryInfo_v2 1")
    expected = GpuReading(0.6, 1024, 1, 0, 0, 0)
    wait_until(lambda: reader.read(TREE).reading == expected, "readings never went on")
    assert reader.read(TREE).warnings == [warning]


def test_a_slow_device_at_a_short_interval_gives_nothing_rather_than_old_figures(
    reader: GpuReader, play: NvmlPlay
) -> None:
    play.say(TWO_GPUS)
    reader.open()
    reader.read(TREE, advance_s=0.1)
    play.say(TWO_GPUS, "hang nvmlDeviceGetUtilizationRates 0")
    answers = [reader.read(TREE, advance_s=0.1, patience_s=0) for _ in range(4)]
    play.wait_for("hang nvmlDeviceGetUtilizationRates 0")
    known = [answer.reading != UNKNOWN for answer in answers]
    assert known == [True, True, False, False]
    assert answers[-1].warnings == [], "less than a second has passed"


def test_a_driver_that_hangs_at_the_start_is_read_once_it_has_started(reader: GpuReader, play: NvmlPlay) -> None:
    play.say(TWO_GPUS, "hang nvmlInitWithFlags -")
    opened = reader.open(patience_s=0)
    play.wait_for("hang nvmlInitWithFlags -")
    assert (opened.held_s, opened.warnings, opened.info) == (0.5, [], {})
    waiting = reader.read(TREE, patience_s=0)
    assert (waiting.reading, waiting.held_s, len(waiting.warnings)) == (UNKNOWN, 0.0, 1)
    play.say(TWO_GPUS)
    expected = GpuReading(0.8, 1024, 1, 0, 0, 0)
    wait_until(lambda: reader.read(TREE).reading == expected, "the driver's start was never noticed")
    last = reader.read(TREE)
    assert last.info["host_gpu_count"] == 2
    assert last.warnings == waiting.warnings


@pytest.mark.parametrize(("code", "words"), [(18, "mismatch"), (999, "Unknown Error")])
def test_a_driver_that_does_not_start_is_unknown_told_once_and_tried_again(
    code: int, words: str, reader: GpuReader, play: NvmlPlay
) -> None:
    play.say(TWO_GPUS, f"error nvmlInitWithFlags - {code}")
    assert reader.open().info == {}
    answers = [reader.read(TREE, advance_s=10) for _ in range(5)]
    assert [answer.reading for answer in answers] == [UNKNOWN] * 5
    assert play.count("error nvmlInitWithFlags -") == 2
    (warning,) = answers[-1].warnings
    assert words in warning
    play.say(TWO_GPUS)
    answers = [reader.read(TREE, advance_s=10) for _ in range(4)]
    assert answers[-1].reading == GpuReading(0.8, 1024, 1, 0, 0, 0)
    assert answers[-1].info["host_gpu_count"] == 2
    assert answers[-1].warnings == [warning]


def test_a_library_without_a_kernel_driver_and_a_device_is_no_gpu(
    stub: Path, play: NvmlPlay, proc: Path, tmp_path: Path
) -> None:
    """An image for GPUs on a machine that has none."""
    play.say("error nvmlInitWithFlags - 9")
    device = tmp_path / "sys/bus/pci/devices/0000:00:01.0"
    device.mkdir(parents=True)
    for vendor, reading in (("0x8086\n", None), ("0x10de\n", UNKNOWN)):
        (device / "vendor").write_text(vendor, encoding="ascii")
        with GpuReader(stub, play, proc=proc, sysfs=tmp_path / "sys") as reader:
            reader.open()
            assert reader.read(TREE).reading == reading


def test_a_driver_without_devices_is_no_sensor_and_no_news(reader: GpuReader, play: NvmlPlay) -> None:
    opened = reader.open()
    assert play.count("nvmlDeviceGetCount_v2 -") == 1
    assert (opened.warnings, reader.read(TREE).reading) == ([], None)


def test_in_a_container_host_pids_leave_the_share_unknown(reader: GpuReader, play: NvmlPlay, proc: Path) -> None:
    enter_container(proc)
    # 4101 is one of ours here and, by chance, somebody else's on the host; 31337 gives the host's numbering away.
    play.say(TWO_GPUS, f"process 0 compute {OURS} 100\nprocess 0 compute 31337 10")
    reader.open()
    assert reader.read(TREE).reading == GpuReading(0.8, 1024, 1, None, None, None)
    assert play.count("nvmlDeviceGetComputeRunningProcesses_v3 0") > 0


def test_in_a_container_pids_that_the_driver_translated_count(reader: GpuReader, play: NvmlPlay, proc: Path) -> None:
    enter_container(proc)
    play.say(TWO_GPUS, f"process 0 compute {OURS} 100\nsample 0 {OURS} {START_US + 100_000} 80")
    reader.open()
    assert reader.read(TREE).reading == GpuReading(0.8, 1024, 1, 0.8, 100, 1)


def test_in_a_container_a_busy_gpu_that_lists_nobody_leaves_the_share_unknown(
    reader: GpuReader, play: NvmlPlay, proc: Path
) -> None:
    enter_container(proc)
    play.say(TWO_GPUS.splitlines()[0])
    reader.open()
    assert reader.read(TREE).reading == GpuReading(0.8, 1000, 1, None, None, None)
    play.say(TWO_GPUS.splitlines()[0].replace("used 1000", "used 3").replace("util 80", "util 0"))
    assert reader.read(TREE).reading == GpuReading(0, 3, 0, 0, 0, 0)


def usage_at(usage: ProcessUsage, at_s: float, samples: list[tuple[int, float, int]]) -> float:
    """Feed samples (pid, seconds, percent) at a time; return the tree's usage."""
    usage.since_us(now_us=START_US + int(at_s * 1e6), monotonic=at_s)
    usage.update((UsageSample(pid, START_US + int(t * 1e6), percent) for pid, t, percent in samples), monotonic=at_s)
    return usage.of(TREE)


def test_several_samples_of_a_process_are_weighted_with_their_time() -> None:
    usage = ProcessUsage()
    usage_at(usage, 1.0, [(OURS, 1.0, 10)])
    samples = [(OURS, 1.25, 100), (OURS, 2.0, 0), (OUR_CHILD, 2.0, 40)]
    assert usage_at(usage, 2.0, samples) == pytest.approx(0.25 + 0.4)


def test_samples_that_were_seen_or_are_impossible_do_not_count() -> None:
    usage = ProcessUsage()
    assert usage_at(usage, 1.0, [(OURS, 1.0, 10)]) == pytest.approx(0.1)
    assert usage_at(usage, 2.0, [(OURS, 1.0, 10), (OUR_CHILD, 2.0, 2147483632)]) == 0


def test_the_tree_never_uses_more_than_the_whole_device() -> None:
    assert usage_at(ProcessUsage(), 1.0, [(OURS, 1.0, 70), (OUR_CHILD, 1.0, 70)]) == 1


def test_after_an_idle_spell_the_driver_is_not_asked_for_the_whole_of_it() -> None:
    usage = ProcessUsage()
    usage_at(usage, 1.0, [(OURS, 1.0, 10)])
    for second in range(2, 60):
        usage_at(usage, second, [])
    assert usage.since_us(now_us=START_US + 60_000_000, monotonic=60) == START_US + 58_750_000


def test_a_wall_clock_that_was_set_back_does_not_silence_the_samples() -> None:
    usage = ProcessUsage()
    usage_at(usage, 3600.0, [(OURS, 3600.0, 10)])
    usage.since_us(now_us=START_US + 1_000_000, monotonic=3601.0)
    usage.update([UsageSample(OURS, START_US + 900_000, 50)], monotonic=3601.0)
    assert usage.of(TREE) == pytest.approx(0.5)
