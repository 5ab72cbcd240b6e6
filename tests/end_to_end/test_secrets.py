"""Secrets are planted wherever the product gets them, and looked for wherever it writes."""

import json
import os
import re
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.backend import TOKEN, Backend
from fakes.faults import Fault, Recorded
from fakes.http_probe_client import HttpProbeClient
from fakes.process_harness import COLLECTOR, UPLOADER, Home, busy, wait_until
from fakes.raw_collector import collectors_of
from fakes.secret_scanner import Secret, files_with, held, processes_with
from fakes.uploader_harness import finish, hello, samples

from sentinel_protocol.wire.curve_keys import format_certificate, read_key_pair, z85
from sentinel_protocol.wire.messages import Ack, Welcome
from sentinel_uploader.server.key_store import KeyStore

PLANTED = {
    "AWS_SECRET_ACCESS_KEY": "planted/aws+secret-4c1a",
    "AWS_SESSION_TOKEN": "planted/aws+session-77b2",
    "DATABASE_PASSWORD": "planted-password-19de",
}
PROXY_PASSWORD = "planted-proxy-password-5f30"
EVERYTHING = "0x7f"
"""Bits of `coredump_filter`: every kind of memory (core(5))."""


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend() as made:
        yield made


def environ_with_secrets(home: Home, backend: Backend) -> tuple[dict[str, str], Path]:
    """Return an environment that leads to the backend with a token in a file, and that file."""
    file = home.directory / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    environ = backend.environ | PLANTED | {"SENTINEL_API_TOKEN_FILE": str(file)}
    del environ["SENTINEL_API_TOKEN"]
    return environ, file


def tell_all(backend: Backend, *, times: int) -> Fault:
    """Let storage refuse with everything that it knows about whoever asks."""
    fault = backend.s3.faults.add("put", status=403, times=times)

    def tell(request: Recorded) -> bool:
        who = next(one for one in backend.keyring.all() if one.access_key in request.headers["authorization"])
        message = f"{who.secret_key} {who.session_token} {request.headers['authorization']}"
        fault.body = f"<Error><Code>AccessDenied</Code><Message>{message}</Message></Error>".encode()
        return True

    fault.where = tell
    return fault


def issued(backend: Backend) -> list[str]:
    return [secret for one in backend.keyring.all() for secret in (one.secret_key, one.session_token)]


def test_search_finds_what_is_there(tmp_path: Path) -> None:
    """A search that finds nothing proves nothing unless it finds what was hidden."""
    import base64
    import gzip

    secret = "planted/aws+secret-4c1a"
    for data in (
        secret.encode(), json.dumps({"a": secret}).replace("/", "\\/").encode(), gzip.compress(secret.encode()),
        base64.b64encode(f"x:{secret}".encode()), base64.b64encode(f"user:{secret}!".encode()),
        b"https://h/?key=planted%2Faws%2Bsecret-4c1a", secret.encode().hex().encode(),
    ):  # fmt: skip
        assert held(data, [secret]) == [secret], data
    assert held(b"nothing", [secret]) == []
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_text(f"x {secret} y")
    assert list(files_with(tmp_path, [secret])) == [str(tmp_path / "deep" / "file")]


def test_no_secret_is_written_anywhere_while_everything_goes_wrong(home: Home, backend: Backend) -> None:
    environ, token_file = environ_with_secrets(home, backend)
    # Servers that say all that they know.
    echo = json.dumps({"detail": f"Bearer {TOKEN} is not what I expect"}).encode()
    refused = [backend.api.faults.add(call, status=status, body=echo, times=1)
               for call, status in (("register", 500), ("finish", 503))]  # fmt: skip
    home.start_uploader("-v", "--http", "0", "--upload-interval", "0.2", env=environ)
    probe = HttpProbeClient(home.directory / "uploader.log")
    spool = ("--spool", str(home.directory / "spool"))
    said: list[str] = []
    with collectors_of(home.address) as collectors:
        collector = collectors.connect()
        collector.say(hello(metadata={"job_name": "nightly"}))
        collector.hear_until(Welcome)
        wait_until(lambda: backend.api.runs, "the run is registered")
        secrets = [TOKEN, *PLANTED.values(), *issued(backend)]
        refused.append(tell_all(backend, times=2))
        refused.append(backend.api.faults.add("refresh", status=500, body=echo, times=1))
        collector.say(samples(1, 20))
        collector.hear_until(Ack)
        wait_until(lambda: all(fault.fired for fault in refused if fault.call != "finish"), "it goes wrong")
        collector.say(finish(20))
        said += [page.text for page in map(probe.ask, ("/metrics", "/healthz", "/readyz", "/livez"))]
        for words in (["status"], ["status", "--json"], ["show", "run"], ["show", "run", "--json"]):
            done = home.run(UPLOADER, *words, *spool, env=environ)
            said += [done.stdout, done.stderr]
        mark = f"XDG_RUNTIME_DIR={home.runtime}\0".encode()
        assert processes_with(mark, secrets, environ=False) == {}
        # A token from a file is in no environment, and what storage was told in none either.
        assert processes_with(mark, [TOKEN, *issued(backend)], environ=True) == {}
        assert processes_with(mark, list(PLANTED.values()), environ=True), "the planted variables are really there"
        assert files_with(home.directory, secrets, but=[token_file]) == {}
        wait_until(lambda: backend.only_run().finish, "the run is finished")
    done = home.run(UPLOADER, "doctor", "--put", *spool, env=environ)
    said += [done.stdout, done.stderr]
    assert all(fault.fired for fault in refused)
    secrets = [TOKEN, *PLANTED.values(), *issued(backend)]
    assert held("\n".join(said).encode(), secrets) == []
    assert files_with(home.directory, secrets, but=[token_file]) == {}
    assert "step failed" in (home.directory / "uploader.log").read_text()


def test_no_secret_is_written_by_a_collector_and_the_agent_that_it_starts(home: Home, backend: Backend) -> None:
    environ = backend.environ | PLANTED
    refused = backend.api.faults.add("register", status=422, body=f'{{"detail": "Bearer {TOKEN}"}}'.encode())
    words = [COLLECTOR, "-v", "--interval", "0.1", "--wait", "3", "--summary-json", "summary.json", "--", *busy(0.3)]
    process = home.start(*words, env=environ)
    secrets = [TOKEN, *PLANTED.values()]
    mark = f"XDG_RUNTIME_DIR={home.runtime}\0".encode()
    wait_until(lambda: refused.fired, "the uploader has asked the API")
    assert processes_with(mark, secrets, environ=False) == {}
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert held((out + err).encode(), secrets) == []
    status = home.run(UPLOADER, "status", env=environ)
    assert "parked" in status.stdout
    assert held((status.stdout + status.stderr).encode(), secrets) == []
    assert list((home.state / "spool").glob("*.log"))
    assert files_with(home.directory, secrets) == {}


def test_no_secret_key_leaves_its_file(home: Home) -> None:
    keys = home.directory / "keys"
    store = KeyStore(str(keys))
    store.init()
    alice, mallory = (store.add(name, replace=False) for name in ("alice", "mallory"))
    pairs = [store.server_pair(), read_key_pair(alice), read_key_pair(mallory)]
    secrets: list[Secret] = [form for pair in pairs for form in (pair.secret, z85(pair.secret))]
    home.start_uploader(
        "-v", "--http", "0", "--keys", str(keys), "--bind", "tcp://127.0.0.1:*", "--log-format", "json",
        "--upload-interval", "0.3",
    )  # fmt: skip
    log = home.directory / "uploader.log"
    url = re.findall(r"tcp://127\.0\.0\.1:\d+", log.read_text())[0]
    said: list[str] = []
    store.revoke("mallory")
    for key in (alice, str(keys / "revoked-key_secret")):
        if key != alice:
            Path(key).write_text(format_certificate(pairs[2].public, pairs[2].secret))
            os.chmod(key, 0o600)
        words = ["--connect", url, "--server-key", pairs[0].public.hex(), "--key", key, "-v", "--interval", "0.1"]
        process = home.start(COLLECTOR, *words, "--wait", "10" if key == alice else "0", "--", *busy(0.1))
        mark = f"XDG_RUNTIME_DIR={home.runtime}\0".encode()
        assert processes_with(mark, secrets, environ=True) == {}
        said += process.communicate(timeout=60)
        assert process.returncode == 0
    said.append(HttpProbeClient(log).ask("/metrics").text)
    for words in (["status"], ["status", "--json"], ["keys", "list"], ["doctor"]):
        where = ["--keys", str(keys)] if words[0] in {"keys", "doctor"} else []
        spool = [] if words[0] == "keys" else ["--spool", str(home.directory / "spool")]
        done = home.run(UPLOADER, *words, *where, *spool)
        said += [done.stdout, done.stderr]
    wait_until((home.directory / "spool" / "turned_away.json").exists, "who was turned away is noted")
    together = "\n".join(said)
    assert "rejects this collector" in together
    assert 'client_last_seen_timestamp_seconds{client="alice"}' in together
    assert held(together.encode(), secrets) == []
    assert files_with(home.directory, secrets, but=[*keys.rglob("*key_secret")]) == {}
    assert files_with(keys, secrets), "the search knows a key when it meets one"
    finished = [json.loads(line) for line in log.read_text().splitlines() if "run finished" in line]
    assert [entry["client"] for entry in finished] == ["alice"]


def test_password_of_a_proxy_is_not_shown(home: Home, backend: Backend) -> None:
    proxy = f"http://user:{PROXY_PASSWORD}@127.0.0.1:1"
    environ = backend.environ | {"http_proxy": proxy, "HTTP_PROXY": proxy, "NO_PROXY": ""}
    home.start_uploader("-v", env=environ)
    spool = ("--spool", str(home.directory / "spool"))
    with collectors_of(home.address) as collectors:
        collector = collectors.connect()
        collector.say(hello(), samples(1, 3))
        collector.hear_until(Ack)
        log = home.directory / "uploader.log"
        wait_until(lambda: "through the proxy http://127.0.0.1:1" in log.read_text(), "the proxy is not there")
    said = [home.run(UPLOADER, *words, *spool, env=environ) for words in (["status"], ["show", "run"], ["doctor"])]
    assert [done.returncode for done in said] == [0, 0, 1]
    assert held("".join(done.stdout + done.stderr for done in said).encode(), [PROXY_PASSWORD, TOKEN]) == []
    assert files_with(home.directory, [PROXY_PASSWORD, TOKEN]) == {}


def test_core_file_of_an_uploader_has_no_secret_in_it(home: Home, backend: Backend) -> None:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if "/" in pattern or pattern.startswith("|"):
        pytest.skip(f"core files go elsewhere: {pattern}")
    dump = home.directory / "dump"
    dump.mkdir()

    def may_dump() -> None:
        # A test before this one may have run a command within this process, which took care of it.
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
        with open("/proc/self/coredump_filter", "w") as file:
            file.write(EVERYTHING)

    def core_of(code: str) -> dict[str, list[Secret]]:
        # Not in the words of the command: their beginning is in every core file.
        words = [sys.executable, "-c", f"import os; secret = os.environ['SECRET'] + '!'; {code}; os.abort()"]
        process = home.start(*words, env={"SECRET": TOKEN}, cwd=dump, preexec_fn=may_dump)
        assert process.wait(60) == -signal.SIGABRT
        found = files_with(dump, [TOKEN])
        for path in dump.iterdir():
            path.unlink()
        return found

    if not core_of("pass"):
        pytest.skip("this machine makes no core files")
    # Should somebody raise the limit, or a program take the dump, this is what keeps memory out of it.
    assert core_of("open('/proc/self/coredump_filter', 'w').write('0')") == {}

    uploader = home.start_uploader(env=backend.environ, cwd=dump, preexec_fn=may_dump)
    with collectors_of(home.address) as collectors:
        collector = collectors.connect()
        collector.say(hello(), samples(1, 3))
        collector.hear_until(Ack)
    wait_until(lambda: backend.api.runs, "the run is registered")
    assert resource.prlimit(uploader.pid, resource.RLIMIT_CORE)[0] == 0
    assert int(Path(f"/proc/{uploader.pid}/coredump_filter").read_text(), 16) == 0
    uploader.send_signal(signal.SIGABRT)
    assert uploader.wait(60) == -signal.SIGABRT
    assert list(dump.iterdir()) == []
