"""The command as a person types it, over runs that a collector recorded and over made-up ones."""

import csv
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.delivered_runs import sample, write_run
from fakes.process_harness import BIN, COLLECTOR, Home, busy, python, wait_until
from locations import TESTS

from sentinel_protocol.wire.sample import csv_rows

STREAM = str(BIN / "sentinel-stream")
HOSTILE = "<script>alert(1)</script>\x1b[2J\u202ejob"


@pytest.fixture
def recorded(home: Home) -> Home:
    """A home with a run that ended well, one that crashed, and one that was killed."""
    for name, words in (
        ("good", busy(0.2)),
        ("bad", python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")),
        ("good", busy(0.3)),
    ):
        home.collector("--interval", "0.1", "--job-name", name, "--", *words)
    return home


def test_recorded_runs_are_listed_shown_exported_and_deleted(recorded: Home) -> None:
    listed = recorded.run(STREAM, "ls")
    assert listed.returncode == 0, listed.stderr
    head, *lines = listed.stdout.splitlines()
    assert head.split()[:3] == ["run", "job", "or"]
    assert len(lines) == 3
    assert "crashed: SIGSEGV (139)" in lines[1]
    assert "finished" in lines[2]
    failed = json.loads(recorded.run(STREAM, "ls", "--failed", "--since", "1h", "--json").stdout)
    assert [(one["job"], one["exit_code"], one["delivered"]) for one in failed] == [("bad", 139, True)]
    assert len(json.loads(recorded.run(STREAM, "ls", "--job", "good", "--limit", "1", "--json").stdout)) == 1

    shown = recorded.run(STREAM, "show", "good")
    assert shown.returncode == 0, shown.stderr
    assert "cores on average" in shown.stdout
    assert "advice" in shown.stdout
    figures = json.loads(recorded.run(STREAM, "show", "good", "--json").stdout)
    good = [one for one in recorded.local_runs() if one["metadata"]["job_name"] == "good"]
    (run,) = [one for one in good if one["run_id"] == figures["run_id"]]
    (first,) = [one for one in good if one is not run]
    assert first["started_at"] < run["started_at"]
    assert figures["figures"]["cpu_s"] == pytest.approx(
        run["statistics"]["process_utime"]["total"] + run["statistics"]["process_stime"]["total"]
    )

    exported = recorded.run(STREAM, "export", "good", "good~1")
    table = list(csv.reader(io.StringIO(exported.stdout)))
    expected = [[one["run_id"], "0.1", *row.split(",")] for one in (run, first) for row in recorded.local_rows(one)]
    assert table[1:] == expected
    as_json = json.loads(recorded.run(STREAM, "export", "good", "--format", "json").stdout)
    assert [row["process_pid"] for row in as_json] == [int(row.split(",")[21]) for row in recorded.local_rows(run)]

    compared = recorded.run(STREAM, "compare", "good~1", "good", "bad")
    assert compared.returncode == 0, compared.stderr
    assert "CPU time" in compared.stdout

    kept = recorded.run(STREAM, "rm", "bad", stdin=None)
    assert kept.returncode == 1
    assert len(recorded.local_runs()) == 3
    deleted = recorded.run(STREAM, "rm", "bad", "--yes")
    assert deleted.returncode == 0, deleted.stderr
    assert len(recorded.local_runs()) == 2


def test_a_run_of_the_first_version_is_read(home: Home) -> None:
    shutil.copytree(TESTS / "golden" / "run-1", home.runs / "20261130-213552-e2b56f0e")
    assert "crashed: SIGSEGV (139)" in home.run(STREAM, "ls").stdout
    shown = home.run(STREAM, "show", "crash").stdout
    assert "peak 59 MiB (one process, between two rows; the rows reach 54 MiB)" in shown
    assert home.run(STREAM, "export", "crash").stdout.count("\n") == 4
    assert home.run(STREAM, "report", "crash", "-o", "run.html").returncode == 0


def test_a_job_that_leaks_is_found_out(home: Home) -> None:
    leaking = "import time\nkept = []\nfor _ in range(60):\n    kept.append(bytearray(1 << 20))\n    time.sleep(0.1)"
    home.collector("--interval", "0.1", "--pss-budget", "0", "--job-name", "leak", "--", *python(leaking))
    shown = home.run(STREAM, "show", "leak").stdout
    assert "!! memory: memory was still growing at the end" in shown


@pytest.fixture
def limited() -> Iterator[Path]:
    """A cgroup with 300 MiB of memory, where one can be made."""
    path = Path(f"/sys/fs/cgroup/memory/viewer-test-{os.getpid()}")
    name = "memory.limit_in_bytes"
    if not path.parent.is_dir():
        path, name = Path(f"/sys/fs/cgroup/viewer-test-{os.getpid()}"), "memory.max"
    try:
        path.mkdir()
        (path / name).write_text(str(300 << 20))
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    yield path
    wait_until(lambda: not (path / "cgroup.procs").read_text(), "the cgroup is empty")
    path.rmdir()


def test_a_job_that_is_killed_for_its_memory_is_told_so(home: Home, limited: Path) -> None:
    home.start_uploader()
    hungry = "import time\nkept = []\nwhile True:\n    kept.append(bytearray(4 << 20))\n    time.sleep(0.05)"
    words = [COLLECTOR, "--connect", home.address, "--interval", "0.1", "--wait", "60", "--", *python(hungry)]
    done = home.run("sh", "-c", f'echo $$ > {limited}/cgroup.procs; exec "$@"', "sh", *words)
    assert done.returncode == 137, done.stderr
    wait_until(lambda: home.local_runs() and home.local_runs()[0]["state"] == "finished", "the run is delivered")
    assert "killed by SIGKILL (137): probably the memory limit of 300 MiB" in home.run(STREAM, "ls", "--json").stdout
    shown = home.run(STREAM, "show").stdout
    assert "is near the limit of 300 MiB: raise the limit" in shown
    assert "memory was still growing at the end" in shown


def test_numbers_are_exported_as_they_were_delivered(home: Home) -> None:
    rows = [sample(0, cores=6.8e-05), sample(1, cores=1e-7, process_pid=None), sample(2, system_net_recv_bytes=2**53)]
    write_run(home.runs, "a,b", rows)
    lines = home.run(STREAM, "export", "latest").stdout.splitlines()
    assert lines[1:] == [f'"a,b",1.0,{line}' for line in csv_rows(rows).decode().splitlines()]


def test_a_run_is_deleted_only_after_a_yes(home: Home) -> None:
    write_run(home.runs, "one", [sample(0), sample(1)], job="train")
    for answer, code, left in (("", 1, 1), ("no\n", 1, 1), ("y\n", 0, 0)):
        process = home.start(STREAM, "rm", "train", stdin=-1)
        out, err = process.communicate(answer, timeout=60)
        assert process.returncode == code, err
        assert "2 rows" in out
        assert "delete it? [y/N]" in err
        assert len(home.local_runs()) == left


def test_an_object_is_not_a_run_to_delete(home: Home) -> None:
    directory = write_run(home.runs, "one", [sample(0), sample(1)], objects=2)
    done = home.run(STREAM, "rm", str(directory / "0001.csv.gz"), "--yes")
    assert done.returncode == 2
    assert "is a file: rm deletes whole runs" in done.stderr
    assert len(list(directory.iterdir())) == 3


def test_a_run_that_has_not_ended_is_not_deleted(home: Home) -> None:
    write_run(home.runs, "one", [sample(0)], state="running")
    done = home.run(STREAM, "rm", "one", "--yes")
    assert done.returncode == 1
    assert "has not ended" in done.stderr
    assert home.run(STREAM, "rm", "one", "--yes", "--force").returncode == 0


def test_names_from_elsewhere_do_not_steer_the_terminal(home: Home) -> None:
    write_run(home.runs, "one", [sample(0)], job=HOSTILE, host={"host_hostname": HOSTILE})
    for words in (["ls"], ["show", "latest"], ["compare", "one", "one"], ["rm", "one"]):
        done = home.run(STREAM, *words, stdin=-3)
        assert "<script>" in done.stdout, done.stderr
        assert "\x1b" not in done.stdout
        assert "\u202e" not in done.stdout
    assert json.loads(home.run(STREAM, "ls", "--json").stdout)[0]["job"] == HOSTILE


def test_nothing_there_yet_is_said_with_what_to_do(home: Home) -> None:
    done = home.run(STREAM, "ls")
    assert (done.returncode, done.stdout) == (0, "")
    assert "`sentinel-collector -- COMMAND` records one" in done.stderr
    done = home.run(STREAM, "show")
    assert done.returncode == 2
    assert "there are no runs in" in done.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["shwo"], "did you mean 'show'?"),
        (["--nonsense"], "unknown option '--nonsense'"),
        (["show", "nobody"], "there is no run 'nobody'"),
        (["ls", "--since", "yesterday"], "is no age (12h, 7d) and no date (2026-11-30)"),
        (["compare", "one"], "name two runs or more"),
        (["export", "one", "--format", "parquet"], "--format parquet needs -o FILE"),
        (["export", "one", "-o", "/nowhere/rows.csv"], "cannot write /nowhere/rows.csv"),
    ],
)
def test_wrong_use_is_explained(words: list[str], text: str, home: Home) -> None:
    write_run(home.runs, "one", [sample(0)])
    done = home.run(STREAM, *words)
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_help_teaches(home: Home) -> None:
    for words in (["--help"], []):
        done = home.run(STREAM, *words)
        assert done.returncode == 0
        assert done.stdout.index("commands:") < done.stdout.index("examples:") < done.stdout.index("options:")
    for command in ("ls", "show", "compare", "export", "rm"):
        assert home.run(STREAM, command, "--help").returncode == 0
    assert home.run(sys.executable, "-m", "sentinel_viewer", "--version").stdout.startswith("sentinel-stream ")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["co"], ["compare", "completion"]),
        (["show", "la"], ["latest"]),
        (["show", "tr"], ["train"]),
        (["rm", "20"], ["20261130-1"]),
        (["ls", "--fa"], ["--failed"]),
        (["export", "x", "--format", "p"], ["parquet"]),
    ],
)
def test_the_shell_completes(words: list[str], expected: list[str], home: Home) -> None:
    write_run(home.runs, "20261130-1", [sample(0)], job="train")
    write_run(home.runs, "20261130-2$(touch x)", [sample(0)], job="$(touch x)")
    script = f"""
        PATH={BIN}:$PATH
        source <(sentinel-stream completion bash)
        COMP_WORDS=(sentinel-stream {" ".join(words)}); COMP_CWORD={len(words)}
        _sentinel_stream; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = home.run("bash", "-c", script)
    assert done.stdout.split() == expected, done.stderr
    assert not (home.directory / "x").exists()


@pytest.mark.parametrize(("shell", "words"), [("zsh", ["zsh", "-n"]), ("fish", ["fish", "--no-execute"])])
def test_other_shells_take_their_script(shell: str, words: list[str], home: Home) -> None:
    done = home.run(STREAM, "completion", shell)
    assert "ls show report" in done.stdout
    (home.directory / "script").write_text(done.stdout)
    if shutil.which(shell):
        checked = home.run(*words, "script")
        assert checked.returncode == 0, checked.stderr


def test_a_reader_that_leaves_is_no_error(home: Home) -> None:
    write_run(home.runs, "one", [sample(second) for second in range(5000)])
    done = home.run("sh", "-c", f"{STREAM} export one | head -1")
    assert done.returncode == 0
    assert done.stderr == ""


def test_the_place_can_be_named_anywhere(home: Home, tmp_path: Path) -> None:
    write_run(tmp_path / "elsewhere", "one", [sample(0)])
    where = str(tmp_path / "elsewhere")
    for words, env in (
        (["--runs", where, "ls"], {}),
        (["ls", "--runs", where], {}),
        (["ls"], {"SENTINEL_RUNS": where}),
    ):
        assert "one" in home.run(STREAM, *words, env=env).stdout
