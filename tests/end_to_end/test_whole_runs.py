"""The two installed commands as processes, from `/proc` to the delivered object."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from chaos.clock import ShiftedClock
from fakes.backend import TOKEN, Backend
from fakes.installation import BASE_PACKAGE, Environment
from fakes.keyring import Keyring
from fakes.process_harness import (
    BIN,
    COLLECTOR,
    DEADLINE_S,
    UPLOADER,
    Home,
    busy,
    python,
    rows_of_file,
    rows_of_objects,
    timestamps,
    wait_until,
)
from fakes.rclone import RcloneS3
from fakes.sentinel_api import SentinelServer

from sentinel_protocol.common.api_url import redact_url
from sentinel_protocol.wire.sample import COLUMNS


def finished(run: Any) -> bool:
    return run.finish is not None


def assert_whole(rows: list[str], expected: list[str]) -> None:
    assert rows == expected
    times = timestamps(rows)
    assert times == sorted(set(times))


def test_collector_alone_delivers_to_the_local_directory_and_ends_with_the_jobs_exit_code(home: Home) -> None:
    output = home.directory / "rows.csv"
    done = home.collector("--interval", "0.2", "--output", str(output), "--job-name", "alone", "--", *busy(1.0, 3))

    assert done.returncode == 3
    (run,) = home.local_runs()
    assert_whole(home.local_rows(run), rows_of_file(output))
    assert (run["state"], run["status"], run["exit_code"]) == ("finished", "failed", 3)
    assert run["metadata"]["job_name"] == "alone"
    assert run["rows"] == len(rows_of_file(output))
    used = run["statistics"]["process_utime"]["total"] + run["statistics"]["process_stime"]["total"]
    assert used == pytest.approx(1.0, abs=0.1)
    assert run["run_id"] in done.stderr
    assert str(home.runs / run["run_id"]) in done.stderr
    assert list((home.state / "collector").iterdir()) == []


def test_job_shorter_than_the_interval_has_one_exact_row(home: Home) -> None:
    home.collector("--quiet", "--interval", "60", "--", *busy(0.3))

    (run,) = home.local_runs()
    (row,) = home.local_rows(run)
    columns = dict(zip(COLUMNS, row.split(","), strict=True))
    used = float(columns["process_utime"]) + float(columns["process_stime"])
    # The interpreter's own start is part of it, the tree's last tick included.
    assert 0.3 <= used <= 0.5
    assert float(columns["process_memory_mib"]) > 1


def test_job_keeps_its_streams_and_arguments(home: Home) -> None:
    code = "import sys; print(sys.stdin.read() + sys.argv[1]); print('to stderr', file=sys.stderr)"
    process = home.start(COLLECTOR, "--quiet", "--", *python(code), "--pid", stdin=subprocess.PIPE)
    out, err = process.communicate("in ", timeout=DEADLINE_S)

    assert (process.returncode, out, err) == (0, "in --pid\n", "to stderr\n")


@pytest.mark.parametrize(("words", "code"), [(["no-such-command-here"], 127), (["/etc/passwd"], 126)])
def test_command_that_cannot_start_ends_like_a_shell(home: Home, words: list[str], code: int) -> None:
    done = home.collector("--", *words)

    assert done.returncode == code
    assert done.stderr.startswith("sentinel-collector: ")
    assert "Traceback" not in done.stderr
    assert home.local_runs() == []


def test_termination_reaches_the_job_and_its_last_words_are_recorded(home: Home) -> None:
    ready = home.directory / "ready"
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        f"open({str(ready)!r}, 'w').close()\n"
        "while True: time.sleep(0.01)"
    )
    process = home.start(COLLECTOR, "--quiet", "--", *python(code))
    wait_until(ready.exists, "the job is ready")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=DEADLINE_S)

    assert process.returncode == 7
    assert [run["exit_code"] for run in home.local_runs()] == [7]


def test_every_row_is_in_exactly_one_object_of_finish(home: Home, backend: Backend) -> None:
    output = home.directory / "rows.csv"
    home.start_uploader("--upload-interval", "0.5", env=backend.environ)
    done = home.collector(
        "--connect", home.address, "--interval", "0.1", "--output", str(output), "--wait", "30", "--", *busy(2.5)
    )

    assert done.returncode == 0
    run = backend.only_run()
    assert_whole(backend.rows(run), rows_of_file(output))
    uris = run.finish["data_uris"]
    assert len(uris) >= 3
    assert uris == [f"{run.prefix}/{number:04d}.csv.gz" for number in range(1, len(uris) + 1)]
    assert (run.finish["run_status"], run.finish["exit_code"]) == ("finished", 0)
    assert run.registration["command"].startswith("[")
    assert "pid" not in run.registration
    assert not {"host_id", "host_hostname", "host_ip"} & set(run.registration)
    for uri in uris:
        assert len(backend.s3.versions(uri)) == 1


def test_real_storage_server_takes_the_objects(home: Home, tmp_path: Path) -> None:
    output = home.directory / "rows.csv"
    keyring = Keyring(fixed=RcloneS3.keys)
    (tmp_path / "s3").mkdir()
    with (
        RcloneS3(tmp_path / "s3", "bucket") as s3,
        SentinelServer(token=TOKEN, keyring=keyring, upload_root="s3://bucket/some prefix+x", fetch=s3.fetch) as api,
    ):
        environ = {"SENTINEL_API_URL": api.url, "SENTINEL_API_TOKEN": TOKEN, "AWS_ENDPOINT_URL_S3": s3.url}
        home.start_uploader("--upload-interval", "0.5", env=environ)
        home.collector(
            "--connect", home.address, "--interval", "0.1", "--output", str(output), "--wait", "30", "--", *busy(1.5)
        )
        (run,) = api.runs.values()
        bodies = [s3.fetch(uri) for uri in run.finish["data_uris"]] if run.finish else []

    assert len(bodies) >= 2
    assert_whole(rows_of_objects(body for body in bodies if body is not None), rows_of_file(output))


def test_short_job_is_delivered_inline(home: Home, backend: Backend) -> None:
    output = home.directory / "rows.csv"
    done = home.collector("--interval", "0.2", "--output", str(output), "--", *busy(1.0), env=backend.environ)

    assert done.returncode == 0
    run = backend.only_run()
    assert "data_csv" in run.finish
    assert_whole(backend.rows(run), rows_of_file(output))
    assert backend.s3.objects() == {}


def test_runs_that_an_agent_cannot_deliver_are_told_at_the_next_run(home: Home, backend: Backend) -> None:
    refused = backend.api.faults.add("register", status=422, times=1)
    told = "1 earlier run is not delivered yet; `sentinel-uploader status` says why"
    first = home.collector("--wait", "0", "--", "true", env=backend.environ)
    # The refusal may come before the collector has ended or after it.
    assert "the uploader has all samples" in first.stderr or "has set the run aside" in first.stderr
    wait_until(lambda: [run["state"] for run in _statuses(home)] == ["parked"], "the run is parked")
    assert refused.fired
    second = home.collector("--", "true", env=backend.environ)
    assert second.stderr.count(told) == 1
    assert told not in first.stderr
    assert told not in home.collector("--quiet", "--", "true", env=backend.environ).stderr


def test_host_is_tracked_until_told_to_stop(home: Home) -> None:
    process = home.start(COLLECTOR, "--interval", "0.1")
    wait_until(lambda: any(run["rows_waiting"] >= 3 for run in _statuses(home)), "rows arrive")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=DEADLINE_S)

    assert process.returncode == 0
    (run,) = home.local_runs()
    assert (run["status"], run["exit_code"]) == ("finished", 0)
    assert all(row.endswith("," * 10) for row in home.local_rows(run))


def test_next_run_of_a_host_is_another_one_without_a_word(home: Home) -> None:
    for count in (1, 2):
        process = home.start(COLLECTOR, "--interval", "0.1")
        wait_until(lambda: any(run["rows_waiting"] >= 3 for run in _statuses(home)), "rows arrive")
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0
        assert "new run" not in said
        assert len(_finished_runs(home)) == count
    first, second = sorted(home.local_runs(), key=lambda run: len(run["run_key"]))
    assert second["run_key"].startswith(first["run_key"] + "~")


def test_named_run_that_has_ended_is_not_continued_and_that_is_told(home: Home) -> None:
    for count in (1, 2):
        done = home.collector("--run-key", "nightly", "--", "true")
        assert ("the run 'nightly' has already ended; starting a new run" in done.stderr) == (count == 2)
        assert len(_finished_runs(home)) == count


def test_foreign_process_is_tracked_until_it_ends(home: Home) -> None:
    target = home.start(*busy(1.0))
    done = home.collector("--quiet", "--interval", "0.1", "--pid", str(target.pid))

    assert done.returncode == 0
    (run,) = home.local_runs()
    assert (run["status"], run["exit_code"]) == ("finished", None)
    assert {row.split(",")[21] for row in home.local_rows(run)} == {str(target.pid)}


def test_killed_uploader_and_killed_collector_go_on_with_the_same_run(home: Home, backend: Backend) -> None:
    output = home.directory / "rows.csv"
    words = ["--upload-interval", "1"]
    target = home.start(*python("import time; time.sleep(60)"))
    collect = [COLLECTOR, "--connect", home.address, "--interval", "0.1", "--pid", str(target.pid)]
    collect += ["--output", str(output), "--wait", "40"]
    uploader = home.start_uploader(*words, env=backend.environ)
    collector = home.start(*collect)
    wait_until(backend.s3.objects, "a first object")

    uploader.kill()
    uploader.wait()
    rows_before = len(rows_of_file(output))
    wait_until(lambda: len(rows_of_file(output)) > rows_before + 5, "rows are taken while the uploader is away")
    home.start_uploader(*words, env=backend.environ)
    stored = _stored_rows(home)
    wait_until(lambda: _stored_rows(home) > stored + 10, "the run goes on")

    collector.kill()
    collector.wait()
    at_kill = rows_of_file(output)
    collector = home.start(*collect)
    wait_until(lambda: len(rows_of_file(output)) > len(at_kill) + 5, "the new collector takes rows")
    target.kill()
    target.wait()
    collector.communicate(timeout=DEADLINE_S)

    assert collector.returncode == 0
    run = backend.only_run()
    rows, written = backend.rows(run), rows_of_file(output)
    times = timestamps(rows)
    assert times == sorted(set(times))
    # The row of the instant of the kill may be in one place and not in the other.
    assert set(rows) ^ set(written) <= {at_kill[-1], *(set(rows) - set(written))}
    assert len(set(rows) ^ set(written)) <= 1
    assert written[: len(at_kill)] == at_kill


def test_two_collectors_share_one_uploader_and_have_two_runs(home: Home, backend: Backend) -> None:
    home.start_uploader("--upload-interval", "1", env=backend.environ)
    outputs = [home.directory / f"rows-{number}.csv" for number in range(2)]
    processes = [
        home.start(
            COLLECTOR, "--connect", home.address, "--interval", "0.1", "--output", str(output), "--wait", "30",
            "--job-name", output.name, "--", *busy(1.5),
        )
        for output in outputs
    ]  # fmt: skip
    for process in processes:
        process.communicate(timeout=DEADLINE_S)

    assert [process.returncode for process in processes] == [0, 0]
    runs = {run.registration["job_name"]: run for run in backend.api.runs.values()}
    assert len(runs) == 2
    for output in outputs:
        assert_whole(backend.rows(runs[output.name]), rows_of_file(output))


def test_two_collectors_that_start_at_once_share_one_agent(home: Home) -> None:
    processes = [home.start(COLLECTOR, "--quiet", "--interval", "0.1", "--", *busy(0.5)) for _ in range(3)]
    for process in processes:
        process.communicate(timeout=DEADLINE_S)

    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(home.local_runs()) == 3
    assert len(list((home.state / "spool").glob("*/spool.db"))) == 1


@pytest.mark.timeout(180)
def test_outages_of_register_storage_and_finish_lose_nothing_and_are_not_hammered(home: Home, backend: Backend) -> None:
    away_s = 1.5
    register = backend.api.faults.add("register", status=503, for_s=away_s)
    put = backend.s3.faults.add("put", code="ServiceUnavailable", for_s=away_s)
    finish = backend.api.faults.add("finish", status=503, times=2)
    output = home.directory / "rows.csv"
    home.start_uploader("--upload-interval", "1", env=backend.environ)
    target = home.start(*python("import time; time.sleep(120)"))
    collector = home.start(
        COLLECTOR, "--connect", home.address, "--interval", "0.1", "--output", str(output), "--wait", "100",
        "--pid", str(target.pid),
    )  # fmt: skip
    wait_until(backend.s3.objects, "an object, after registration and storage had been away")
    target.kill()
    collector.communicate(timeout=DEADLINE_S)

    assert collector.returncode == 0
    # Distances that double up to their cap, at random from zero: seven tries and more within the outage are one chance
    # in 10^8. How they grow over minutes is looked at in test_api_over_time.
    assert 1 <= register.fired <= 6
    assert 1 <= put.fired <= 6
    assert finish.fired == 2
    assert_whole(backend.rows(backend.only_run()), rows_of_file(output))


def test_no_uploader_in_reach_leaves_the_run_for_the_next_collector(home: Home) -> None:
    output = home.directory / "rows.csv"
    done = home.collector("--connect", home.address, "--interval", "0.1", "--output", str(output), "--", *busy(0.6, 5))

    assert done.returncode == 5
    kept = list((home.state / "collector").glob("*.rows"))
    assert len(kept) == 1
    assert str(kept[0]) in done.stderr

    home.start_uploader()
    done = home.collector("--connect", home.address, "--wait", "20", "--quiet", "--", "true")

    assert done.returncode == 0
    wait_until(lambda: len(_finished_runs(home)) == 2, "both runs are delivered")
    (left,) = [run for run in _finished_runs(home) if run["exit_code"] == 5]
    assert_whole(home.local_rows(left), rows_of_file(output))
    assert list((home.state / "collector").glob("*.rows")) == []


def test_local_target_needs_no_package_of_the_extra(home: Home) -> None:
    environment = Environment(home.directory / "environment", BASE_PACKAGE)
    done = home.run(environment.collector, "--", "true")

    assert done.returncode == 0
    assert len(home.local_runs()) == 1
    refused = home.run(environment.uploader, "serve", env={"SENTINEL_API_TOKEN": TOKEN})
    assert refused.returncode == 2
    assert "sentinel-stream[uploader]" in refused.stderr


def test_secrets_stay_with_the_uploader(home: Home, backend: Backend) -> None:
    home.start_uploader("--upload-interval", "0.3", "-v", env=backend.environ)
    process = home.start(
        COLLECTOR, "-v", "--connect", home.address, "--interval", "0.1", "--wait", "20", "--", *busy(1.5)
    )
    wait_until(backend.s3.objects, "an object")
    command_lines = b"".join(path.read_bytes() for path in _readable(Path("/proc").glob("[0-9]*/cmdline")))
    _, said = process.communicate(timeout=DEADLINE_S)

    secrets = [TOKEN, *(issued.secret_key for issued in backend.keyring.all())]
    secrets += [issued.session_token for issued in backend.keyring.all() if issued.session_token]
    assert len(secrets) >= 3
    written = b"".join(path.read_bytes() for path in home.directory.rglob("*") if path.is_file())
    for secret in secrets:
        assert secret.encode() not in written
        assert secret.encode() not in command_lines
        assert secret not in said


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--intervall", "1", "--", "true"], "--interval"),
        (["--interval", "0", "--", "true"], "0"),
        (["--connect", "tcp://example.org:1", "--", "true"], "--insecure"),
        (["--connect", "udp://x", "--", "true"], "udp://x"),
        (["--pid", "0"], "--pid"),
        (["--pid", "4194999"], "4194999"),
        (["--pid", "9" * 5000], "no process 9999"),
        (["--pid", "1", "--", "true"], "--pid"),
        (["python", "train.py", "--epochs", "3 4"], "sentinel-collector -- python train.py --epochs '3 4'"),
        (["--interval", "2", "make"], "sentinel-collector --interval 2 -- make"),
        (["--"], "command"),
    ],
)
def test_wrong_use_is_told_before_anything_starts(home: Home, words: list[str], named: str) -> None:
    marker = home.directory / "started"
    words = [word if word != "true" or "--" not in words else f"touch {marker}" for word in words]
    done = home.collector(*words)

    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert not marker.exists()


@pytest.mark.parametrize("url", ["foo", "ftp://h", "https://user:planted@h"])
def test_address_of_the_api_that_is_none_is_told_before_anything_starts(home: Home, url: str) -> None:
    marker = home.directory / "started"
    environ = {"SENTINEL_API_URL": url, "SENTINEL_API_TOKEN": TOKEN}
    for words in (["--", "touch", str(marker)], ["--pid", str(os.getpid())]):
        done = home.collector(*words, env=environ)
        assert done.returncode == 2, done.stderr
        assert f"SENTINEL_API_URL {redact_url(url)!r}" in done.stderr
        assert "planted" not in done.stderr
    assert not marker.exists()


@pytest.mark.parametrize("with_token", [True, False])
def test_address_of_the_api_is_looked_at_only_where_it_is_used(home: Home, with_token: bool) -> None:
    environ = {"SENTINEL_API_URL": "foo"}
    words: tuple[str, ...] = ()
    if with_token:
        # An uploader that somebody else runs has settings of its own.
        home.start_uploader("--target", str(home.runs))
        environ["SENTINEL_API_TOKEN"] = TOKEN
        words = ("--connect", home.address)
    done = home.collector(*words, "--wait", "20", "--", "true", env=environ)
    assert done.returncode == 0, done.stderr
    (run,) = home.local_runs()
    assert run["rows"] == 1


@pytest.mark.parametrize("words", ["--help", "--version"])
def test_help_that_cannot_be_written_is_one_line_and_a_failure(home: Home, words: str) -> None:
    done = home.run("sh", "-c", f"exec '{COLLECTOR}' {words} >/dev/full", env={"PYTHONUNBUFFERED": ""})
    complaint = "sentinel-collector: cannot write the output: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, complaint)
    on_stderr = home.run("sh", "-c", f"exec '{COLLECTOR}' {words} >&-")
    assert (on_stderr.returncode, on_stderr.stderr.startswith(("usage: ", "sentinel-collector "))) == (0, True)


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_streams_that_are_closed_or_full_change_nothing(home: Home, closed: str) -> None:
    output = home.directory / "rows.csv"
    ours = home.directory / "ours"
    job = f"sh -c 'readlink /proc/$PPID/fd/2 > {ours}; [ -e /proc/$$/fd/2 ] && exit 7; exit 8'"
    script = f"exec sentinel-collector -v --output {output} -- {job} {closed}"
    environ = {"PATH": f"{BIN}:{os.environ['PATH']}"}
    done = home.run("sh", "-c", script, env=environ)
    # Where we hold the place of a closed stream the job has none.
    assert done.returncode == (7 if "full" in closed else 8)
    assert ours.read_text() == ("/dev/full\n" if "full" in closed else "/dev/null\n")
    (run,) = home.local_runs()
    assert home.local_rows(run) == rows_of_file(output)
    nothing = home.run("sh", "-c", f"exec sentinel-collector -- no-such-command {closed}", env=environ)
    wrong = home.run("sh", "-c", f"exec sentinel-collector --interval nan -- true {closed}", env=environ)
    assert (nothing.returncode, wrong.returncode) == (127, 2)


def test_bad_configuration_file_is_told_and_the_run_is_recorded_without_what_is_wrong(home: Home) -> None:
    file = home.directory / "settings.toml"
    file.write_text('intervall = 1\njob_name = "nightly"\nteam = 7\nconnect = ["udp://x"]\n', encoding="utf-8")
    done = home.collector("--config", str(file), "--stage-name", "first", "--", *python("raise SystemExit(9)"))

    assert done.returncode == 9
    for wrong in ("unknown key 'intervall' (value 1); did you mean 'interval'?", "team: 7: must be text", "'udp://x'"):
        assert [
            line
            for line in done.stderr.splitlines()
            if line.startswith(f"sentinel-collector: {file}: ") and wrong in line
        ]
    assert done.stderr.count("; continuing without it\n") == 3
    (run,) = home.local_runs()
    # The key that is not understood may have been meant to keep the command line back.
    assert run["metadata"] == {"job_name": "nightly", "stage_name": "first"}
    assert run["exit_code"] == 9


def test_configuration_file_that_is_not_toml_costs_no_run_and_one_that_is_not_there_no_job(home: Home) -> None:
    file = home.directory / "settings.toml"
    file.write_text("interval = ", encoding="utf-8")
    done = home.collector("--config", str(file), "--command-line", "--", *python("raise SystemExit(9)"))
    assert done.returncode == 9
    assert f"{file}: is not TOML: " in done.stderr
    (run,) = home.local_runs()
    assert run["metadata"]["command"] == python("raise SystemExit(9)")

    marker = home.directory / "started"
    done = home.collector("--config", "nowhere.toml", "--", "touch", str(marker))
    assert (done.returncode, done.stderr) == (
        2, "sentinel-collector: nowhere.toml: cannot be read: No such file or directory\n"
    )  # fmt: skip
    assert not marker.exists()


def test_configuration_may_come_through_a_pipe(home: Home) -> None:
    process = home.start(COLLECTOR, "--config", "/dev/stdin", "--", "true", stdin=subprocess.PIPE)
    _, said = process.communicate('accounting = "proc"\nscope = "host"\njob_name = "piped"\n', timeout=DEADLINE_S)
    assert process.returncode == 0, said
    (run,) = home.local_runs()
    assert run["metadata"]["job_name"] == "piped"


def test_configuration_file_may_say_that_the_network_is_trusted(home: Home) -> None:
    file = home.directory / "settings.toml"
    words = ("--config", str(file), "--connect", "tcp://192.0.2.1:9", "--", "no-such-command")
    for content, exit_code in (("", 2), ("insecure = true", 127)):
        file.write_text(content, encoding="utf-8")
        done = home.collector(*words)
        assert (done.returncode, "--insecure" in done.stderr) == (exit_code, exit_code == 2)


def test_continued_output_is_appended_to_and_another_runs_is_replaced(home: Home) -> None:
    output = home.directory / "rows.csv"
    target = home.start(*python("import time; time.sleep(60)"))
    words = ["--quiet", "--interval", "0.1", "--output", str(output), "--pid", str(target.pid)]
    collector = home.start(COLLECTOR, *words)
    wait_until(lambda: output.exists() and len(output.read_text().splitlines()) > 3, "rows are written")
    collector.kill()
    collector.wait()
    with open(output, "a", encoding="utf-8") as file:
        file.write("1795")
    first = rows_of_file(output)[:-1]
    collector = home.start(COLLECTOR, *words)
    wait_until(lambda: len(rows_of_file(output)) > len(first) + 2, "rows are appended")
    collector.terminate()
    collector.communicate(timeout=DEADLINE_S)
    rows = rows_of_file(output)

    assert rows[: len(first)] == first
    assert all(row.count(",") == 31 for row in rows)
    home.collector("--quiet", "--output", str(output), "--", "true")
    assert len(rows_of_file(output)) == 1


def test_of_two_runs_at_once_one_writes_the_output_and_the_other_says_so(home: Home) -> None:
    output, is_over = home.directory / "out" / "rows.csv", home.directory / "over"
    words = [
        "--interval",
        "0.1",
        "--output",
        str(output),
        "--summary-json",
        str(home.directory / "out" / "s" / "x.json"),
    ]
    waits = f"import os, time\nwhile not os.path.exists({str(is_over)!r}): time.sleep(0.02)"
    first = home.start(COLLECTOR, *words, "--", *python(waits))
    wait_until(lambda: output.exists() and len(rows_of_file(output)) > 2, "rows are written")
    second = home.collector(*words, "--", "sh", "-c", "exit 3")
    assert (second.returncode, f"cannot write {output}: another run" in second.stderr) == (3, True), second.stderr
    is_over.touch()
    _, said = first.communicate(timeout=DEADLINE_S)
    assert (first.returncode, "cannot write" in said) == (0, False), said
    whole = [run for run in home.local_runs() if run["exit_code"] == 0]
    assert home.local_rows(whole[0]) == rows_of_file(output)


def test_clock_set_back_between_two_collectors_of_a_run_changes_no_row_that_was_written(home: Home) -> None:
    output = home.directory / "rows.csv"
    clock = ShiftedClock(home.directory, "collector")
    target = home.start(*python("import time; time.sleep(60)"))
    words = [COLLECTOR, "--interval", "0.1", "--connect", home.address, "--pid", str(target.pid), "--wait", "40"]
    words += ["--output", str(output)]
    uploader = home.start_uploader("--target", str(home.runs))
    collector = home.start(*words, env=clock.environ)
    wait_until(lambda: _stored_rows(home) > 3, "rows are stored")
    collector.kill()
    collector.wait()
    uploader.kill()
    uploader.wait()
    first = rows_of_file(output)

    clock.turn(-3600.0)
    collector = home.start(*words, env=clock.environ)
    wait_until(lambda: len(rows_of_file(output)) > len(first) + 2, "rows are taken before the uploader has spoken")
    home.start_uploader("--target", str(home.runs))
    collector.terminate()
    _, said = collector.communicate(timeout=DEADLINE_S)

    assert clock.wrong_readings
    assert "set back" not in said
    (run,) = home.local_runs()
    rows = home.local_rows(run)
    # What was killed may have had a row that nobody had got yet.
    assert [row for row in rows_of_file(output) if row in set(rows)] == rows
    assert_whole(rows[-len(rows_of_file(output)[len(first) :]) :], rows_of_file(output)[len(first) :])


def _statuses(home: Home) -> list[dict[str, Any]]:
    if not (home.state / "spool").exists() and not (home.directory / "spool" / "spool.db").exists():
        return []
    words = ("--spool", str(home.directory / "spool")) if (home.directory / "spool" / "spool.db").exists() else ()
    done = home.run(UPLOADER, "status", "--json", *words)
    return [] if done.returncode else [run for spool in json.loads(done.stdout) for run in spool["runs"]]


def _stored_rows(home: Home) -> int:
    """Rows of all runs that the uploader holds or has delivered."""
    return sum(run["rows_waiting"] + run["rows_delivered"] for run in _statuses(home))


def _finished_runs(home: Home) -> list[Mapping[str, Any]]:
    return [run for run in home.local_runs() if run["state"] != "running"]


def _readable(paths: Any) -> Iterator[Path]:
    for path in paths:
        if os.access(path, os.R_OK):
            try:
                path.read_bytes()
            except OSError:
                continue
            yield path
