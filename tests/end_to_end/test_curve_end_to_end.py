"""Both commands with keys, as on two machines: what a collector says that is not let in, and what it keeps."""

import re
import subprocess
from pathlib import Path

import pytest
from fakes.process_harness import COLLECTOR, UPLOADER, Home, rows_of_file, wait_until
from fakes.strict_http_server import free_port


class Remote:
    """An uploader with keys, and clients of it."""

    def __init__(self, home: Home) -> None:
        self._home = home
        assert home.run(UPLOADER, "keys", "init").returncode == 0
        self.url = f"tcp://127.0.0.1:{free_port()}"
        self.uploader = home.start_uploader("--bind", self.url, "--upload-interval", "0.5")

    def environ_of(self, client: str) -> dict[str, str]:
        """What `keys add` prints for the client's machine."""
        added = self._home.run(UPLOADER, "keys", "add", client)
        return dict(line.split("=", 1) for line in added.stdout.splitlines())

    def record(self, environ: dict[str, str], *words: str) -> subprocess.Popen[str]:
        return self._home.start(
            COLLECTOR, "--connect", self.url, "--interval", "0.1", "--wait", "20", *words, env=environ,
            stdin=subprocess.PIPE,
        )  # fmt: skip

    def log(self) -> str:
        return (self._home.directory / "uploader.log").read_text()


def delivered(home: Home, client: str) -> int:
    """Count the rows of a client's runs that are delivered."""
    runs = home.status("--spool", str(home.directory / "spool"))
    return sum(run["rows_delivered"] for run in runs if run["client"] == client)


@pytest.fixture
def remote(home: Home) -> Remote:
    return Remote(home)


def test_a_run_over_the_network_is_its_client_s_by_name(home: Home, remote: Remote, tmp_path: Path) -> None:
    environ = remote.environ_of("node-1")
    collector = remote.record(environ, "--output", str(tmp_path / "rows"), "--", "sh", "-c", "read x; exit 3")
    wait_until(lambda: delivered(home, "node-1"), "rows are delivered")
    collector.communicate("\n", timeout=60)
    assert collector.returncode == 3
    ((run),) = home.status("--spool", str(home.directory / "spool"))
    assert (run["client"], run["state"], run["exit_code"]) == ("node-1", "finished", 3)
    assert home.local_rows(home.local_runs()[0]) == rows_of_file(tmp_path / "rows")
    secret = Path(environ["SENTINEL_KEY"]).read_text()
    said = [remote.log(), *(path.read_text() for path in home.runs.glob("*/run.json"))]
    for line in secret.splitlines():
        if "key = " in line:
            assert not any(line.partition('"')[2].rstrip('"') in text for text in said)
    assert "client=node-1" in remote.log()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"SENTINEL_SERVER_KEY": "ab" * 32}, "--server-key is not its key"),
        ({"SENTINEL_KEY": "", "SENTINEL_SERVER_KEY": ""}, "requires keys (--server-key, --key)"),
    ],
)
def test_one_that_is_not_let_in_says_so_once_and_its_job_notices_nothing(
    home: Home, remote: Remote, change: dict[str, str], words: str
) -> None:
    environ = remote.environ_of("node-1")
    collector = remote.record(environ | change, "--wait", "0", "--", "sh", "-c", "read x; exit 7")
    assert collector.stdin is not None
    assert collector.stderr is not None
    # That it breaks off handshakes may be known before the reason is, and says what is missing as well.
    line = next(line for line in iter(collector.stderr.readline, "") if words in line)
    assert "keeping the samples" in line
    _, rest = collector.communicate("\n", timeout=60)
    assert collector.returncode == 7
    assert rest.count("keeping the samples") <= ("it wants" in line)
    assert re.search(rf"the uploader at {remote.url} .*{re.escape(words)}.*; .*samples? waits? in", rest)
    assert not home.status("--spool", str(home.directory / "spool"))
    # With the right keys the next collector delivers them.
    delivered = home.collector("--connect", remote.url, "--wait", "20", "--", "sleep", "2", env=environ)
    assert "delivered for an earlier collector" in delivered.stderr


def test_one_that_is_revoked_goes_on_spooling_and_comes_back_with_a_new_key(
    home: Home, remote: Remote, tmp_path: Path
) -> None:
    environ = remote.environ_of("node-1")
    other = remote.record(remote.environ_of("node-2"), "--", "cat")
    output = tmp_path / "rows"
    collector = remote.record(environ, "--wait", "0", "--output", str(output), "--run-key", "one", "--", "cat")
    wait_until(lambda: delivered(home, "node-1") and delivered(home, "node-2"), "both are recorded")
    assert home.run(UPLOADER, "keys", "revoke", "node-1").returncode == 0
    assert collector.stderr is not None
    assert "not on the allow list, or was revoked" in collector.stderr.readline()
    # The same name, and the collector's machine gets the new file in the place of the old one; this one has read it.
    collector.communicate("", timeout=60)
    assert collector.returncode == 0
    again = home.run(UPLOADER, "keys", "add", "node-1", "--replace")
    environ = dict(line.split("=", 1) for line in again.stdout.splitlines())
    home.collector("--connect", remote.url, "--wait", "20", "--", "sleep", "2", env=environ)
    run = next(run for run in home.status("--spool", str(home.directory / "spool")) if run["key"] == "one")
    assert (run["state"], run["rows_delivered"]) == ("finished", len(rows_of_file(output)))
    _, said = other.communicate("", timeout=60)
    assert "samples delivered" in said
    assert "keeping" not in said
