"""`sentinel-uploader`: what is said to somebody who uses it wrongly, and to somebody who uses it well."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.process_harness import UPLOADER, Home, wait_until
from fakes.scripted_backend import SteppedClock
from fakes.uploader_harness import finish, frame, hello, open_spool_at

from sentinel_protocol.common.endpoints import MAX_UNIX_PATH_BYTES
from sentinel_protocol.common.local_uploader import local_uploader_paths
from sentinel_protocol.common.paths import APPLICATION
from sentinel_uploader.cli.main import main
from sentinel_uploader.runs.lifecycle import Event


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("HOME", "XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    for name in ("SENTINEL_API_TOKEN", "SENTINEL_API_KEY", "SENTINEL_API_TOKEN_FILE", "SENTINEL_TARGET"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Run a command that ends by itself; returns exit code, output and errors."""
    try:
        code = main(list(words))
    except SystemExit as ended:
        # What argparse ends with.
        code = int(str(ended.code))
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--no-such-flag"], ["--no-such-flag"]),
        (["--spool-max", "12"], ["--spool-max", "'12'", "131072"]),
        (["--spool-max", "2 G"], ["--spool-max", "'2 G'"]),
        (["--upload-interval", "0"], ["--upload-interval", "'0'"]),
        (["--upload-interval", "soon"], ["--upload-interval", "'soon'"]),
        (["--stale-after", "nan"], ["--stale-after", "'nan'"]),
        (["--exit-when-idle", "-1"], ["--exit-when-idle", "'-1'"]),
        (["--log-format", "xml"], ["--log-format", "'xml'", "text", "json"]),
        (["--bind", "here"], ["'here'", "tcp://HOST:PORT"]),
        (["--bind", "tcp://127.0.0.1:99999"], ["99999"]),
        (["--bind", "ipc://relative/path"], ["absolute"]),
        (["--bind", f"ipc:///{'x' * MAX_UNIX_PATH_BYTES}"], ["limited to 107 bytes", "has 108"]),
        (["--bind", "ipc:///no/such/directory/u.sock"], ["/no/such/directory is not a directory"]),
        (["--bind", "tcp://0.0.0.0:5555"], ["tcp://0.0.0.0:5555", "--insecure"]),
        (["--bind", "tcp://*:5555"], ["--insecure"]),
        (["--target", "sentinel:"], ["SENTINEL_API_TOKEN"]),
        (["--target", "https://example.org"], ["--target", "https://example.org"]),
        (["--target", "/dev/null/runs"], ["/dev/null/runs"]),
        (["--spool", "/dev/null/spool"], ["/dev/null/spool"]),
        (["--config", "/no/such/file"], ["/no/such/file"]),
        (["drain", "--timeout", "soon"], ["--timeout", "'soon'"]),
        (["drain", "--timeout", "-1"], ["--timeout"]),
        (["status", "--spool", "/no/such/spool"], ["there is no spool in /no/such/spool"]),
        (["show"], ["RUN"]),
        (["statu"], ["there is no command 'statu'", "did you mean 'status'?"]),
        (["nonsense", "status"], ["there is no command 'nonsense'; see"]),
        (["status", "--config", "/no/such/file"], ["/no/such/file"]),
        (["show", "nobody"], ["no run 'nobody' in any spool of this user's"]),
        (["discard", "nobody"], ["no run 'nobody'"]),
        (["retry", "nobody"], ["no run 'nobody'"]),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else None,
)
def test_wrong_use_is_named_and_ends_with_2(
    capsys: pytest.CaptureFixture[str], words: list[str], named: list[str]
) -> None:
    code, out, err = told(capsys, *words)
    assert (code, out) == (2, "")
    for text in named:
        assert text in err


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("upload_intervall = 3", ["'upload_intervall'", "3", "did you mean 'upload_interval'"]),
        ("upload_interval = 'x'", ["upload_interval", "'x'"]),
        ("bind = 5", ["bind", "5"]),
        ("spool_max = true", ["spool_max", "True"]),
        ("= 3", ["is not TOML"]),
        ("[collector]\ninterval = 3", ["[collector]", "without a table", "a file each"]),
    ],
)
def test_bad_configuration_names_file_key_and_value(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, named: list[str]
) -> None:
    file = tmp_path / "uploader.toml"
    file.write_text(text, encoding="utf-8")
    code, _, err = told(capsys, "--config", str(file))
    assert code == 2
    for part in [str(file), *named]:
        assert part in err


def test_bad_variable_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKER_UPLOAD_INTERVAL", "often")
    code, _, err = told(capsys)
    assert code == 2
    assert "TRACKER_UPLOAD_INTERVAL: 'often'" in err


def test_help_and_version_go_to_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = told(capsys, "--help")
    assert (code, err) == (0, "")
    for word in ("--bind", "--spool-max", "status", "drain", "discard", "SENTINEL_STALE_AFTER"):
        assert word in out
    code, out, _ = told(capsys, "--version")
    assert code == 0
    assert out.startswith("sentinel-uploader ")
    for command in ("status", "show", "drain", "retry", "discard"):
        code, out, _ = told(capsys, command, "--help")
        assert code == 0
        assert f"sentinel-uploader {command}" in out


def test_status_of_all_of_the_users_spools(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    looked_in = tmp_path / "home" / APPLICATION / "spool"
    assert told(capsys, "status") == (
        0,
        f"no spool in {looked_in}; --spool DIR or --config FILE names one elsewhere\n",
        "",
    )
    assert told(capsys, "status", "--json") == (0, "[]\n", "")
    base = tmp_path / "home" / APPLICATION / "spool"
    base.mkdir(parents=True)
    for number in (1, 2):
        spool = open_spool_at(base / f"agent-{number}", SteppedClock())
        run = spool.open_run(hello(f"run-{number}", metadata={"job_name": "ü"}), owner="")
        spool.append([frame(run, 1, 3)], [(run, finish(3, 2, "failed"))])
        spool.close()
    code, out, _ = told(capsys, "status", "--json")
    assert code == 0
    assert [[run["key"] for run in spool["runs"]] for spool in json.loads(out)] == [["run-1"], ["run-2"]]
    code, out, _ = told(capsys, "status")
    assert out.count("no uploader running") == 2
    code, out, _ = told(capsys, "show", "run-2")
    assert "exit_code: 2" in out
    assert "job_name: ü" in out
    code, out, _ = told(capsys, "discard", "run-1")
    assert (code, out) == (0, "discard: run-1 done\n")
    code, out, err = told(capsys, "retry", "run-2")
    assert (code, out) == (1, "")
    assert "not parked" in err


def test_serve_has_a_help_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = told(capsys, "serve", "--help")
    assert (code, err) == (0, "")
    assert out.startswith("usage: sentinel-uploader serve ")
    assert "--bind" in out
    assert "discard RUN" not in out


def test_commands_look_where_an_uploader_with_the_same_file_keeps_its_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("named", "other"):
        spool = open_spool_at(tmp_path / name, SteppedClock())
        spool.open_run(hello(f"run-{name}"), owner="")
        spool.close()
    file = tmp_path / "uploader.toml"
    file.write_text(f"bind = ['tcp://127.0.0.1:7740']\nspool = '{tmp_path / 'named'}'\n", encoding="utf-8")
    _, out, _ = told(capsys, "status", "--json", "--config", str(file))
    assert [run["key"] for spool in json.loads(out) for run in spool["runs"]] == ["run-named"]
    assert told(capsys, "show", "run-named", "--config", str(file))[0] == 0
    _, out, _ = told(capsys, "status", "--config", str(file), "--spool", str(tmp_path / "other"))
    assert "run-other" in out
    code, out, _ = told(capsys, "discard", "run-named", "--config", str(file))
    assert (code, out) == (0, "discard: run-named done\n")
    # Without a spool of its own it is the one that belongs to the target.
    file.write_text(f"target = '{tmp_path / 'runs'}'\n", encoding="utf-8")
    code, _, err = told(capsys, "status", "--config", str(file))
    place = local_uploader_paths(os.environ, str(tmp_path / "runs"))
    assert (code, err) == (2, f"sentinel-uploader: there is no spool in {place.spool_dir}\n")


@pytest.mark.parametrize("words", ["status", "status --json", "show run-1", "retry run-1", "discard run-1", "drain"])
@pytest.mark.parametrize(
    ("redirection", "reason"), [(">&-", "it is closed"), (">/dev/full", "No space left on device")]
)
def test_output_that_cannot_be_written_is_one_line_and_a_failure(
    home: Home, words: str, redirection: str, reason: str
) -> None:
    spool = open_spool_at(home.directory / "spool", SteppedClock())
    run = spool.open_run(hello("run-1"), owner="")
    spool.update(run, Event.PERMANENT_FAILURE)
    spool.close()
    command = f"'{UPLOADER}' {words} --spool '{home.directory / 'spool'}' {redirection}"
    done = subprocess.run(["bash", "-c", command], env=home.environ, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"sentinel-uploader: cannot write the output: {reason}"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", ["--help", "--version", "status --help"])
def test_help_for_nobody_is_no_traceback(home: Home, words: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"'{UPLOADER}' {words} >/dev/full"],
        # As it is with most people: what is printed waits for the end of the process.
        env=home.environ | {"PYTHONUNBUFFERED": ""}, stderr=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "sentinel-uploader: cannot write the output: No space left on device\n"


def test_errors_for_nobody_still_have_their_exit_code(home: Home) -> None:
    for redirection in ("2>&-", "2>/dev/full"):
        done = subprocess.run(
            ["bash", "-c", f"'{UPLOADER}' status --spool /no/such/spool {redirection}"],
            env=home.environ, stdout=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (2, "")


def test_damaged_spool_is_told_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    open_spool_at(tmp_path / "spool", SteppedClock()).close()
    (tmp_path / "spool" / "spool.db").write_bytes(b"rubbish" * 1000)
    for command in (["status"], ["show", "x"], ["discard", "x"]):
        code, out, err = told(capsys, *command, "--spool", str(tmp_path / "spool"))
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert "cannot read the spool" in err


def test_spool_of_a_newer_version_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    spool = open_spool_at(tmp_path / "spool", SteppedClock())
    spool._database.connection.execute("PRAGMA user_version = 99")
    spool.close()
    code, _, err = told(capsys, "--spool", str(tmp_path / "spool"), "--target", str(tmp_path / "runs"))
    assert code == 1
    assert "newer sentinel-uploader" in err


def test_insecure_listens_beyond_this_machine_when_told_to(home: Home) -> None:
    log = home.directory / "log"
    with log.open("w") as file:
        process = home.start(
            UPLOADER, "--bind", "tcp://0.0.0.0:0", "--insecure", "--spool", str(home.directory / "spool"),
            "--log-format", "json", stderr=file,
        )  # fmt: skip
    wait_until(lambda: "uploader ready" in log.read_text(), "the uploader listens")
    process.terminate()
    assert process.wait(60) == 0
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert {entry["level"] for entry in entries} == {"info"}
    assert "tcp://0.0.0.0:" in entries[0]["message"]


def test_reader_that_has_seen_enough_and_a_user_who_interrupts_see_no_traceback(home: Home) -> None:
    pipe = subprocess.run(
        ["bash", "-c", f"'{UPLOADER}' status --json | true; exit ${{PIPESTATUS[0]}}"],
        env=home.environ, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert pipe.returncode in {0, 1}
    assert pipe.stderr == ""
    code = (
        "import signal, sys, os; from sentinel_uploader.cli import main as cli\n"
        "def interrupted(args, environ): os.kill(os.getpid(), signal.SIGINT)\n"
        "cli.COMMANDS['status'] = cli.COMMANDS['status']._replace(run=interrupted)\n"
        "sys.exit(cli.main(['status']))"
    )
    done = home.run(sys.executable, "-c", code)
    assert (done.returncode, done.stderr) == (130, "")
