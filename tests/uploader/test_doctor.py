"""`sentinel-uploader doctor`: finds each thing that is wrong, says what to do, and leaves nothing behind."""

import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.backend import TOKEN, Backend
from fakes.http_proxy import HttpProxy
from fakes.process_harness import COLLECTOR, UPLOADER, Home, wait_until
from fakes.scripted_backend import SteppedClock
from fakes.tls import make_authority, server_context
from fakes.uploader_harness import frame, hello, open_spool_at

from sentinel_protocol.common.clock import SystemClock
from sentinel_uploader.delivery.csv_batch import decompress_rows
from sentinel_uploader.doctor.api_checks import JOB_NAME, check_backend
from sentinel_uploader.doctor.findings import Finding, Severity, exit_code, report
from sentinel_uploader.doctor.machine_checks import (
    ProbedRun,
    check_descriptors,
    check_directory_target,
    check_disk,
    check_keys,
    check_spool,
)
from sentinel_uploader.doctor.probe import ProbeContext
from sentinel_uploader.doctor.storage_checks import check_storage
from sentinel_uploader.runs.lifecycle import Event
from sentinel_uploader.server.key_store import KeyStore

GIB = 1 << 30


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend() as made:
        yield made


def asked(environ: dict[str, str], *, put: bool = False, run: ProbedRun | None = None) -> dict[str, list[Finding]]:
    """Return what is found outside, by subject."""
    found: dict[str, list[Finding]] = {}
    for finding in check_backend(environ, clock=SystemClock(), put=put, run=run):
        found.setdefault(finding.subject, []).append(finding)
    return found


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_all_is_well(home: Home, backend: Backend) -> None:
    uploader = home.start_uploader(env=backend.environ)
    spool = str(home.directory / "spool")
    done = home.run(UPLOADER, "doctor", "--spool", spool, env=backend.environ)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    assert [(verdict, subject) for verdict, subject, _ in lines] == [
        ("ok", "spool"), ("ok", "disk"), ("ok", "descriptors"), ("skipped", "keys"), ("ok", "token"), ("ok", "api"),
        ("ok", "clock"), ("skipped", "credentials"), ("ok", "storage"), ("ok", "clock"), ("skipped", "put"),
    ]  # fmt: skip
    assert f"0 runs, 0 rows waiting, uploader {uploader.pid} runs" in done.stdout
    # Nothing was left there.
    assert backend.api.runs == {}
    assert backend.s3.objects() == {}
    assert TOKEN not in done.stdout


def test_put_takes_an_empty_run_through_its_life(home: Home, backend: Backend) -> None:
    done = home.run(UPLOADER, "doctor", "--put", "--json", env=backend.environ)
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)
    assert [(entry["subject"], entry["verdict"]) for entry in found[-3:]] == [
        ("register", "ok"), ("put", "ok"), ("finish", "ok"),
    ]  # fmt: skip
    run = backend.only_run()
    assert run.finish["run_status"] == "finished"
    ((uri, body),) = backend.s3.objects().items()
    assert run.finish["data_uris"] == [uri]
    assert decompress_rows(body) == b""
    (registered,) = backend.api.requests.of("register")
    assert registered.decoded == {"job_name": JOB_NAME}


def test_failure_has_exit_code_1_and_wrong_use_2(home: Home, backend: Backend) -> None:
    done = home.run(UPLOADER, "doctor", env=backend.environ | {"SENTINEL_API_TOKEN": "another"})
    assert done.returncode == 1
    assert "failed  api          " in done.stdout
    assert "HTTP 401: it refuses the token: replace the token\n" in done.stdout
    assert home.run(UPLOADER, "doctor", "--upload-interval", "soon").returncode == 2
    done = home.run(UPLOADER, "doctor", "--target", "https://example.org")
    assert (done.returncode, "expected sentinel: or a directory" in done.stderr) == (2, True)


def test_directory_needs_no_token_and_no_server(home: Home) -> None:
    done = home.run(UPLOADER, "doctor", "--target", str(home.directory / "runs"))
    assert done.returncode == 0
    assert f"ok      target       {home.directory / 'runs'} will be created\n" in done.stdout
    assert "skipped clock" in done.stdout


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({}, "no token is set"),
        ({"SENTINEL_API_TOKEN": "two words"}, "SENTINEL_API_TOKEN: the token holds a space"),
        ({"SENTINEL_API_TOKEN_FILE": "/no/such/file"}, "cannot read the token: No such file"),
        ({"SENTINEL_API_TOKEN_FILE": "/dev/null"}, "the token is empty"),
    ],
)
def test_token_that_cannot_be_used(environ: dict[str, str], text: str) -> None:
    found = asked(environ)
    assert list(found) == ["token"]
    token = only(found["token"])
    assert (token.severity, bool(token.remedy)) == (Severity.FAILED, True)
    assert text in token.text


def test_token_file_that_others_can_read_is_a_warning(backend: Backend, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o644)
    environ = {name: value for name, value in backend.environ.items() if name != "SENTINEL_API_TOKEN"}
    environ["SENTINEL_API_TOKEN_FILE"] = str(file)
    found = asked(environ)
    assert only(found["token"]) == Finding(
        Severity.WARNING, "token", f"other users can read {file}", f"chmod 600 {file}"
    )
    file.chmod(0o600)
    found = asked(environ)
    assert only(found["token"]).severity is only(found["api"]).severity is Severity.OK


@pytest.mark.parametrize("status", [401, 403])
def test_token_that_is_refused(backend: Backend, status: int) -> None:
    fault = backend.api.faults.add("refresh", status=status)
    api = only(asked(backend.environ)["api"])
    assert fault.fired == 1
    assert (api.severity, api.remedy) == (Severity.FAILED, "replace the token")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_api_in_trouble(backend: Backend, status: int) -> None:
    fault = backend.api.faults.add("refresh", status=status)
    api = only(asked(backend.environ)["api"])
    assert fault.fired == 1
    assert (api.severity, api.text) == (Severity.FAILED, f"{backend.api.url} answers HTTP {status}")


def test_api_that_is_somebody_else(backend: Backend) -> None:
    fault = backend.api.faults.add("refresh", status=404, body=b"<html>not here</html>")
    api = only(asked(backend.environ)["api"])
    assert fault.fired == 1
    assert api.severity is Severity.FAILED
    assert "SENTINEL_API_URL" in api.remedy


def test_api_that_is_not_there(backend: Backend) -> None:
    fault = backend.api.faults.add("refresh", drop_before=True)
    found = asked(backend.environ, put=True)
    assert fault.fired == 1
    assert only(found["api"]).severity is Severity.FAILED
    assert only(found["put"]) == Finding(Severity.SKIPPED, "put", "no run is created, because the checks above failed")
    for url, text in (
        ("http://127.0.0.1:1", "Connection refused"),
        ("ftp://x", "SENTINEL_API_URL 'ftp://x': not an http"),
    ):
        api = only(asked(backend.environ | {"SENTINEL_API_URL": url})["api"])
        assert (api.severity, text in api.text) == (Severity.FAILED, True), api.text
    proxied = backend.environ | {"HTTP_PROXY": "nonsense://"}
    assert only(asked(proxied)["api"]).severity is Severity.FAILED


def test_storage_that_is_not_there_or_not_trusted(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    with Backend(tls=server_context(authority, "IP:127.0.0.1")) as backend:
        found = asked(backend.environ, put=True)
        assert "certificate not trusted" in only(found["storage"]).text
        assert "AWS_CA_BUNDLE" in only(found["storage"]).remedy
        assert backend.api.runs == {}
        trusting = backend.environ | {"AWS_CA_BUNDLE": str(authority.certificate)}
        assert only(asked(trusting)["storage"]).severity is Severity.OK
        missing = backend.environ | {"AWS_CA_BUNDLE": "/no/such/file"}
        assert only(asked(missing)["storage"]).severity is Severity.FAILED
        away = backend.environ | {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"}
        assert "Connection refused" in only(asked(away)["storage"]).text


def test_credentials_are_those_of_a_run_in_the_spool(home: Home, backend: Backend) -> None:
    home.start_uploader(env=backend.environ)
    collector = home.start(COLLECTOR, "--connect", home.address, "--interval", "0.1")
    wait_until(lambda: backend.api.runs, "the run is registered")
    run_id = backend.only_run().run_id
    words = ["doctor", "--spool", str(home.directory / "spool")]
    line = f"ok      credentials  of run {run_id}, for us-east-1, new ones are good for "
    done = wait_until(
        lambda: found if line in (found := home.run(UPLOADER, *words, env=backend.environ)).stdout else None,
        "the run is found in the spool",
    )
    assert done.returncode == 0
    assert not any(text in done.stdout for one in backend.keyring.all() for text in (one.secret_key, one.session_token))
    fault = backend.api.faults.add("refresh", status=404, body=b"{}", where=lambda call: call.run_id == run_id)
    done = home.run(UPLOADER, *words, env=backend.environ)
    assert fault.fired == 1
    assert (done.returncode, f"failed  credentials  of run {run_id}: " in done.stdout) == (1, True)
    collector.terminate()
    assert collector.wait(30) == 0


def test_amazon_is_asked_where_no_other_server_is_named(tmp_path: Path) -> None:
    regions = ("us-east-1", "eu-west-3")
    hosts = [
        "bucket.s3.amazonaws.com",
        *(f"{bucket}s3.{name}.amazonaws.com" for name in regions for bucket in ("", "bucket.")),
    ]
    authority = make_authority(tmp_path)
    with (
        Backend(tls=server_context(authority, *(f"DNS:{host}" for host in hosts))) as backend,
        HttpProxy(routes={f"{host}:443": backend.s3.port for host in hosts}) as proxy,
    ):
        aws = {name: value for name, value in backend.environ.items() if not name.startswith("AWS_")}
        aws |= {"HTTPS_PROXY": proxy.address, "AWS_CA_BUNDLE": str(authority.certificate)}
        run = ProbedRun("run-1", "s3://bucket/prefix")
        for environ, known, host in (
            (aws, None, "s3.us-east-1"),
            (aws | {"AWS_REGION": "eu-west-3"}, None, "s3.eu-west-3"),
            (aws | {"AWS_REGION": "eu-west-3"}, run, "bucket.s3.eu-west-3"),
            (aws, run, "bucket.s3"),
        ):
            found = list(check_storage(ProbeContext(environ, SystemClock()), known, None))
            assert [(finding.severity, finding.subject) for finding in found] == [
                (Severity.OK, "storage"), (Severity.OK, "clock"),
            ]  # fmt: skip
            assert found[0].text.startswith(f"https://{host}.amazonaws.com answers")
            assert ("may be elsewhere" in found[0].text) == (known is None)
            assert proxy.seen[-1].startswith(f"CONNECT {host}.amazonaws.com:443 ")
        # What is a guess is no failure.
        away = aws | {"HTTPS_PROXY": "127.0.0.1:1"}
        for known, verdict in ((None, Severity.WARNING), (run, Severity.FAILED)):
            storage = only(list(check_storage(ProbeContext(away, SystemClock()), known, None)))
            assert (storage.severity, "Connection refused" in storage.text) == (verdict, True)
        nowhere = ProbeContext(aws | {"AWS_REGION": "no/where"}, SystemClock())
        assert only(list(check_storage(nowhere, None, None))).text == "'no/where' is not a region"


def test_credentials_that_had_expired_before_they_came(backend: Backend) -> None:
    gone = json.dumps({"upload_credentials": {
        "access_key": "A", "secret_key": "B", "session_token": "C", "expires_at": "2001-01-01T00:00:00Z",
    }}).encode()  # fmt: skip
    for body, verdict in ((gone, Severity.FAILED), (gone.replace(b"expires_at", b"never"), Severity.OK)):
        fault = backend.api.faults.add(
            "refresh", status=200, body=body, times=1, where=lambda call: call.run_id == "run-1"
        )
        credentials = only(asked(backend.environ, run=ProbedRun("run-1", "s3://bucket/prefix"))["credentials"])
        assert fault.fired == 1
        assert (credentials.severity, "B" in credentials.text) == (verdict, False)


@pytest.mark.parametrize(
    ("ahead_s", "verdict", "text"),
    [
        (1.0, Severity.OK, "agrees with that of"),
        (30.0, Severity.WARNING, "s behind that of"),
        (-30.0, Severity.WARNING, "s ahead of that of"),
        (4000.0, Severity.FAILED, "s behind that of"),
    ],
)
def test_clock_is_compared_with_those_of_the_servers(ahead_s: float, verdict: Severity, text: str) -> None:
    with Backend(now=lambda: time.time() + ahead_s) as backend:
        clocks = asked(backend.environ)["clock"]
    assert [clock.severity for clock in clocks] == [verdict, verdict]
    for clock in clocks:
        seconds, _, rest = clock.text.rpartition(text)
        assert rest.startswith(" http://127.0.0.1:")
        assert not seconds or abs(int(seconds) - abs(ahead_s)) < 10


def test_put_that_is_refused_still_ends_its_run(backend: Backend) -> None:
    denied = backend.s3.faults.add("put", code="AccessDenied")
    found = asked(backend.environ, put=True)
    assert denied.fired == 1
    assert (only(found["register"]).severity, only(found["put"]).severity) == (Severity.OK, Severity.FAILED)
    assert "AccessDenied" in only(found["put"]).text
    assert only(found["finish"]).severity is Severity.OK
    assert backend.only_run().finish["run_status"] == "failed"


@pytest.mark.parametrize("call", ["register", "finish"])
def test_call_that_is_refused_is_named(backend: Backend, call: str) -> None:
    fault = backend.api.faults.add(call, status=400, body=b'{"detail": "no"}')
    finding = only(asked(backend.environ, put=True)[call])
    assert fault.fired >= 1
    assert finding.severity is Severity.FAILED
    assert "HTTP 400" in finding.text


def test_spool_with_trouble_inside(tmp_path: Path) -> None:
    directory = tmp_path / "spool"
    assert only(list(check_spool(str(directory)))).text == f"{directory} will be created"
    spool = open_spool_at(directory, SteppedClock())
    run = spool.open_run(hello("run-1"), owner="")
    spool.append([frame(run, 1, 3)], [])
    spool.update(run, Event.PERMANENT_FAILURE)
    spool.control.publish_backoff("s3://bucket", attempts=4, next_try_at=0.0, error="HTTP 503 SlowDown", since=0.0)
    spool.close()
    found = list(check_spool(str(directory)))
    assert [(finding.severity, finding.subject) for finding in found] == [
        (Severity.OK, "spool"), (Severity.WARNING, "deliveries"), (Severity.WARNING, "runs"),
    ]  # fmt: skip
    assert "1 run, 3 rows waiting, no uploader runs" in found[0].text
    assert found[1].text == "s3://bucket has failed 4 times, the last time with: HTTP 503 SlowDown"
    directory.chmod(0o755)
    assert f"chmod 700 {directory}" in [finding.remedy for finding in check_spool(str(directory))]
    (directory / "spool.db").write_bytes(b"")
    unfinished = list(check_spool(str(directory)))[-1]
    assert (unfinished.severity, "spool.db is empty" in unfinished.text) == (Severity.OK, True)
    (directory / "spool.db").write_bytes(b"rubbish" * 1000)
    assert list(check_spool(str(directory)))[-1].severity is Severity.FAILED


def test_places_that_cannot_be_written() -> None:
    # Also root cannot make anything there.
    for finding in (only(list(check_spool("/proc/none"))), check_directory_target("/proc/none")):
        assert (finding.severity, "cannot be created in /proc" in finding.text) == (Severity.FAILED, True)
    assert only(list(check_spool("/dev/null/spool"))).severity is Severity.FAILED
    assert check_disk("/proc/none", GIB).severity is Severity.FAILED


def test_disk_that_is_smaller_than_the_limit_is_a_warning(tmp_path: Path) -> None:
    assert check_disk(str(tmp_path), 1 << 20).severity is Severity.OK
    assert check_disk(str(tmp_path / "not" / "there"), 1 << 60).severity is Severity.WARNING


def test_descriptors_of_the_running_uploader_are_looked_at(home: Home) -> None:
    assert check_descriptors(str(home.directory / "spool")).severity is Severity.OK
    home.start_uploader(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)))
    found = check_descriptors(str(home.directory / "spool"))
    assert found.severity in {Severity.WARNING, Severity.FAILED}
    assert found.text.startswith("uploader ")
    assert " of 40" in found.text
    assert "LimitNOFILE" in found.remedy


def test_keys_that_others_can_read_or_change(tmp_path: Path) -> None:
    store = KeyStore(str(tmp_path / "keys"))

    def found() -> Finding:
        return only(list(check_keys(store, named=True)))

    assert (found().severity, found().remedy) == (Severity.FAILED, "sentinel-uploader keys init")
    assert only(list(check_keys(store, named=False))).severity is Severity.SKIPPED
    store.init()
    assert (found().severity, found().remedy) == (Severity.WARNING, "sentinel-uploader keys add NAME")
    secret = Path(store.add("alice", replace=False))
    assert found() == Finding(Severity.OK, "keys", f"{store.directory}: a server key and 1 client")
    for path, mode, good, text in (
        (secret, 0o640, 0o600, f"other users can read {secret}"),
        (tmp_path / "keys/server.key_secret", 0o644, 0o600, "others may read it"),
        (tmp_path / "keys/clients/alice.key", 0o666, 0o600, "others may change it"),
        (tmp_path / "keys/clients", 0o770, 0o700, "other users can add keys to"),
    ):
        path.chmod(mode)
        assert (found().severity, bool(found().remedy), text in found().text) == (Severity.FAILED, True, True), path
        path.chmod(good)
    assert found().severity is Severity.OK
    (tmp_path / "keys/server.key_secret").write_text("rubbish")
    assert "holds no secret CURVE key" in found().text


def test_report_is_one_line_a_finding() -> None:
    findings = [Finding(Severity.OK, "disk", "8 MiB free"), Finding(Severity.WARNING, "clock", "off", "set it")]
    assert report(findings) == "ok      disk         8 MiB free\nwarning clock        off: set it\n"
    assert exit_code(findings) == 0
    assert exit_code([*findings, Finding(Severity.FAILED, "api", "away")]) == 1
