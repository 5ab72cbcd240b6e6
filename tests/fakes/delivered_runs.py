"""Run directories as an uploader leaves them, without a collector that took the rows."""

import gzip
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sentinel_protocol.wire.run_statistics import RunStatistics
from sentinel_protocol.wire.sample import CSV_HEADER, Sample, csv_rows

START = 1_796_000_000.0
HOST = {"host_vcpus": 4, "host_memory_mib": 8192.0, "host_cpu_model": "Test CPU"}


def sample(second: float, **values: Any) -> Sample:
    """A row of a host with four processors, so many seconds after the start."""
    cores = values.pop("cores", 0.5)
    fields: dict[str, Any] = {
        "system_utime": 1.5,
        "system_stime": 0.5,
        "system_cpu_usage": 2.0,
        "system_memory_used_mib": 2000.0,
        "process_pid": 4711,
        "process_utime": cores,
        "process_stime": 0.0,
        "process_cpu_usage": cores,
        "process_memory_mib": 100.0,
    }
    return Sample(round(START + second, 3), **(fields | values))


def write_run(
    runs: Path, name: str, samples: Sequence[Sample], *, objects: int = 1, job: str = "", **description: Any
) -> Path:
    """Write `run.json` and the objects of a run that has ended, and return its directory."""
    directory = runs / name
    directory.mkdir(parents=True)
    size = -(-len(samples) // objects) or 1
    names = []
    for number, first in enumerate(range(0, len(samples), size), 1):
        names.append(f"{number:04d}.csv.gz")
        (directory / names[-1]).write_bytes(packed(samples[first : first + size]))
    statistics = RunStatistics()
    statistics.add(samples)
    metadata = {"command": ["python", "train.py"]} | ({"job_name": job} if job else {})
    document = {
        "run_id": name,
        "run_key": f"key-{name}",
        "started_at": samples[0].timestamp - 1 if samples else START,
        "interval_seconds": 1.0,
        "metadata": metadata,
        "host": HOST,
        "cloud": {},
        "status": "finished",
        "exit_code": 0,
        "objects": names,
        "rows": len(samples),
        "missing_rows": 0,
        "closed_as_stale": False,
        "peak_memory_mib": None,
        "accounting": "cgroup",
        "scope": "host",
        "statistics": statistics.summary(),
        "state": "finished",
    }
    (directory / "run.json").write_text(json.dumps(document | description), encoding="utf-8")
    return directory


def packed(samples: Iterable[Sample]) -> bytes:
    """One object."""
    return gzip.compress(CSV_HEADER + csv_rows(list(samples)), mtime=0)


def busy_day(seconds: int = 86_400, seed: int = 1) -> list[Sample]:
    """A row a second of a job with phases, on a machine with noise; two gaps, one of an hour where there is time."""
    chance = random.Random(seed)
    rows = []
    memory, used, cached = 500.0, 3000.0, 2000.0
    gaps = (range(seconds // 3, seconds // 3 + min(3600, seconds // 10)), range(seconds // 2, seconds // 2 + 60))
    for second in range(seconds):
        jitter, cores = chance.gauss(0, 0.004), max(0.0, 2.5 + (second // 900 % 3) - 1 + chance.gauss(0, 0.15))
        memory += chance.choice((0.0, 0.0, 0.0, 0.25)) - (memory - 500 if second % 20_000 == 0 else 0)
        used += chance.gauss(0, 0.5)
        cached += abs(chance.gauss(0, 0.02))
        written = chance.choice((0, 0, 0, 4096 * chance.randrange(4000)))
        others = abs(chance.gauss(0, 0.1))
        if any(second in gap for gap in gaps):
            continue
        usage = round(min(4.0, cores + others), 4)
        rows.append(
            Sample(
                round(START + second + 0.25 + jitter, 3),
                system_processes=180 + second // 600 % 5,
                system_utime=round(usage * 0.9, 2),
                system_stime=round(usage * 0.1, 2),
                system_cpu_usage=usage,
                system_memory_free_mib=round(8192 - used - cached, 3),
                system_memory_used_mib=round(used, 3),
                system_memory_buffers_mib=round(200 + second / 1000, 3),
                system_memory_cached_mib=round(cached, 3),
                system_memory_active_mib=round(used * 0.6, 3),
                system_memory_inactive_mib=round(cached * 0.9, 3),
                system_disk_read_bytes=0,
                system_disk_write_bytes=written + 4096 * chance.choice((0, 0, 0, 8)),
                system_disk_space_total_gb=270.553,
                system_disk_space_used_gb=round(27 + second / 50_000, 3),
                system_disk_space_free_gb=round(200 - second / 50_000, 3),
                system_net_recv_bytes=chance.choice((0, 66, 132, chance.randrange(20_000))),
                system_net_sent_bytes=chance.choice((0, 66, 132, chance.randrange(5000))),
                system_gpu_usage=0.0,
                system_gpu_vram_mib=0.0,
                system_gpu_utilized=0,
                process_pid=4711,
                process_children=4,
                process_utime=round(cores * 0.95, 6),
                process_stime=round(cores * 0.05, 6),
                process_cpu_usage=round(cores, 4),
                process_memory_mib=round(memory, 3),
                process_disk_read_bytes=0,
                process_disk_write_bytes=written,
                process_gpu_usage=0.0,
                process_gpu_vram_mib=0.0,
                process_gpu_utilized=0,
            )
        )
    return rows
