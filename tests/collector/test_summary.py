"""What a person reads at the end, and how it is said."""

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sentinel_collector.console import Console, Verbosity
from sentinel_collector.reporting.result import result_lines
from sentinel_collector.reporting.summary import (
    SUMMARY_START,
    delivery_lines,
    look_line,
    refused_token,
    summary_figures,
    summary_json,
)
from sentinel_collector.run_description import run_metadata
from sentinel_collector.settings import METADATA_NAMES
from sentinel_protocol.wire.messages import Finish, Finished, Hello
from sentinel_protocol.wire.run_statistics import RunStatistics
from sentinel_protocol.wire.sample import Sample


def figures(finished: Finished | None = None, *samples: Sample, **changes: Any) -> dict[str, Any]:
    statistics = RunStatistics()
    statistics.add(samples)
    values: dict[str, Any] = {
        "run_key": "key",
        "run_id": "",
        "status": "finished",
        "exit_code": 0,
        "statistics": statistics,
        "peak_memory_mib": None,
        "accounting": "proc",
        "is_acknowledged": True,
        "undelivered_rows": 0,
        "finished": finished,
        "delivery_error": "",
        "is_parked": False,
    }
    return summary_figures(**(values | changes))


def result(finish: Finish, *samples: Sample, run_id: str = "", host: dict[str, Any] | None = None) -> list[str]:
    statistics = RunStatistics()
    statistics.add(samples)
    return result_lines(finish, statistics, run_id=run_id, host=host or {})


def test_a_tracked_process_is_summed_up() -> None:
    finished = Finished("run-1", {"rows": 2}, ["file:///d/a%20b/0001.csv.gz"], 1, 2, "file:///d/a%20b")
    rows = [
        Sample(10.0, system_utime=2.0, system_stime=0.0, system_cpu_usage=2.0, process_utime=1.0, process_stime=0.5,
               process_cpu_usage=1.5, process_memory_mib=100.0, process_disk_read_bytes=1500,
               process_disk_write_bytes=0, process_gpu_usage=0.5, system_net_recv_bytes=3_000_000),
        Sample(11.0, process_utime=0.5, process_stime=0.0, process_cpu_usage=0.5, process_memory_mib=50.0,
               process_disk_read_bytes=0, process_disk_write_bytes=2_000_000_000, process_gpu_usage=0.0),
    ]  # fmt: skip
    found = figures(finished, *rows, run_id="run-1", exit_code=3, status="failed", peak_memory_mib=123.4)
    end = Finish(2, 3, "failed", 12.0, peak_memory_mib=123.4)
    first, second = result(end, *rows, run_id="run-1", host={"host_vcpus": 4, "host_memory_mib": 300})
    assert first == "run run-1: failed with exit code 3 after 2.0 s"
    assert second == (
        "CPU 1.00 of 4 cores on average, 1.50 at most (2.00 s), "
        "memory 100 MiB at most in the rows, 123 MiB in one process between them, "
        "disk 1.5 kB read, 2.0 GB written, network of the machine 3.0 MB received, 0 B sent, "
        "GPU 0.25 on average, 0.50 at most"
    )
    assert delivery_lines(found) == ["2 samples delivered to /d/a b"]
    assert look_line(found, is_remote=False) == "`sentinel-stream report latest --open` shows it"
    assert look_line(found, is_remote=True) is None
    assert found["objects"] == ["/d/a b/0001.csv.gz"]
    assert found["statistics"]["process_utime"] == {"total": 1.5}


def test_a_run_elsewhere_is_shown_on_the_uploaders_machine() -> None:
    assert "`sentinel-uploader show key` shows the progress" in delivery_lines(figures())[0]
    assert (
        "`sentinel-uploader show key` on the uploader's machine shows the progress"
        in delivery_lines(figures(), is_remote=True)[0]
    )


def test_a_run_without_a_sample_or_an_answer_is_summed_up_too() -> None:
    assert delivery_lines(figures(exit_code=None, undelivered_rows=3, is_acknowledged=False)) == []
    first, second = result(Finish(0, None, "finished", 10.0))
    assert first == "finished after 0.0 s"
    assert second == "CPU 0.00 cores on average, 0.00 at most (0.00 s)"


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        (0, "finished", "finished"),
        (1, "failed", "failed with exit code 1"),
        (127, "failed", "failed with exit code 127"),
        (130, "failed", "interrupted: SIGINT (130)"),
        (137, "failed", "killed by SIGKILL (137)"),
        (139, "failed", "crashed: SIGSEGV (139)"),
        (255, "failed", "failed with exit code 255"),
        (None, "failed", "the job runs on, no longer recorded"),
        (None, "finished", "finished"),
    ],
)
def test_an_end_is_told_in_words(code: int | None, status: str, words: str) -> None:
    assert result(Finish(0, code, status, 10.0))[0] == f"{words} after 0.0 s"


def test_a_peak_at_the_limit_is_named_and_a_limit_that_is_none_is_not() -> None:
    rows = [Sample(10.0, process_cpu_usage=1.0, process_memory_mib=299.0, system_utime=3700.0, system_cpu_usage=1.0)]
    end = Finish(1, 137, "failed", 11.0, peak_memory_mib=200.0, scope="container")
    first, second = result(end, *rows, host={"host_memory_mib": 300.0})
    assert first == "killed by SIGKILL (137): the memory limit of 300 MiB was probably reached after 1 h 1 min"
    assert "memory 299 MiB at most of 300 MiB" in second
    first, second = result(msgspec.structs.replace(end, scope="host"), *rows, host={"host_memory_mib": 300.0})
    assert first == "killed by SIGKILL (137) after 1 h 1 min"
    assert "of 300 MiB" not in second


def test_samples_without_objects_were_sent_inline() -> None:
    found = figures(Finished("run-1", rows=1, object_prefix="s3://bucket/x"), Sample(10.0), run_id="run-1")
    assert delivery_lines(found) == ["1 sample sent to the API (inline) as run run-1"]
    assert look_line(found, is_remote=False) is None


@pytest.mark.parametrize(
    ("trouble", "environ", "words"),
    [
        ("register: HTTP 401: x", {}, "the Sentinel API refuses the token of the uploader"),
        (
            "finish: HTTP 403: x",
            {"SENTINEL_API_TOKEN": "t"},
            "the Sentinel API refuses the token in SENTINEL_API_TOKEN",
        ),
        ("https://a: HTTP 401: x", {"SENTINEL_API_TOKEN_FILE": "/t"}, "https://a refuses the token in /t"),
        ("register: HTTP 401: x", {"SENTINEL_API_URL": "http://b"}, "http://b refuses the token"),
    ],
)
def test_a_refused_token_says_what_to_do(trouble: str, environ: dict[str, str], words: str) -> None:
    (line,) = delivery_lines(figures(delivery_error=trouble), environ=environ)
    assert line.startswith(words)
    assert "The samples are kept; the next run with a correct token sends them" in line
    assert refused_token("PUT s3://x: HTTP 403: no") is None


def test_json_holds_the_same_and_is_always_text() -> None:
    found = figures(Finished("r", {"text": "\ud800é"}))
    again = json.loads(summary_json(found))
    assert summary_json(found).startswith(SUMMARY_START)
    assert again["response"] == {"text": "?é"}
    assert again["rows"] == 0


NO_METADATA: dict[str, Any] = dict.fromkeys(
    ("project_name", "job_name", "stage_name", "task_name", "team", "env", "language", "orchestrator", "executor",
     "external_run_id", "container_image")
) | {"tag": {}, "command_line": True}  # fmt: skip


def test_metadata_hold_what_was_said_and_the_command() -> None:
    settings = NO_METADATA | {"job_name": "x", "tag": {"a": "1"}}
    assert run_metadata(settings, ["a", "b c"]) == {"job_name": "x", "tags": {"a": "1"}, "command": ["a", "b c"]}
    assert run_metadata(settings | {"command_line": False}, ["a"]) == {"job_name": "x", "tags": {"a": "1"}}


def test_metadata_are_text_whatever_bytes_were_given() -> None:
    settings = dict.fromkeys(METADATA_NAMES) | {
        "tag": {"a\udcff": "\udcfe"},
        "job_name": "n\udcff",
        "command_line": True,
    }
    metadata = run_metadata(settings, ["x\udcff"])
    assert metadata == {"job_name": "n?", "tags": {"a?": "?"}, "command": ["x?"]}


def test_a_command_line_of_any_size_fits_into_a_greeting() -> None:
    for argv in (["é" * 100_000], [""] * 100_000, ["x" * 4000, "y" * 4000], ["\udcff" * 10_000], ["𝄞" * 1365]):
        metadata = run_metadata(NO_METADATA, argv)
        assert len(msgspec.msgpack.encode(Hello(1, "k", "i", 1.0, metadata=metadata))) < 5000
        assert metadata["command"]


def test_lines_are_whole_and_one_line_each(tmp_path: Path) -> None:
    read, write = os.pipe()
    for level, expected in ((Verbosity.QUIET, "e"), (Verbosity.NORMAL, "ew"), (Verbosity.VERBOSE, "ewd")):
        console = Console(level, fd=write)
        console.error("e\nfaked: line\x1b[31m")
        console.warn("w")
        console.debug("d")
        lines = os.read(read, 10_000).decode().splitlines()
        assert [line.removeprefix("sentinel-collector: ")[0] for line in lines] == list(expected)
        assert "\x1b" not in lines[0]
    os.close(read)
    # Nobody reads any more: nothing is raised.
    Console(Verbosity.NORMAL, fd=write).error("x")
    os.close(write)
    Console(Verbosity.NORMAL, fd=write).error("x")


def test_a_reader_that_is_slow_costs_lines_and_no_more() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    console = Console(Verbosity.NORMAL, fd=write)
    for _ in range(10_000):
        console.warn("x" * 100)
    while len(os.read(read, 1 << 20)) == 1 << 20:
        pass
    console.warn("heard again")
    assert b"heard again" in os.read(read, 1 << 20)
    os.close(read)
    os.close(write)
