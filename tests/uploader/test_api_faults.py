"""A Sentinel API that fails: one fault a test, between the two installed commands and a server of the contract.

Whatever it answers, every row that the collector took is delivered once, or kept where `status` says so.
"""

import re
from pathlib import Path
from typing import Any

import pytest
from fakes.backend import TOKEN, Backend
from fakes.process_harness import Home, wait_until
from fakes.raw_collector import Collectors
from fakes.recorded_job import RecordedJob, assert_delivered, only_status
from fakes.strict_http_server import free_port
from fakes.uploader_harness import finish, hello, row_numbers, samples

from sentinel_protocol.wire.messages import Finished, Welcome

UPLOADS = ("--upload-interval", "0.2")
INLINE = ("--upload-interval", "60")
HUGE_BYTES = 200 << 20


def log_of(home: Home) -> str:
    text = (home.directory / "uploader.log").read_text(encoding="utf-8")
    assert "Traceback" not in text, text
    return text


def statuses(backend: Backend, call: str) -> list[int | None]:
    return [request.status for request in backend.api.requests.of(call)]


def test_api_that_is_away_for_longer_than_the_whole_run_gets_it_afterwards(home: Home) -> None:
    ports = free_port(), free_port()
    environ = {
        "SENTINEL_API_URL": f"http://127.0.0.1:{ports[0]}",
        "SENTINEL_API_TOKEN": TOKEN,
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{ports[1]}",
    }
    home.start_uploader(*UPLOADS, env=environ)
    recording = RecordedJob(home, wait_s=0)
    recording.wait_for_rows(5)
    wait_until(lambda: "Connection refused" in log_of(home), "the API is missed")
    wait_until(lambda: only_status(home)["rows_waiting"] >= 5, "the rows are acknowledged all the same")
    recording.end()

    with Backend(ports=ports) as backend:
        wait_until(lambda: backend.api.runs and backend.only_run().finish, "the run is delivered")
        assert_delivered(backend, recording)
        assert "destination is back" in log_of(home)


def test_401_until_the_token_file_is_rotated_is_asked_again_at_once_then(home: Home, backend: Backend) -> None:
    token_file = home.directory / "token"
    token_file.write_text("the-old-token\n", encoding="utf-8")
    environ = backend.environ | {"SENTINEL_API_TOKEN": "", "SENTINEL_API_TOKEN_FILE": str(token_file)}
    home.start_uploader(*UPLOADS, env=environ)
    recording = RecordedJob(home)
    wait_until(lambda: 401 in statuses(backend, "register"), "the token is refused")
    recording.wait_for_rows(5)
    rotate(token_file, TOKEN)
    wait_until(backend.s3.objects, "an object is stored")
    # The same in the middle of the run.
    backend.api.tokens = {"the-next-token"}
    refused = backend.keyring.revoke_all()
    wait_until(lambda: 401 in statuses(backend, "refresh"), "the token is refused again")
    rotate(token_file, "the-next-token")
    recording.end()

    assert refused
    for call, accepted in (("register", 201), ("refresh", 200)):
        *before, last = statuses(backend, call)
        assert (set(before), last) == ({401}, accepted)
    # Seconds before the next try was due.
    assert log_of(home).count("the token was changed, trying again") == 2
    assert_delivered(backend, recording)


def rotate(file: Path, token: str) -> None:
    """As secrets are rotated: a new file in the place of the old one."""
    new = file.with_suffix(".new")
    new.write_text(token, encoding="utf-8")
    new.replace(file)


@pytest.mark.parametrize(
    ("wanted", "answers", "sent"),
    [("list", [422, 201], ["model=small"]), ("none", [422, 422, 201], None)],
    ids=["object refused, list taken", "object and list refused"],
)
def test_422_for_tags_costs_the_tags_and_a_warning(
    home: Home, backend: Backend, wanted: str, answers: list[int], sent: list[str] | None
) -> None:
    backend.api.behaviour.tags = wanted
    home.start_uploader(*UPLOADS, env=backend.environ)
    recording = RecordedJob(home, "--tag", "model=small", "--job-name", "tagged")
    wait_until(backend.s3.objects, "an object is stored")
    recording.end()

    assert statuses(backend, "register") == answers
    registration = backend.only_run().registration
    assert (registration.get("tags"), registration["job_name"]) == (sent, "tagged")
    assert "the server refused a field, sending without it: field=tags" in log_of(home)
    assert_delivered(backend, recording)


def test_422_for_pid_costs_the_pid_and_a_warning(home: Home, backend: Backend, collectors: Collectors) -> None:
    backend.api.behaviour.refuse = {"pid"}
    home.start_uploader(*INLINE, env=backend.environ)
    collector = collectors.connect()
    collector.say(hello(metadata={"pid": 4711, "job_name": "with-pid"}))
    collector.hear_until(Welcome)
    collector.say(samples(1, 5), finish(5))
    collector.hear_until(Finished)

    assert statuses(backend, "register") == [422, 201]
    run = backend.only_run()
    assert "pid" not in run.registration
    assert run.registration["job_name"] == "with-pid"
    assert "the server refused a field, sending without it: field=pid" in log_of(home)
    assert row_numbers("\n".join(backend.rows(run)).encode()) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("status", [422, 415, 400])
def test_gzip_that_is_refused_is_sent_plain(home: Home, backend: Backend, status: int) -> None:
    backend.api.behaviour.gzip, backend.api.behaviour.gzip_refusal = "refused", status
    home.start_uploader(*INLINE, env=backend.environ)
    recording = RecordedJob(home)
    recording.wait_for_rows(3)
    recording.end()

    assert statuses(backend, "finish") == [status, 200]
    gzipped, plain = backend.api.requests.of("finish")
    assert (gzipped.headers.get("content-encoding"), plain.headers.get("content-encoding")) == ("gzip", None)
    assert "data_csv" in backend.only_run().finish
    assert_delivered(backend, recording)


@pytest.mark.parametrize(
    ("lost", "seen", "again"),
    [({"drop_after_effect": True}, None, 409), ({"after_effect": True, "status": 503}, 503, 200)],
    ids=["reset, then 409", "503, then the same answer"],
)
def test_finish_that_was_accepted_but_not_answered_is_no_error_and_no_loop(
    home: Home, backend: Backend, lost: dict[str, Any], seen: int | None, again: int
) -> None:
    backend.api.behaviour.second_finish = again
    fault = backend.api.faults.add("finish", **lost, times=1)
    home.start_uploader(*UPLOADS, env=backend.environ)
    recording = RecordedJob(home)
    wait_until(backend.s3.objects, "an object is stored")
    said = recording.end()

    assert fault.fired == 1
    assert statuses(backend, "finish") == [seen, again]
    assert f"{len(recording.rows())} samples delivered" in said
    assert (only_status(home)["state"], only_status(home)["last_error"]) == ("finished", "")
    assert_delivered(backend, recording)


@pytest.mark.parametrize("call", ["register", "refresh", "finish"])
def test_malformed_json_is_asked_for_again(home: Home, backend: Backend, call: str) -> None:
    malformed = backend.api.faults.add(call, status=200, body=b'{"run_id": "half', times=1)
    home.start_uploader(*UPLOADS, env=backend.environ)
    recording = RecordedJob(home)
    wait_until(backend.s3.objects, "an object is stored")
    backend.keyring.revoke_all()
    wait_until(lambda: 200 in [r.status for r in backend.api.requests.of("refresh") if r.fault is None], "a refresh")
    recording.end()

    assert malformed.fired == 1
    assert f"step={call}" in log_of(home)
    assert f"{call}: HTTP 200: the answer of 16 bytes is not JSON" in log_of(home)
    assert log_of(home).count(f"step works again run=run-1 step={call} ") == 1
    assert_delivered(backend, recording)


@pytest.mark.parametrize(
    ("call", "after_effect"), [("register", False), ("register", True), ("refresh", False), ("finish", True)]
)
def test_call_that_hangs_is_given_up_after_our_own_timeout(
    home: Home, backend: Backend, call: str, after_effect: bool
) -> None:
    hang = backend.api.faults.add(call, hang=True, after_effect=after_effect, times=1)
    home.start_uploader(*UPLOADS, env=backend.environ | {"SENTINEL_CALL_TIMEOUT": "1"})
    recording = RecordedJob(home)
    wait_until(backend.s3.objects, "an object is stored")
    backend.keyring.revoke_all()
    stored = len(backend.s3.objects())
    wait_until(lambda: len(backend.s3.objects()) > stored, "objects are stored again")
    recording.end()

    assert hang.fired == 1
    assert not hang.lifted.is_set()
    assert re.search(rf"step={call} .*timed out: silent for 1 s", log_of(home)), log_of(home)
    # A registration whose answer never came cannot be undone: such a run stays empty.
    (run,) = (run for run in backend.api.runs.values() if run.finish is not None)
    assert backend.rows(run) == recording.rows()


def test_answers_of_200_mb_are_not_held(home: Home, backend: Backend) -> None:
    uploader = home.start_uploader(*UPLOADS, env=backend.environ)
    before = peak_memory_mib(uploader.pid)
    huge = [
        backend.api.faults.add("register", status=200, huge_body_bytes=HUGE_BYTES, times=1),
        backend.s3.faults.add("put", status=503, huge_body_bytes=HUGE_BYTES, times=1),
        backend.api.faults.add("refresh", status=200, huge_body_bytes=HUGE_BYTES, times=1),
        backend.api.faults.add("finish", status=500, huge_body_bytes=HUGE_BYTES, times=1),
    ]
    recording = RecordedJob(home)
    wait_until(backend.s3.objects, "an object is stored")
    backend.keyring.revoke_all()
    stored = len(backend.s3.objects())
    wait_until(lambda: len(backend.s3.objects()) > stored, "objects are stored again")
    # Storage's success may be as long.
    huge.append(backend.s3.faults.add("put", status=200, after_effect=True, huge_body_bytes=HUGE_BYTES, times=1))
    wait_until(lambda: huge[-1].fired, "an object is stored with a long answer")
    recording.end()

    assert [fault.fired for fault in huge] == [1] * 5
    for call in ("register", "refresh"):
        assert f"{call}: HTTP 200 with an answer of more than 1048576 bytes" in log_of(home)
    # botocore's signer is imported for the first object.
    assert peak_memory_mib(uploader.pid) - before < 24
    assert_delivered(backend, recording)


def peak_memory_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    match = re.search(r"VmHWM:\s+(\d+) kB", text)
    assert match is not None
    return int(match[1]) / 1024


def test_credentials_without_expiry_are_used_until_storage_refuses_them(home: Home, backend: Backend) -> None:
    backend.api.behaviour.expiry_key = ""
    home.start_uploader(*UPLOADS, env=backend.environ)
    recording = RecordedJob(home)
    wait_until(lambda: len(backend.s3.objects()) >= 3, "objects are stored")
    assert statuses(backend, "refresh") == []
    assert backend.keyring.revoke_all() == 1
    stored = len(backend.s3.objects())
    wait_until(lambda: len(backend.s3.objects()) > stored, "objects are stored again")
    recording.end()

    assert [request.code for request in backend.s3.requests.of("put") if request.status != 200] == ["ExpiredToken"]
    assert statuses(backend, "refresh") == [200]
    assert_delivered(backend, recording)
