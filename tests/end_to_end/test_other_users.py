"""Other users of the machine get nothing of a run, and root leaves nothing in another user's home."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.process_harness import COLLECTOR, Home

from sentinel_collector.delivery.zmq_client import ZmqClient
from sentinel_protocol.common.clock import SystemClock
from sentinel_protocol.common.endpoints import parse_address
from sentinel_protocol.common.local_uploader import is_listening
from sentinel_uploader.server.rejection_log import RejectionLog
from sentinel_uploader.server.zmq_server import ZmqServer
from sentinel_uploader.telemetry.counters import Counters

VICTIM, ATTACKER = 54321, 54322
pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can be two other users")


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory like `/tmp`, with a short path."""
    with tempfile.TemporaryDirectory(prefix="ss-", dir="/tmp") as made:
        Path(made).chmod(0o1777)
        yield Path(made)


def in_child(uid: int, action: object) -> int:
    """Run a function as another user in a forked process; return its exit code."""
    pid = os.fork()
    if not pid:
        try:
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os._exit(int(action()))  # type: ignore[operator]
        except BaseException as error:  # noqa: BLE001 -- it must not run the parent's tests
            print(repr(error), file=sys.stderr)
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_an_uploader_takes_nothing_from_another_user(shared: Path) -> None:
    path = shared / "u.sock"
    counters = Counters()
    with ZmqServer(
        [parse_address(f"ipc://{path}", bind=True)], rejections=RejectionLog(counters, SystemClock())
    ) as server:
        path.chmod(0o777)

        def send() -> bool:
            # The other side is checked too; this one does not.
            with ZmqClient(parse_address(f"ipc://{path}", bind=False)) as client:
                client._checks_peer = False
                client._is_peer_trusted = True
                deadline = time.monotonic() + 10
                while not client.send(b"stranger") and time.monotonic() < deadline:
                    time.sleep(0.01)
                time.sleep(0.5)
            return False

        assert in_child(ATTACKER, send) == 0
        received = []
        deadline = time.monotonic() + 20
        while not counters.rejected.value("user") and time.monotonic() < deadline:
            received += server.receive(limit=10, timeout_s=0.1)[0]
        assert counters.rejected.value("user")
        assert not received


def test_a_collector_sends_nothing_to_another_user(shared: Path) -> None:
    path = str(shared / "u.sock")
    read, write = os.pipe()
    attacker = os.fork()
    if not attacker:
        os.setresuid(ATTACKER, ATTACKER, ATTACKER)
        with ZmqServer([parse_address(f"ipc://{path}", bind=True)]) as server:
            os.chmod(path, 0o777)
            os.write(write, b"ready")
            deadline = time.monotonic() + 4
            while time.monotonic() < deadline:
                for message in server.receive(limit=10, timeout_s=0.1)[0]:
                    os.write(write, message.frame)
        os._exit(0)
    os.close(write)
    assert os.read(read, 5) == b"ready"

    def send() -> bool:
        assert not is_listening(path)
        with ZmqClient(parse_address(f"ipc://{path}", bind=False)) as client:
            errors = []
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline:
                errors.append(client.poll_handshake_error(time.monotonic()))
                assert not client.send(b"secret")
                time.sleep(0.005)
        return not any(error and f"uid {ATTACKER}" in error for error in errors)

    assert in_child(VICTIM, send) == 0
    assert os.read(read, 100) == b""
    os.waitpid(attacker, 0)
    os.close(read)


def test_a_squatted_temporary_directory_is_not_used(shared: Path) -> None:
    """The names of a user's directories are known: others can take them all first."""
    code = (
        "import os, sys\nfrom sentinel_protocol.common import paths\n"
        f"paths._TEMPORARY = ({str(shared)!r},)\nos.setresuid({VICTIM}, {VICTIM}, {VICTIM})\n"
        f"found = paths.runtime_dir({{'HOME': sys.argv[1]}}, 'x.sock')\n"
        "paths.make_socket_dir(found.path)\nprint(found.path)"
    )
    squatted = shared / f"sentinel-stream-{VICTIM}"
    home = shared / "home"
    for path, owner, mode in ((squatted, ATTACKER, 0o777), (home, VICTIM, 0o700)):
        path.mkdir()
        path.chmod(mode)
        os.chown(path, owner, owner)
    done = subprocess.run([sys.executable, "-c", code, str(home)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{home}/.local/state/sentinel-stream/run\n"
    assert os.listdir(squatted) == []
    found = (home / ".local/state/sentinel-stream/run").stat()
    assert (found.st_uid, found.st_mode & 0o777) == (VICTIM, 0o700)


@pytest.mark.parametrize(
    "variables", [{}, {"XDG_STATE_HOME": "state", "XDG_DATA_HOME": "data", "XDG_RUNTIME_DIR": "run"}]
)
def test_root_in_another_user_s_home_leaves_nothing_there(shared: Path, variables: dict[str, str]) -> None:
    """As with `sudo -E` and `su`. The user has put links where our directories would be."""
    theirs, roots, precious = shared / "theirs", shared / "root", shared / "precious"
    for path in (theirs, roots, precious):
        path.mkdir(mode=0o700)
    for name in ("state", "data", "run"):
        (theirs / name).mkdir(mode=0o700)
        (theirs / name / "sentinel-stream").symlink_to(precious)
    (theirs / ".local").symlink_to(precious)
    before = sorted(str(path) for path in theirs.rglob("*"))
    for path in (theirs, *theirs.rglob("*")):
        os.chown(path, VICTIM, VICTIM, follow_symlinks=False)
    code = (
        "import pwd, sys\nfind = pwd.getpwuid\n"
        "pwd.getpwuid = lambda uid: type('Entry', (), {'pw_dir': sys.argv[1]})\n"
        "from sentinel_protocol.common.local_uploader import local_uploader_paths\n"
        "from sentinel_protocol.common.paths import data_home, make_private_dir, state_home\n"
        "import os\nenviron = dict(os.environ)\npaths = local_uploader_paths(environ)\n"
        "for path in (state_home(environ), data_home(environ), os.path.dirname(paths.socket_path)): "
        "print(make_private_dir(path))\n"
    )
    environ = {"HOME": str(theirs), "TMPDIR": str(shared)} | {name: str(theirs / to) for name, to in variables.items()}
    done = subprocess.run(
        [sys.executable, "-c", code, str(roots)], capture_output=True, text=True, check=True, env=environ
    )
    made = done.stdout.splitlines()
    assert [path.startswith((str(roots), str(shared / "sentinel-stream-0"))) for path in made] == [True] * 3
    assert sorted(str(path) for path in theirs.rglob("*")) == before
    assert os.listdir(precious) == []


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_files_and_directories_are_private_under_any_umask(home: Home, umask: int) -> None:
    shutil.rmtree(home.directory / "state", ignore_errors=True)
    output = home.directory / "rows.csv"
    words = (COLLECTOR, "--interval", "0.1", "--output", str(output), "--", "sh", "-c", "umask; sleep 0.3; exit 7")
    done = home.run(*words, preexec_fn=lambda: os.umask(umask))
    assert done.returncode == 7
    assert done.stdout == f"{umask:04o}\n"
    assert "delivered to" in done.stderr
    assert output.stat().st_mode & 0o777 == 0o666 & ~umask
    for base in (home.state, home.runs.parent, home.runtime / "sentinel-stream"):
        for path in (base, *base.rglob("*")):
            mode = path.stat().st_mode & 0o777
            assert mode == (0o700 if path.is_dir() else 0o600), path
