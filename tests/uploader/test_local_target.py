"""Runs that stay on this machine: a directory each, described by its run.json."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from fakes.scripted_backend import SteppedClock
from fakes.uploader_harness import Delivery, delivery, row_numbers

from sentinel_protocol.common.atomic_file import write_atomically
from sentinel_protocol.common.errors import UsageError
from sentinel_protocol.wire.messages import Samples, encode
from sentinel_protocol.wire.sample import Sample
from sentinel_uploader.backends.local import DirectoryStore, LocalRunBackend, path_of_uri, uri_of_path
from sentinel_uploader.delivery.csv_batch import decompress_rows
from sentinel_uploader.runs.delivery_error import DeliveryError, RetryAction
from sentinel_uploader.runs.ports import Backend
from sentinel_uploader.runs.types import FinishRequest, RunDescription
from sentinel_uploader.spool.types import PendingFrame

RUN = RunDescription(
    uid="0123456789abcdef",
    run_key="host/42",
    created_at=1_700_000_000.25,
    interval_s=0.5,
    metadata={"job_name": "naïve", "command": ["python", "train.py"], "tags": {"a": "b"}, "odd": None},
    host={"host_vcpus": 8},
    cloud={"cloud_vendor_id": "aws"},
)
RUN_ID = "20231114-221320-01234567"


def ending(**changes: Any) -> FinishRequest:
    values: dict[str, Any] = {
        "run": RUN,
        "run_id": RUN_ID,
        "exit_code": 0,
        "status": "finished",
        "finished_at": 1_700_000_100.0,
        "data_uris": [],
        "data_csv": None,
        "rows": 3,
        "summary": {"rows": 3, "statistics": {"rows": 3}, "state": "finished"},
    }
    return FinishRequest(**(values | changes))


def read(directory: Path) -> dict[str, Any]:
    described: dict[str, Any] = json.loads((directory / RUN_ID / "run.json").read_text(encoding="utf-8"))
    return described


def test_run_is_described_from_its_registration_to_its_end(tmp_path: Path) -> None:
    api = LocalRunBackend(str(tmp_path / "runs"))
    registration = api.register(RUN)
    assert (registration.run_id, registration.credentials) == (RUN_ID, None)
    assert path_of_uri(registration.uri_prefix) == str(tmp_path / "runs" / RUN_ID)
    running = read(tmp_path / "runs")
    assert running == {
        "run_id": RUN_ID,
        "run_key": "host/42",
        "started_at": "2023-11-14T22:13:20.250Z",
        "interval_seconds": 0.5,
        "metadata": RUN.metadata,
        "host": RUN.host,
        "cloud": RUN.cloud,
        "state": "running",
    }
    uris = [f"{registration.uri_prefix}/000{number}.csv.gz" for number in (1, 2)]
    answer = api.finish(ending(data_uris=uris)).response
    assert answer["run"] == {"run_id": RUN_ID, "run_status": "finished"}
    assert read(tmp_path / "runs") == running | {
        "state": "finished",
        "status": "finished",
        "exit_code": 0,
        "finished_at": "2023-11-14T22:15:00.000Z",
        "objects": ["0001.csv.gz", "0002.csv.gz"],
        "rows": 3,
        "statistics": {"rows": 3},
    }
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "runs").rglob("*")} == {0o700, 0o600}


def test_every_call_may_be_repeated(tmp_path: Path) -> None:
    api = LocalRunBackend(str(tmp_path))
    assert api.register(RUN) == api.register(RUN)
    assert api.finish(ending()) == api.finish(ending())
    store = DirectoryStore()
    uri = uri_of_path(str(tmp_path / RUN_ID / "0001.csv.gz"))
    store.put(uri, b"first", None)
    store.put(uri, b"again", None)
    assert sorted(path.name for path in (tmp_path / RUN_ID).iterdir()) == ["0001.csv.gz", "run.json"]
    assert (tmp_path / RUN_ID / "0001.csv.gz").read_bytes() == b"again"
    assert api.refresh(RUN_ID) is None


def test_file_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(str(path), b"old")
    fired = []

    def full(descriptor: int) -> None:
        fired.append(descriptor)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(str(path), b"new" * 1000)
    assert fired
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_what_a_killed_writer_left_behind_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".0001.csv.gz.part").write_bytes(b"half" * 1000)
    DirectoryStore().put(uri_of_path(str(tmp_path / "0001.csv.gz")), b"whole", None)
    assert [entry.name for entry in tmp_path.iterdir()] == ["0001.csv.gz"]


def test_directory_that_somebody_removed_is_made_again(tmp_path: Path) -> None:
    api = LocalRunBackend(str(tmp_path))
    registration = api.register(RUN)
    (tmp_path / RUN_ID / "run.json").unlink()
    (tmp_path / RUN_ID).rmdir()
    DirectoryStore().put(f"{registration.uri_prefix}/0001.csv.gz", b"x", None)
    api.finish(ending())
    assert read(tmp_path)["state"] == "finished"


def test_target_that_cannot_be_a_directory_is_wrong_use(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot create the target directory"):
        LocalRunBackend(str(tmp_path / "file" / "runs"))


def test_directory_that_cannot_be_written_any_more_is_tried_again(tmp_path: Path) -> None:
    api = LocalRunBackend(str(tmp_path / "runs"))
    registration = api.register(RUN)
    # A file where the run's directory should be stops everybody, root included.
    (tmp_path / "runs" / RUN_ID / "run.json").unlink()
    (tmp_path / "runs" / RUN_ID).rmdir()
    (tmp_path / "runs" / RUN_ID).write_text("")
    for call in (
        lambda: api.register(RUN),
        lambda: api.finish(ending()),
        lambda: DirectoryStore().put(f"{registration.uri_prefix}/0001.csv.gz", b"x", None),
    ):
        with pytest.raises(DeliveryError) as failure:
            call()
        assert (failure.value.retry_action, failure.value.status_code) == (RetryAction.RETRY, None)


@pytest.mark.parametrize("name", [b"plain", b"with space", b"a%41?b#c", "ü".encode(), b"\xff\xfe"])
def test_any_directory_that_can_exist_can_be_a_target(tmp_path: Path, name: bytes) -> None:
    directory = os.path.join(os.fsencode(tmp_path), name)
    api = LocalRunBackend(os.fsdecode(directory))
    registration = api.register(RUN)
    store = DirectoryStore()
    uri = f"{registration.uri_prefix}/0001.csv.gz"
    assert store.backoff_key(uri) == registration.uri_prefix.rpartition("/")[0] == api.backoff_key
    store.put(uri, b"x", None)
    api.finish(ending(data_uris=[uri]))
    assert sorted(os.listdir(os.path.join(directory, RUN_ID.encode()))) == [b"0001.csv.gz", b"run.json"]
    described = json.loads(Path(os.fsdecode(directory), RUN_ID, "run.json").read_text(encoding="utf-8"))
    assert described["objects"] == ["0001.csv.gz"]


def aim_at(up: Delivery, directory: Path) -> None:
    """Deliver to a directory instead of what is scripted."""
    target = Backend(api=LocalRunBackend(str(directory)), store=DirectoryStore(), needs_credentials=False)
    up.scheduler.executor = up.steps_for(target)


def test_whole_run_with_its_statistics(tmp_path: Path) -> None:
    with delivery(tmp_path / "spool") as up:
        aim_at(up, tmp_path / "runs")
        run = up.begin(rows=4, metadata={"job_name": "j"})
        up.advance(61.0)
        up.add(run, 2)
        up.end(run, 0)
        up.settle()
    (path,) = (tmp_path / "runs").iterdir()
    described = json.loads((path / "run.json").read_text(encoding="utf-8"))
    assert (described["state"], described["exit_code"], described["rows"]) == ("finished", 0, 6)
    assert described["objects"] == ["0001.csv.gz", "0002.csv.gz"]
    assert described["statistics"]["system_cpu_usage"] == {"mean": 0.5, "max": 0.5}
    assert described["statistics"]["duration_seconds"] == pytest.approx(5.0, abs=1.1)
    rows = [
        number for name in described["objects"] for number in row_numbers(decompress_rows((path / name).read_bytes()))
    ]
    assert rows == [1, 2, 3, 4, 5, 6]


def test_target_whose_name_is_no_text_takes_runs_and_tells_its_trouble(tmp_path: Path) -> None:
    directory = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    with delivery(tmp_path / "spool") as up:
        aim_at(up, directory)
        run = up.begin("bad", rows=1)
        up.settle()
        (spoilt,) = directory.iterdir()
        (spoilt / "run.json").unlink()
        spoilt.rmdir()
        spoilt.write_text("")
        up.end(run)
        up.settle()
        assert "cannot write" in run.record.last_error
        spoilt.unlink()
        up.advance(400.0)
        assert up.spool._runs == {}


def test_run_without_a_sample_ends_too(tmp_path: Path) -> None:
    with delivery(tmp_path / "spool") as up:
        aim_at(up, tmp_path / "runs")
        up.begin(last=True)
        up.settle()
    (path,) = (tmp_path / "runs").iterdir()
    described = json.loads((path / "run.json").read_text(encoding="utf-8"))
    assert (described["state"], described["rows"], described["objects"]) == ("finished", 0, [])


def test_values_that_are_no_numbers_do_not_keep_a_run_from_its_end(tmp_path: Path) -> None:
    with delivery(tmp_path / "spool") as up:
        aim_at(up, tmp_path / "runs")
        run = up.begin()
        rows = [
            Sample(timestamp=1e9, system_cpu_usage=math.inf, system_utime=math.nan, system_disk_read_bytes=2**63),
            Sample(timestamp=1e300, system_cpu_usage=1.0, process_memory_mib=-math.inf),
        ]
        up.spool.append([PendingFrame(run, 1, 2, encode(Samples(1, rows)), 1e300)], [])
        up.end(run)
        up.settle()
        assert up.spool._runs == {}
    (path,) = (tmp_path / "runs").iterdir()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    described = json.loads((path / "run.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert described["statistics"]["rows"] == 2


def test_one_runs_directory_that_is_spoilt_does_not_hold_up_the_others(tmp_path: Path) -> None:
    clock = SteppedClock()
    with delivery(tmp_path / "spool", clock=clock) as up:
        aim_at(up, tmp_path / "runs")
        bad = up.begin("bad", rows=1)
        good = up.begin("good", rows=1)
        up.settle()
        spoilt = Path(path_of_uri(bad.record.uri_prefix))
        (spoilt / "run.json").unlink()
        spoilt.rmdir()
        spoilt.write_text("")
        objects = Path(path_of_uri(good.record.uri_prefix))
        late = 0
        for number in range(1, 11):
            up.advance(60.0)
            late += not (objects / f"{number:04d}.csv.gz").exists()
            up.add(good, 1)
        assert late <= 1
        assert "cannot write" in bad.record.last_error
        spoilt.unlink()
        up.end(bad)
        up.advance(400.0)
        assert bad.id not in up.spool._runs
