"""Settings: one table, four sources, and an error for each mistake that says where it was made."""

import argparse
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from locations import ROOT

from sentinel_protocol.common.errors import UsageError
from sentinel_protocol.common.settings.model import (
    Setting,
    boolean,
    choice,
    integer,
    key_value,
    path,
    seconds,
    size,
    text,
)
from sentinel_protocol.common.settings.sources import (
    SettingsFile,
    add_arguments,
    build_parser,
    merge_file,
    merge_file_collecting_errors,
    parse_flags_and_env,
    resolve,
)

TABLE = [
    Setting(
        name="upload_interval",
        flag="--upload-interval",
        env="TRACKER_UPLOAD_INTERVAL",
        parse=seconds(minimum=0.1),
        default=60.0,
        metavar="SECONDS",
        help="time between uploads",
    ),
    Setting(name="spool_max", flag="--spool-max", parse=size(minimum=1), default="2GiB", metavar="SIZE", help="limit"),
    Setting(name="connect", flag="--connect", env="SENTINEL_CONNECT", parse=text, repeatable=True, help="where | to"),
    Setting(name="tags", flag="--tag", env="TAGS", parse=key_value, metavar="K=V", help="labels, 100% free"),
    Setting(name="quiet", flag="--quiet", short="-q", env="QUIET", parse=boolean, default=False, help="say nothing"),
    Setting(name="no_cloud", flag="--no-cloud", parse=boolean, default=False, help="no discovery"),
    Setting(name="log_format", flag="--log-format", parse=choice("text", "json"), default="text", help="log lines"),
    Setting(name="state_dir", flag="--state-dir", parse=path, default_text="state home", metavar="DIR", help="state"),
    Setting(name="max_rows", flag=None, parse=integer(minimum=1, maximum=9), default=5, help="rows"),
]
DEFAULTS = {
    "upload_interval": 60.0,
    "spool_max": 2 * 2**30,
    "connect": [],
    "tags": {},
    "quiet": False,
    "no_cloud": False,
    "log_format": "text",
    "state_dir": None,
    "max_rows": 5,
}


def resolved(
    *words: str, environ: dict[str, str] | None = None, file: Path | None = None, toml: str | None = None
) -> dict[str, Any]:
    if file is not None and toml is not None:
        file.write_text(toml)
    args = build_parser(TABLE, "demo", "A demonstration").parse_args(words)
    return resolve(TABLE, args, environ or {}, str(file) if file is not None else None)


def error_of(
    *words: str, environ: dict[str, str] | None = None, file: Path | None = None, toml: str | None = None
) -> str:
    with pytest.raises(UsageError) as caught:
        resolved(*words, environ=environ, file=file, toml=toml)
    return str(caught.value)


def test_without_anything_all_is_default_and_nothing_is_shared() -> None:
    assert resolved() == DEFAULTS
    resolved()["connect"].append("tcp://x")
    resolved()["tags"]["a"] = "b"
    assert resolved() == DEFAULTS


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    toml, environ, flag = "upload_interval = 5", {"TRACKER_UPLOAD_INTERVAL": "6"}, ("--upload-interval", "7")
    assert resolved(file=file, toml=toml)["upload_interval"] == 5.0
    assert resolved(file=file, toml=toml, environ=environ)["upload_interval"] == 6.0
    assert resolved(*flag, file=file, toml=toml, environ=environ)["upload_interval"] == 7.0
    lists = {"SENTINEL_CONNECT": "tcp://a, tcp://b,"}
    assert resolved(environ=lists)["connect"] == ["tcp://a", "tcp://b"]
    assert resolved("--connect", "ipc:///c,d", environ=lists)["connect"] == ["ipc:///c,d"]


def test_native_values_and_text_are_the_same_in_a_file(tmp_path: Path) -> None:
    native = """
        upload_interval = 2
        spool_max = 131072
        connect = ["tcp://a", "tcp://b"]
        quiet = true
        no_cloud = true
        max_rows = 7
        [tags]
        owner = "x, y=z"
        try = 3
        fast = true
    """
    written = """
        upload_interval = "2"
        spool_max = "128KiB"
        connect = "tcp://a,tcp://b"
        quiet = "yes"
        no_cloud = "on"
        max_rows = "7"
        tags = ["owner=x, y=z", "try=3", "fast=true"]
    """
    expected = DEFAULTS | {
        "upload_interval": 2.0,
        "spool_max": 131072,
        "connect": ["tcp://a", "tcp://b"],
        "quiet": True,
        "no_cloud": True,
        "max_rows": 7,
        "tags": {"owner": "x, y=z", "try": "3", "fast": "true"},
    }
    assert resolved(file=tmp_path / "native.toml", toml=native) == expected
    assert resolved(file=tmp_path / "written.toml", toml=written) == expected


def test_an_empty_variable_counts_as_unset() -> None:
    assert resolved(environ={"TRACKER_UPLOAD_INTERVAL": "", "SENTINEL_CONNECT": " ", "QUIET": ""}) == DEFAULTS


def test_switches_can_be_turned_off_again(tmp_path: Path) -> None:
    file, toml = tmp_path / "settings.toml", "quiet = true\nno_cloud = true"
    both = resolved(file=file, toml=toml)
    assert (both["quiet"], both["no_cloud"]) == (True, True)
    neither = resolved("--no-quiet", "--cloud", file=file, toml=toml)
    assert (neither["quiet"], neither["no_cloud"]) == (False, False)
    assert resolved("-q", environ={"QUIET": "0"})["quiet"] is True


def test_a_path_from_a_file_has_its_tilde_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert resolved(file=tmp_path / "a.toml", toml='state_dir = "~/state"')["state_dir"] == "/home/somebody/state"


@pytest.mark.parametrize("value", ["abc", "-1", "0.05", "nan", "inf", "-inf", "1e999", "1 2", "0x10"])
def test_a_bad_number_is_refused_wherever_it_stands(tmp_path: Path, value: str) -> None:
    expected = f"{value!r}: must be a number of seconds, at least 0.1"
    assert error_of(f"--upload-interval={value}") == f"--upload-interval: {expected}"
    assert (
        error_of(environ={"TRACKER_UPLOAD_INTERVAL": value})
        == f"environment variable TRACKER_UPLOAD_INTERVAL: {expected}"
    )
    file = tmp_path / "s.toml"
    assert error_of(file=file, toml=f'upload_interval = "{value}"') == f"{file}: upload_interval: {expected}"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("upload_interval = nan", "upload_interval: nan: must be a number of seconds, at least 0.1"),
        ("upload_interval = inf", "upload_interval: inf: must be a number of seconds, at least 0.1"),
        ("upload_interval = true", "upload_interval: True: must be a number of seconds, at least 0.1"),
        ("upload_interval = [1]", "upload_interval: [1]: must be a number of seconds, at least 0.1"),
        (f"upload_interval = 1{'0' * 400}", "must be a number of seconds"),
        ("spool_max = 1.5", "spool_max: 1.5: must be a size such as 2GiB, 500MB or a number of bytes, at least 1"),
        ("spool_max = -1", "spool_max: -1: must be a size"),
        ("spool_max = false", "spool_max: False: must be a size"),
        ("connect = [1]", "connect: 1: must be text, and not empty"),
        ('connect = [""]', "connect: '': must be text, and not empty"),
        ('quiet = "maybe"', "quiet: 'maybe': must be true or false"),
        ("quiet = 1", "quiet: 1: must be true or false"),
        ('log_format = "xml"', "log_format: 'xml': must be one of text, json"),
        ("log_format = [[]]", "log_format: [[]]: must be one of text, json"),
        ("max_rows = 10", "max_rows: 10: must be a whole number from 1 to 9"),
        ("max_rows = 1.0", "max_rows: 1.0: must be a whole number from 1 to 9"),
        ("tags = 3", "tags: 3: must be KEY=VALUE"),
        ("[tags]\na = [1]", "tags.a: [1]: must be text, a number, true or false"),
        ("state_dir = 2020-01-01", "state_dir: datetime.date(2020, 1, 1): must be text, and not empty"),
    ],
)
def test_a_bad_value_in_a_file_names_file_key_and_value(tmp_path: Path, line: str, expected: str) -> None:
    file = tmp_path / "s.toml"
    found = error_of(file=file, toml=line)
    assert found.startswith(f"{file}: ")
    assert expected in found


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    assert (
        error_of(file=file, toml="upload-interval = 5")
        == f"{file}: unknown key 'upload-interval' (value 5); did you mean 'upload_interval'?"
    )
    assert error_of(file=file, toml="zzz = 'a'") == f"{file}: unknown key 'zzz' (value 'a')"


@pytest.mark.parametrize("table", ["uploader", "collector"])
def test_settings_are_not_in_a_table_and_each_command_has_its_file(tmp_path: Path, table: str) -> None:
    file = tmp_path / "s.toml"
    error = error_of(file=file, toml=f"[{table}]\nupload_interval = 5")
    assert error.startswith(f"{file}: unknown table [{table}]: settings stand at the top of the file")
    assert error.endswith("sentinel-collector and sentinel-uploader have a file each")


def test_an_unknown_flag_is_wrong_use_and_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in [
        (["--upload-intervall=5"], "unrecognized arguments: --upload-intervall=5; did you mean '--upload-interval'?"),
        (["--upload", "5"], "unrecognized arguments: --upload 5"),
        (["--upload-interval"], "argument --upload-interval: expected one argument\n"),
    ]:
        with pytest.raises(SystemExit) as caught:
            resolved(*words)
        assert caught.value.code == 2
        assert expected in capsys.readouterr().err


def test_what_is_overridden_is_checked_all_the_same(tmp_path: Path) -> None:
    assert "TRACKER_UPLOAD_INTERVAL" in error_of("--upload-interval=5", environ={"TRACKER_UPLOAD_INTERVAL": "x"})
    assert "s.toml" in error_of("--upload-interval=5", file=tmp_path / "s.toml", toml="upload_interval = 'x'")


def test_a_long_value_is_cut_in_the_error() -> None:
    assert len(error_of("--upload-interval", "9" * 5000 + "x")) < 200


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    assert error_of(file=missing) == f"{missing}: cannot be read: No such file or directory"
    assert error_of(file=tmp_path) == f"{tmp_path}: cannot be read: Is a directory"
    file = tmp_path / "s.toml"
    assert error_of(file=file, toml="upload_interval = ").startswith(f"{file}: is not TOML: ")
    file.write_bytes(b"a = '\xff'")
    assert error_of(file=file).startswith(f"{file}: is not TOML: ")
    assert error_of(file=file, toml="a = " + "[" * 5000).startswith(f"{file}: is not TOML: ")


def test_what_is_right_in_a_file_can_be_had_though_the_rest_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text("upload_interval = 5\nspool_max = 'x'\nupload-interval = 6\n")
    values, errors = merge_file_collecting_errors(TABLE, {"quiet": True}, SettingsFile(str(file)))
    assert values == DEFAULTS | {"upload_interval": 5.0, "quiet": True}
    assert [str(error).partition(" ")[0] for error in errors] == [f"{file}:"] * 2
    assert "spool_max: 'x'" in str(errors[0])
    assert "unknown key 'upload-interval'" in str(errors[1])
    file.write_text("upload_interval = 5\nnonsense")
    values, errors = merge_file_collecting_errors(TABLE, {}, SettingsFile(str(file)))
    assert values == DEFAULTS
    assert [str(error).startswith(f"{file}: is not TOML: ") for error in errors] == [True]


def test_an_error_of_a_parser_of_somebody_elses_is_wrapped() -> None:
    def refuse(_value: object) -> None:
        raise UsageError("only on Sundays")

    table = [Setting(name="day", flag="--day", parse=refuse, help="day")]
    args = build_parser(table, "demo", "").parse_args(["--day", "Monday"])
    with pytest.raises(UsageError, match=r"^--day: 'Monday': only on Sundays$"):
        parse_flags_and_env(table, args, {})


def test_the_file_can_come_after_the_flags() -> None:
    args = argparse.Namespace(connect=["tcp://a"])
    given_values = parse_flags_and_env(TABLE, args, {"QUIET": "1"})
    assert given_values == {"connect": ["tcp://a"], "quiet": True}
    assert merge_file(TABLE, given_values, None) == DEFAULTS | given_values


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("0", 0),
        ("1", 1),
        ("500MB", 500_000_000),
        ("2GiB", 2**31),
        ("1.5 GB", 1_500_000_000),
        ("128 kib", 131072),
        ("7b", 7),
        (" 1TB ", 10**12),
        (2**40, 2**40),
    ],
)
def test_sizes(written: str | int, expected: int) -> None:
    assert size()(written) == expected


@pytest.mark.parametrize("written", ["", "GB", "1K", "2G", "nan", "infGB", "-1", "-1GB", "1e999GB", "1,5GB", True, 1.0])
def test_sizes_that_are_none(written: object) -> None:
    with pytest.raises(ValueError, match="must be a size such as"):
        size()(written)


def accepts(parse: Any, value: object) -> bool:
    try:
        result = parse(value)
    except ValueError:
        return False
    assert not isinstance(result, float) or 0 <= result < float("inf")
    return True


@settings(max_examples=50)
@given(st.floats() | st.integers() | st.text() | st.booleans() | st.none() | st.lists(st.integers()))
def test_no_value_breaks_a_parser(value: object) -> None:
    accepted = [
        accepts(parse, value) for parse in (seconds(), integer(), size(), choice("a"), text, boolean, key_value)
    ]
    assert isinstance(value, str | int | float) or not any(accepted)


def test_help_names_default_and_variable() -> None:
    shown = " ".join(build_parser(TABLE, "demo", "A demonstration").format_help().split())
    assert "--config FILE" in shown
    assert "time between uploads (default 60; env TRACKER_UPLOAD_INTERVAL)" in shown
    assert "labels, 100% free" in shown
    assert "--no-quiet" not in shown


def test_flags_can_go_into_a_group() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser.add_argument_group("limits"), TABLE[:1])
    assert parser.parse_args(["--upload-interval", "3"]).upload_interval == "3"


def test_the_documentation_is_made_from_the_table() -> None:
    markdown_table = runpy.run_path(str(ROOT / "docs/generate.py"))["markdown_table"]
    lines = markdown_table(TABLE).splitlines()
    assert lines[0] == "| key | flag | environment | default | meaning |"
    assert (
        lines[2] == "| `upload_interval` | `--upload-interval SECONDS` | `TRACKER_UPLOAD_INTERVAL` | 60 "
        "| time between uploads |"
    )
    assert lines[3] == "| `spool_max` | `--spool-max SIZE` |  | 2GiB | limit |"
    assert lines[4] == "| `connect` | `--connect` | `SENTINEL_CONNECT` |  | where \\| to |"
    assert lines[9] == "| `state_dir` | `--state-dir DIR` |  | state home | state |"
    assert lines[10] == "| `max_rows` |  |  | 5 | rows |"
    assert len(lines) == len(TABLE) + 2


def test_nothing_heavy_is_imported_with_it() -> None:
    script = (
        "import sys, argparse; before = set(sys.modules); import sentinel_protocol.common.settings.sources;"
        "print(set(sys.modules)-before)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    ours = [
        "sentinel_protocol",
        "sentinel_protocol.common",
        "sentinel_protocol.common.errors",
        "sentinel_protocol.common.settings",
        "sentinel_protocol.common.settings.model",
        "sentinel_protocol.common.settings.sources",
    ]
    assert sorted(eval(done.stdout)) == ["__future__", *ours]
