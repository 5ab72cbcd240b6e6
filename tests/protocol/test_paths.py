"""Private directories, and one local uploader for each target."""

import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sentinel_protocol.common.endpoints import MAX_UNIX_PATH_BYTES
from sentinel_protocol.common.errors import UsageError
from sentinel_protocol.common.local_uploader import (
    default_target,
    local_uploader_environ,
    local_uploader_paths,
    spool_dirs,
)
from sentinel_protocol.common.paths import data_home, make_private_dir, make_socket_dir, runtime_dir, state_home


def test_places_follow_the_environment(tmp_path: Path) -> None:
    environ = {"XDG_STATE_HOME": "/s", "XDG_DATA_HOME": "/d", "XDG_RUNTIME_DIR": str(tmp_path)}
    assert state_home(environ) == "/s/sentinel-stream"
    assert data_home(environ) == "/d/sentinel-stream"
    assert runtime_dir(environ, "x") == (f"{tmp_path}/sentinel-stream", "")
    relative = {
        "XDG_STATE_HOME": "s",
        "XDG_DATA_HOME": "",
        "HOME": f"{tmp_path}/x",
        "XDG_RUNTIME_DIR": str(tmp_path / "missing"),
    }
    assert state_home(relative) == f"{tmp_path}/x/.local/state/sentinel-stream"
    assert data_home(relative) == f"{tmp_path}/x/.local/share/sentinel-stream"
    assert runtime_dir(relative, "x").path == f"/tmp/sentinel-stream-{os.getuid()}"


def test_a_place_is_absolute_without_a_home_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = pwd.getpwuid(os.getuid()).pw_dir
    assert state_home({}) == state_home({"HOME": ""}) == f"{entry}/.local/state/sentinel-stream"
    monkeypatch.chdir(tmp_path)
    assert state_home({"HOME": "here"}) == f"{tmp_path}/here/.local/state/sentinel-stream"
    assert local_uploader_environ({"HOME": "here"})["HOME"] == f"{tmp_path}/here"


@pytest.mark.parametrize("home", ["/", "/no-such-directory-of-ours", "/no-such-directory-of-ours/x"])
def test_a_home_without_a_place_for_this_user_is_passed_over(home: str) -> None:
    """Nothing is made in the root directory."""
    assert state_home({"HOME": home}) == state_home({})


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody without an entry")
def test_a_user_id_without_an_entry_has_a_place_of_its_own() -> None:
    code = "import os\nfrom sentinel_protocol.common.paths import state_home\nos.setuid(54321)\nprint(state_home({}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "/tmp/sentinel-stream-54321/.local/state/sentinel-stream\n"


def test_every_directory_that_is_made_is_private(tmp_path: Path) -> None:
    made = make_private_dir(str(tmp_path / "a" / "b" / "c"))
    assert made == str(tmp_path / "a" / "b" / "c")
    for path in ("a", "a/b", "a/b/c"):
        assert (tmp_path / path).stat().st_mode & 0o777 == 0o700
    assert make_private_dir(made + "/") == made + "/"


def test_a_directory_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir(mode=0o750)
    make_private_dir(str(tmp_path / "shared"))
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o750


def test_what_is_no_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "nowhere")
    for name in ("file", "file/below", "loop"):
        with pytest.raises(UsageError, match=str(tmp_path / name)):
            make_private_dir(str(tmp_path / name))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_a_stranger_s_directory_is_refused_where_anybody_could_have_put_it(tmp_path: Path) -> None:
    anybody = tmp_path / "tmp"
    anybody.mkdir()
    theirs = anybody / "x"
    theirs.mkdir()
    os.chown(theirs, 12345, 12345)
    # Root may use what belongs to a user …
    make_private_dir(str(theirs))
    # … but not in a place where that user could have waited for it.
    anybody.chmod(0o1777)
    with pytest.raises(UsageError, match="belongs to another user"):
        make_private_dir(str(theirs))
    mine = anybody / "mine"
    mine.mkdir()
    link = anybody / "link"
    link.symlink_to(mine)
    os.chown(link, 12345, 12345, follow_symlinks=False)
    with pytest.raises(UsageError, match="belongs to another user"):
        make_private_dir(str(link))


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ss-") as made:
        yield Path(made)


def test_a_socket_s_path_is_never_too_long(tmp_path: Path, short: Path) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    environ = {"XDG_RUNTIME_DIR": str(long), "TMPDIR": str(short)}
    place = local_uploader_paths(environ)
    assert place.socket_path.startswith(f"{short}/sentinel-stream-{os.getuid()}/")
    assert str(long) in place.fallback_reason
    assert "107 bytes" in place.fallback_reason
    both = local_uploader_paths(environ | {"TMPDIR": str(long)})
    assert both.socket_path.startswith(f"/tmp/sentinel-stream-{os.getuid()}/")
    # To the byte: one more is one too many.
    room = MAX_UNIX_PATH_BYTES - len(f"{short}/sentinel-stream-{os.getuid()}/")
    environ = {"TMPDIR": str(short)}
    assert runtime_dir(environ, "x" * room) == (f"{short}/sentinel-stream-{os.getuid()}", "")
    assert runtime_dir(environ, "x" * (room + 1)).path == f"/tmp/sentinel-stream-{os.getuid()}"


def test_a_place_for_sockets_that_others_may_write_to_is_passed_over(short: Path) -> None:
    mine = short / f"sentinel-stream-{os.getuid()}"
    mine.mkdir()
    environ = {"TMPDIR": str(short)}
    assert runtime_dir(environ, "x") == (str(mine), "")
    mine.chmod(0o770)
    assert runtime_dir(environ, "x").path == f"/tmp/sentinel-stream-{os.getuid()}"
    assert f"chmod 700 {mine}" in runtime_dir(environ, "x").fallback_reason
    with pytest.raises(UsageError, match="chmod 700"):
        make_socket_dir(str(mine))
    make_socket_dir(str(short / "other"))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
@pytest.mark.parametrize(("owner", "mode"), [(12345, 0o755), (0, 0o777)])
def test_a_place_for_sockets_that_others_could_rename_is_passed_over(short: Path, owner: int, mode: int) -> None:
    os.chown(short, owner, 0)
    short.chmod(mode)
    assert runtime_dir({"TMPDIR": str(short)}, "x").path == f"/tmp/sentinel-stream-{os.getuid()}"
    short.chmod(0o1777)
    os.chown(short, 0, 0)
    assert runtime_dir({"TMPDIR": str(short)}, "x").path.startswith(f"{short}/")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_a_place_for_sockets_that_somebody_else_has_made_is_passed_over(short: Path) -> None:
    short.chmod(0o1777)
    theirs = short / f"sentinel-stream-{os.getuid()}"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, 12345, 12345)
    found = runtime_dir({"TMPDIR": str(short)}, "x")
    assert found.path == f"/tmp/sentinel-stream-{os.getuid()}"
    assert "belongs to another user" in found.fallback_reason


BASE = {"XDG_STATE_HOME": "/s", "XDG_DATA_HOME": "/d"}


def test_there_is_one_agent_for_each_target_and_token() -> None:
    environments: list[dict[str, str]] = [
        {},
        {"SENTINEL_TARGET": "/elsewhere"},
        {"SENTINEL_API_TOKEN": "a"},
        {"SENTINEL_API_TOKEN": "b"},
        {"SENTINEL_API_TOKEN": "a", "SENTINEL_API_URL": "http://x"},
        {"SENTINEL_API_TOKEN": "a", "AWS_ENDPOINT_URL_S3": "http://y"},
        {"SENTINEL_API_TOKEN_FILE": "/t"},
    ]
    places = [local_uploader_paths(BASE | environ) for environ in environments]
    assert len({place.socket_path for place in places}) == len(places)
    assert len({place.spool_dir for place in places}) == len(places)
    assert local_uploader_paths(BASE | {"PATH": "/bin"}) == places[0]
    assert local_uploader_paths(BASE, "/d/sentinel-stream/runs") == places[0]
    assert not any("SENTINEL" in place.socket_path for place in places)
    assert places[0].url == f"ipc://{places[0].socket_path}"


def test_a_relative_target_is_another_one_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = BASE | {"SENTINEL_TARGET": "out"}
    monkeypatch.chdir(tmp_path)
    here = local_uploader_paths(environ)
    assert here == local_uploader_paths(BASE, f"{tmp_path}/out")
    monkeypatch.chdir("/")
    assert local_uploader_paths(environ) != here


def test_a_relative_token_file_is_another_one_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environ = BASE | {"SENTINEL_API_TOKEN_FILE": "token"}
    here = local_uploader_paths(environ)
    assert here == local_uploader_paths(BASE | {"SENTINEL_API_TOKEN_FILE": f"{tmp_path}/token"})
    monkeypatch.chdir("/")
    assert local_uploader_paths(environ) != here


def test_an_empty_token_is_none() -> None:
    assert default_target(BASE | {"SENTINEL_API_TOKEN": ""}) == "/d/sentinel-stream/runs"
    assert default_target(BASE | {"SENTINEL_API_KEY": "x"}) == "sentinel:"


def test_spools_of_all_agents_are_found(tmp_path: Path) -> None:
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    assert spool_dirs(environ) == []
    base = tmp_path / "sentinel-stream" / "spool"
    (base / "b").mkdir(parents=True)
    (base / "a").mkdir()
    (base / "a.log").write_text("")
    assert spool_dirs(environ) == [str(base / "a"), str(base / "b")]
