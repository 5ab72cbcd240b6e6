"""Runs are found wherever they are, whatever version wrote them, and by what people call them."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.delivered_runs import START, sample, write_run
from fakes.rclone import ACCESS_KEY, SECRET_KEY, RcloneS3

from sentinel_protocol.common.errors import UsageError
from sentinel_viewer.errors import ReadError, RunNotFoundError
from sentinel_viewer.rows.reader import read_rows
from sentinel_viewer.runs.directory import DirectoryPlace
from sentinel_viewer.runs.index import list_runs
from sentinel_viewer.runs.naming import Library, own_runs
from sentinel_viewer.runs.run import run_of


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "cache")}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    directory = tmp_path / "runs"
    for number, job in enumerate(("train", "eval", "train", "")):
        write_run(directory, f"2026112{number}-120000-abc{number}ef{number}0", [sample(3600 * number)], job=job)
    return directory


def names(library: Library, *words: str) -> list[str]:
    return [one.run.run_id for one in library.find(words)]


@pytest.mark.parametrize(
    ("word", "number"),
    [
        ("latest", 3), ("latest~2", 1), ("20261121-120000-abc1ef10", 1), ("abc2", 2), ("train", 2), ("train~1", 0),
        ("eval", 1),
    ],
)  # fmt: skip
def test_a_run_is_found_by(word: str, number: int, runs: Path, environ: dict[str, str]) -> None:
    assert names(Library(str(runs), environ), word)[0].startswith(f"2026112{number}")


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("abc", r"'abc' is part of 4 run ids \(2026"),
        ("nobody", "there is no run 'nobody' in .*runs; `sentinel-stream ls`"),
        ("latest~9", "there are only 4 such runs"),
        ("train~2", "there are only 2 such runs"),
        ("", "there is no run ''"),
        ("~", "there is no run '~'"),
    ],
)
def test_a_name_that_means_no_single_run_is_an_error(word: str, text: str, runs: Path, environ: dict[str, str]) -> None:
    with pytest.raises(RunNotFoundError, match=text):
        names(Library(str(runs), environ), word)


def test_a_path_is_a_run_whatever_the_directory_is_called(runs: Path, environ: dict[str, str]) -> None:
    elsewhere = runs.parent / "sent by mail"
    shutil.copytree(next(runs.iterdir()), elsewhere)
    found = Library(None, environ).find([str(elsewhere)])[0]
    assert found.run.run_id.startswith("2026")
    assert found.location == str(elsewhere)
    assert len(read_rows(found)) == 1
    with pytest.raises(RunNotFoundError, match="is a directory of runs"):
        Library(None, environ).find([str(runs)])


def test_a_run_from_elsewhere_is_of_another_job(runs: Path, environ: dict[str, str]) -> None:
    library = Library(str(runs), environ)
    elsewhere = write_run(runs.parent / "elsewhere", "one", [sample(0)], job="train")
    assert len(library.same_job(library.find(["train"])[0], 5)) == 1
    assert library.same_job(library.find([str(elsewhere)])[0], 5) == []


def test_objects_of_one_directory_are_one_run_of_exactly_these(tmp_path: Path, environ: dict[str, str]) -> None:
    directory = write_run(tmp_path / "runs", "one", [sample(second) for second in range(9)], objects=3)
    words = [str(directory / "0003.csv.gz"), (directory / "0001.csv.gz").as_uri()]
    (found,) = Library(None, environ).find(words)
    assert found.run.objects == ["0001.csv.gz", "0003.csv.gz"]
    assert len(read_rows(found)) == 6


def test_a_csv_file_is_a_run(tmp_path: Path, environ: dict[str, str]) -> None:
    path = tmp_path / "my rows.csv"
    path.write_text("timestamp,process_memory_mib\n1796000000.0,5.0\n")
    (found,) = Library(None, environ).find([str(path)])
    assert found.run.run_id == "my rows"
    assert not found.run.is_described
    assert len(read_rows(found)) == 1


def test_where_a_users_own_runs_are(tmp_path: Path) -> None:
    data = {"XDG_DATA_HOME": str(tmp_path)}
    assert own_runs(data) == str(tmp_path / "sentinel-stream" / "runs")
    assert own_runs({"SENTINEL_API_TOKEN": "x"} | data) == str(tmp_path / "sentinel-stream" / "runs")
    assert own_runs({"SENTINEL_TARGET": "/srv/runs"} | data) == "/srv/runs"


def test_descriptions_are_not_read_again_while_they_are_the_same(runs: Path, environ: dict[str, str]) -> None:
    for number in range(40):
        write_run(runs, f"more-{number}", [sample(number)])
    read = []

    class Watched(DirectoryPlace):
        def read_description(self, name: str) -> bytes | None:
            read.append(name)
            return super().read_description(name)

    first = list_runs(Watched(str(runs)), environ)
    assert len(read) == 44
    read.clear()
    assert list_runs(Watched(str(runs)), environ) == first
    assert read == []
    changed = runs / "more-7" / "run.json"
    changed.write_text(changed.read_text().replace('"exit_code": 0', '"exit_code": 77'))
    shutil.rmtree(runs / "more-8")
    again = list_runs(Watched(str(runs)), environ)
    assert read == ["more-7"]
    assert len(again) == 43
    assert [run.exit_code for run in again if run.name == "more-7"] == [77]


@pytest.mark.parametrize("content", [b"", b"\xc1garbage", b"\x83\xa6format\x01"])
def test_a_broken_cache_is_ignored(content: bytes, runs: Path, environ: dict[str, str]) -> None:
    for number in range(40):
        write_run(runs, f"more-{number}", [sample(number)])
    expected = list_runs(DirectoryPlace(str(runs)), environ)
    (index,) = (Path(environ["XDG_CACHE_HOME"]) / "sentinel-stream" / "index").iterdir()
    index.write_bytes(content)
    assert list_runs(DirectoryPlace(str(runs)), environ) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "null", "{", '{"run_id": 5, "metadata": [], "statistics": {"rows": "x", "process_cpu_usage": 3}}',
        '{"started_at": "yesterday", "exit_code": true, "objects": {"a": 1}, "host": {"host_vcpus": "many"}}',
        '{"started_at": 1e300, "exit_code": 1e308, "peak_memory_mib": -4, "interval_seconds": 0}',
    ],
)  # fmt: skip
def test_whatever_a_description_holds_the_run_is_listed(text: str, tmp_path: Path, environ: dict[str, str]) -> None:
    directory = tmp_path / "runs" / "odd"
    directory.mkdir(parents=True)
    (directory / "run.json").write_text(text)
    (run,) = list_runs(DirectoryPlace(str(tmp_path / "runs")), environ)
    assert run.started_at is None
    assert run.title
    found = Library(str(tmp_path / "runs"), environ).find([run.run_id])[0]
    assert len(read_rows(found)) == 0


def test_the_description_of_an_older_version_says_what_it_knows() -> None:
    run = run_of(
        "r", {"run_id": "r", "state": "finished", "status": "failed", "exit_code": 3, "objects": ["0001.csv.gz"]}
    )
    assert (run.exit_code, run.rows, run.scope, run.statistics) == (3, None, "", {})
    assert run_of("r", {"started_at": "2026-11-30T21:35:31.783Z"}).started_at == pytest.approx(1796074531.783)


@pytest.fixture
def bucket(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    server = RcloneS3(tmp_path / "s3", "data")
    shutil.copytree(runs, tmp_path / "s3" / "data" / "team x" / "runs")
    with server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        yield tmp_path / "s3" / "data" / "team x" / "runs"


def test_runs_in_a_bucket(bucket: Path, environ: dict[str, str]) -> None:
    library = Library("s3://data/team x/runs", environ)
    assert [run.run_id[:9] for run in library.runs()] == [f"2026112{number}-" for number in range(4)]
    found = library.find(["train"])[0]
    assert list(read_rows(found).times) == [START + 7200]
    assert found.location.startswith("s3://data/team x/runs/2026")
    # The run's own address, and runs of the API, which have no description.
    name = found.run.name
    assert names(Library(None, environ), f"s3://data/team x/runs/{name}") == [name]
    (bucket / name / "run.json").unlink()
    (run,) = Library(None, environ).find([f"s3://data/team x/runs/{name}/0001.csv.gz"])
    assert (run.run.run_id, run.run.is_described) == (name, False)
    assert len(read_rows(run)) == 1
    with pytest.raises(RunNotFoundError, match="holds several runs"):
        Library(None, environ).find(["s3://data/team x"])


def test_a_run_in_a_bucket_is_deleted_alone(bucket: Path, environ: dict[str, str]) -> None:
    library = Library("s3://data/team x/runs", environ)
    found = library.find(["eval"])[0]
    found.place.delete_run(found.run.name)
    assert len(Library("s3://data/team x/runs", environ).runs()) == 3
    assert len(list(bucket.iterdir())) in {3, 4}
    assert not list((bucket / found.run.name).glob("*"))


def test_a_bucket_that_cannot_be_read_says_why(
    bucket: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ReadError, match="cannot read s3://nowhere"):
        Library("s3://nowhere", environ).runs()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(bucket.parent))
    with pytest.raises(UsageError, match="no AWS credentials"):
        Library("s3://data", environ).runs()
    with pytest.raises(UsageError, match="names no bucket"):
        Library("s3://", environ)


def test_a_directory_that_somebody_sent_leads_nowhere_else(tmp_path: Path, environ: dict[str, str]) -> None:
    directory = write_run(tmp_path / "runs", "sent", [sample(0)])
    (tmp_path / "secret.csv").write_text("timestamp,process_memory_mib\n1796000000.0,5.0\n")
    objects = '["../../secret.csv", "..", "0001.csv.gz", "0002.csv.gz"]'
    description = directory / "run.json"
    description.write_text(description.read_text().replace('["0001.csv.gz"]', objects))
    os.mkfifo(directory / "0002.csv.gz")
    (found,) = Library(None, environ).find([str(directory)])
    rows = read_rows(found)
    assert list(rows.times) == [START]
    assert [remark.rpartition(": ")[2] for remark in rows.remarks] == ["not a regular file"]
    description.unlink()
    os.mkfifo(description)
    assert not list_runs(DirectoryPlace(str(tmp_path / "runs")), environ)[0].is_described


def test_a_run_is_deleted_but_for_what_somebody_put_there(runs: Path) -> None:
    place = DirectoryPlace(str(runs))
    first, second, *_ = sorted(runs.iterdir())
    (first / "notes.txt").write_text("keep")
    place.delete_run(first.name)
    place.delete_run(second.name)
    assert [path.name for path in first.iterdir()] == ["notes.txt"]
    assert not second.exists()
    with pytest.raises(ReadError, match="cannot delete"):
        place.delete_run(second.name)


def test_an_index_holds_what_a_description_says(runs: Path, environ: dict[str, str]) -> None:
    run = list_runs(DirectoryPlace(str(runs)), environ)[0]
    document = json.loads((runs / run.name / "run.json").read_text())
    assert run.statistic("process_cpu_usage", "mean") == document["statistics"]["process_cpu_usage"]["mean"]
    assert run.duration_s == document["statistics"]["duration_seconds"]
