"""Results in words, advice and differences: right for the cases that they are there for, silent for the others."""

import random
from typing import Any

import pytest
from fakes.delivered_runs import HOST, packed, sample

from sentinel_protocol.wire.sample import Sample
from sentinel_viewer.analysis.advice import CHANGE, NOTE, PROBLEM, Advice, Evidence, advise, rounded_memory_mib
from sentinel_viewer.analysis.comparison import DIFFERENT, EQUAL, MEASURES, NOISE, UNSURE, difference
from sentinel_viewer.analysis.figures import Figures, figures_of_description, figures_of_rows
from sentinel_viewer.analysis.outcome import FAILED, OK, RUNNING, UNKNOWN, outcome_of
from sentinel_viewer.analysis.trend import memory_growth
from sentinel_viewer.rows.reader import parse_rows
from sentinel_viewer.runs.run import Run, run_of


def described(**fields: Any) -> Run:
    return run_of("r", {"run_id": "r", "state": "finished", "host": HOST} | fields)


@pytest.mark.parametrize(
    ("fields", "kind", "text"),
    [
        ({"exit_code": 0, "status": "finished"}, OK, "finished"),
        ({"exit_code": None, "status": "finished"}, OK, "finished"),
        ({"exit_code": 3, "status": "failed"}, FAILED, "failed: exit code 3"),
        ({"exit_code": 127, "status": "failed"}, FAILED, "command not found (127)"),
        ({"exit_code": 126, "status": "failed"}, FAILED, "command not executable (126)"),
        ({"exit_code": 139, "status": "failed"}, FAILED, "crashed: SIGSEGV (139)"),
        ({"exit_code": 134, "status": "failed"}, FAILED, "crashed: SIGABRT (134)"),
        ({"exit_code": 130, "status": "failed"}, FAILED, "interrupted: SIGINT (130)"),
        ({"exit_code": 143, "status": "failed"}, FAILED, "killed by SIGTERM (143)"),
        ({"exit_code": 137, "status": "failed"}, FAILED, "killed by SIGKILL (137)"),
        ({"exit_code": 255, "status": "failed"}, FAILED, "failed: exit code 255"),
        (
            {"exit_code": 137, "status": "failed", "ending": {"oom_kills": 1}, "limits": {"memory_mib": 300}},
            FAILED,
            "killed by SIGKILL (137): memory limit of 300 MiB reached",
        ),
        (
            {"exit_code": 137, "ending": {"oom_kills": 2}},
            FAILED,
            "killed by SIGKILL (137): the kernel was out of memory (OOM kill)",
        ),
        (
            {"exit_code": 137, "scope": "container", "host": {"host_memory_mib": 300}, "peak_memory_mib": 299},
            FAILED,
            "killed by SIGKILL (137): probably the memory limit of 300 MiB (peak 299 MiB)",
        ),
        (
            {"exit_code": 137, "statistics": {"system_memory_used_mib": {"max": 8000}}},
            FAILED,
            "killed by SIGKILL (137): probably out of memory: the machine's 8 GiB were used up",
        ),
        ({"exit_code": 1, "ending": {"disk_full": True}}, FAILED, "failed: exit code 1: a disk was full"),
        ({"closed_as_stale": True, "status": "failed"}, FAILED, "lost: its collector went silent"),
        ({"status": "failed"}, FAILED, "stopped before its end"),
        ({"state": "running"}, RUNNING, "running"),
        ({"state": ""}, UNKNOWN, "unknown"),
    ],
)
def test_the_result_in_words(fields: dict[str, Any], kind: str, text: str) -> None:
    assert outcome_of(described(**fields)) == (kind, text)


def test_objects_alone_do_not_tell_how_a_run_ended() -> None:
    assert outcome_of(run_of("r", None)).kind == UNKNOWN


def evidence(samples: list[Sample], *earlier: Figures, **fields: Any) -> Evidence:
    run = described(**fields)
    rows = parse_rows([("0001.csv.gz", packed(samples))], 1.0)
    return Evidence(run, rows, figures_of_rows(run, rows), earlier)


def about(topic: str, pieces: list[Advice]) -> list[Advice]:
    return [advice for advice in pieces if advice.topic == topic]


@pytest.mark.parametrize(
    ("needed", "asked"),
    [(1, 128), (128, 128), (128.1, 256), (500, 512), (1000, 1024), (2048, 2048), (2049, 3072), (20_000, 20_480)],
)
def test_memory_is_rounded_up_to_what_can_be_asked_for(needed: float, asked: int) -> None:
    assert rounded_memory_mib(needed) == asked


def test_a_job_that_uses_little_is_told_so() -> None:
    pieces = advise(evidence([sample(second, cores=0.4, process_memory_mib=200.0) for second in range(120)]))
    (cpu,) = about("CPU", pieces)
    assert (cpu.urgency, cpu.text) == (CHANGE, "1 CPU would do, of 4")
    (memory,) = about("memory", pieces)
    assert (memory.urgency, memory.text) == (NOTE, "ask for 256 MiB")
    assert memory.basis == "peak 200 MiB and 20 % more, rounded up"
    assert memory.certainty == "fairly sure: one run; another one may use more"


def test_the_highest_of_all_runs_of_a_job_counts() -> None:
    earlier = figures_of_description(described(statistics={"process_memory_mib": {"mean": 900, "max": 1000}}))
    pieces = advise(evidence([sample(second) for second in range(120)], earlier, earlier))
    (memory,) = about("memory", pieces)
    assert memory.text == "ask for 2 GiB"
    assert memory.certainty == "sure as far as 3 runs of the job can tell"


def test_a_job_that_fills_its_cpus_is_told_that_more_may_help() -> None:
    busy = [sample(second, cores=3.95, system_cpu_usage=4.0, system_utime=4.0) for second in range(120)]
    (cpu,) = about("CPU", advise(evidence(busy)))
    assert (cpu.urgency, cpu.text) == (CHANGE, "the job used all 4 CPUs: more of them may make it faster")


def test_a_starved_job_is_told_of_the_others() -> None:
    starved = [sample(second, cores=1.0, system_cpu_usage=4.0, system_utime=4.0) for second in range(120)]
    (cpu,) = about("CPU", advise(evidence(starved)))
    assert cpu.urgency == PROBLEM
    assert cpu.text.startswith("other work used 3.00 of 4 cores, and the machine was full 100 % of the time")


def test_a_leak_is_told_with_the_time_that_is_left() -> None:
    chance = random.Random(3)
    leaking = [sample(second, process_memory_mib=round(100 + second / 2 + chance.random(), 3)) for second in range(600)]
    pieces = advise(evidence(leaking, limits={"memory_mib": 1000}))
    first = pieces[0]
    assert (first.topic, first.urgency) == ("memory", PROBLEM)
    assert first.text.startswith("memory was still growing at the end, by 30 MiB a minute")
    assert "the limit would be reached in 20 min" in first.text
    assert "unsure" in about("memory", pieces)[1].certainty


def test_what_a_job_gives_back_at_its_end_does_not_hide_a_leak() -> None:
    leaking = [sample(second, process_memory_mib=100.0 + second) for second in range(100)]
    leaking += [sample(100, process_memory_mib=0.0), sample(101, process_memory_mib=199.0)]
    growth = memory_growth(evidence(leaking).rows, "process_memory_mib")
    assert growth is not None
    assert growth.mib_per_s == pytest.approx(1)
    assert growth.last_mib == 199


@pytest.mark.parametrize(
    "memory",
    [
        lambda _: 100.0,
        lambda second: 100.0 + 300 * (second > 200),
        lambda second: 100.0 + min(second, 100) * 4,
        lambda second: 100.0 + second % 60,
        lambda second: 100.0 + second / 200,
    ],
    ids=["flat", "one step", "grows at the start", "saw", "too little to matter"],
)
def test_memory_that_does_not_leak_is_not_said_to(memory: Any) -> None:
    samples = [sample(second, process_memory_mib=memory(second)) for second in range(400)]
    assert memory_growth(evidence(samples).rows, "process_memory_mib") is None


def test_a_peak_near_the_limit_is_a_problem() -> None:
    near = [sample(second, process_memory_mib=290.0) for second in range(60)]
    pieces = advise(evidence(near, limits={"memory_mib": 300}))
    assert pieces[0].text == "the peak of 290 MiB is near the limit of 300 MiB: raise the limit"


def test_gpus_are_counted_by_their_peak() -> None:
    gpus = {"system_gpu_usage": 0.3, "process_gpu_usage": 0.3, "process_gpu_vram_mib": 1000.0}
    pieces = advise(evidence([sample(second, **gpus) for second in range(60)]))
    (gpu,) = about("GPU", pieces)
    assert gpu.text == "1 GPU fit the job, and it was in use 30 % only"
    assert about("GPU memory", pieces)[0].text == "ask for 2 GiB of GPU memory"


def test_a_gpu_that_is_held_and_not_used_is_a_problem() -> None:
    held = {"process_gpu_usage": 0.0, "process_gpu_vram_mib": 1000.0}
    (gpu,) = about("GPU", advise(evidence([sample(second, **held) for second in range(60)])))
    assert gpu.urgency == PROBLEM


def test_a_full_disk_is_a_problem() -> None:
    full = {"system_disk_space_total_gb": 100.0, "system_disk_space_free_gb": 0.5}
    (disk,) = about("disk", advise(evidence([sample(second, **full) for second in range(60)])))
    assert disk.text == "the disks were nearly full: 500 MB free of 100 GB"


def test_few_rows_make_no_certainty() -> None:
    assert all("unsure: only 3 rows" in advice.certainty for advice in advise(evidence([sample(n) for n in range(3)])))
    assert advise(evidence([])) == []


def test_every_piece_of_advice_is_explained() -> None:
    leaking = [sample(second, process_memory_mib=100.0 + second) for second in range(100)]
    for advice in advise(evidence(leaking)):
        assert advice.basis
        assert advice.certainty


DURATION = next(measure for measure in MEASURES if measure.key == "duration")


@pytest.mark.parametrize(
    ("first", "value", "spread", "verdict"),
    [
        (100.0, 104.0, [], NOISE),
        (100.0, 150.0, [], UNSURE),
        (100.0, 104.0, [100.1, 99.9, 100.0], DIFFERENT),
        (100.0, 130.0, [80.0, 120.0, 95.0], NOISE),
        (100.0, 100.1, [100.0, 100.0], EQUAL),
        (100.0, 101.0, [100.0, 100.0], DIFFERENT),
        (0.0, 10.0, [], UNSURE),
    ],
)
def test_what_is_noise(first: float, value: float, spread: list[float], verdict: str) -> None:
    assert difference(DURATION, first, value, spread).verdict == verdict


def test_unknown_is_no_difference() -> None:
    assert difference(DURATION, None, 5.0, []) == (5.0, None, EQUAL, "unknown in one of them")


def test_runs_of_one_job_rarely_differ() -> None:
    """What varies by chance alone is called different in about one pair of twenty."""
    chance = random.Random(7)
    verdicts = []
    for _ in range(2000):
        spread = [chance.gauss(100, 10) for _ in range(8)]
        verdicts.append(difference(DURATION, chance.gauss(100, 10), chance.gauss(100, 10), spread).verdict)
    assert verdicts.count(DIFFERENT) < 0.08 * len(verdicts)
