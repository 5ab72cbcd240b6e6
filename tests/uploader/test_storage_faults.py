"""Storage that fails: one fault a test, between the two installed commands and a server that checks signatures.

Every row that the collector took is in exactly one object that `finish` names, whatever happened on the way.
"""

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fakes.backend import TOKEN, Backend
from fakes.faults import Fault, Recorded
from fakes.keyring import Keyring
from fakes.process_harness import Home, rows_of_objects, wait_until
from fakes.rclone import RcloneS3
from fakes.recorded_job import RecordedJob, assert_delivered
from fakes.s3 import S3Server
from fakes.sentinel_api import SentinelServer
from fakes.tls import make_authority, server_context

from sentinel_uploader.delivery.backoff import MIN_DELAY_S

UPLOADS = ("--upload-interval", "0.2")
HOUR_S = 3600.0
HARD_PREFIX = "a space/plus+at@host/träning-日本-ключ/semi;colon:%41&=#?"


def refused(backend: Backend, code: str) -> list[Recorded]:
    """What storage refused with this code, and nothing else was refused."""
    # One that is under way has no status yet.
    found = [request for request in backend.s3.requests.of("put") if request.status not in {None, 200}]
    assert {request.code for request in found} <= {code}
    return found


def deliver(home: Home, backend: Backend, *, objects: int = 2, env: dict[str, str] | None = None) -> str:
    """Record a job until so many objects are stored, then until it is delivered; returns the uploader's log."""
    home.start_uploader(*UPLOADS, env=backend.environ | (env or {}))
    recording = RecordedJob(home)
    wait_until(lambda: len(backend.s3.objects()) >= objects, "objects are stored")
    return end(home, backend, recording)


def end(home: Home, backend: Backend, recording: RecordedJob) -> str:
    recording.end()
    assert_delivered(backend, recording)
    log = log_of(home)
    assert "Traceback" not in log, log
    return log


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "TokenRefreshRequired"])
def test_credentials_that_storage_refuses_are_refreshed_once(home: Home, backend: Backend, code: str) -> None:
    home.start_uploader(*UPLOADS, env=backend.environ)
    recording = RecordedJob(home)
    wait_until(backend.s3.objects, "a first object")
    assert backend.keyring.revoke_all(code) == 1
    wait_until(lambda: refused(backend, code), "storage refuses")
    wait_for_another_object(backend)
    assert code in end(home, backend, recording)

    assert len(refused(backend, code)) == 1
    assert len(backend.api.requests.of("refresh")) == 1


def test_unexplained_403_is_answered_with_a_refresh(home: Home, backend: Backend) -> None:
    refused = backend.s3.faults.add("put", status=403, times=1)
    deliver(home, backend)

    assert refused.fired == 1
    assert len(backend.api.requests.of("refresh")) == 1


@pytest.mark.parametrize("off_s", [HOUR_S, -HOUR_S], ids=["an hour ahead", "an hour behind"])
def test_request_time_too_skewed_is_corrected_by_storages_own_clock(home: Home, off_s: float) -> None:
    with Backend(now=lambda: time.time() + off_s) as backend:
        deliver(home, backend)

        assert len(refused(backend, "RequestTimeTooSkewed")) == 1
        # The expiry by the server's clock is understood as well: nothing is asked for twice.
        assert backend.api.requests.of("refresh") == []


def test_clock_that_is_stepped_by_an_hour_in_the_middle_of_a_run_is_followed(home: Home, backend: Backend) -> None:
    home.start_uploader(*UPLOADS, env=backend.environ)
    recording = RecordedJob(home)
    wait_until(backend.s3.objects, "a first object")
    backend.s3.now = lambda: time.time() - HOUR_S
    wait_until(lambda: refused(backend, "RequestTimeTooSkewed"), "storage finds the time skewed")
    wait_for_another_object(backend)
    end(home, backend, recording)

    assert len(refused(backend, "RequestTimeTooSkewed")) == 1


@pytest.mark.parametrize(
    "what", [{"code": "SlowDown"}, {"code": "InternalError"}, {"status": 500}],
    ids=["503 SlowDown", "500 InternalError", "500 without a word"],
)  # fmt: skip
def test_storage_that_is_overloaded_is_tried_again_after_a_pause(
    home: Home, backend: Backend, what: dict[str, Any]
) -> None:
    overloaded = backend.s3.faults.add("put", **what, times=1)
    deliver(home, backend)

    assert overloaded.fired == 1
    assert_pauses(backend, overloaded, at_least_s=MIN_DELAY_S)


def test_slow_down_with_retry_after_is_obeyed(home: Home, backend: Backend) -> None:
    wish = backend.s3.faults.add("put", code="SlowDown", headers={"Retry-After": "1"}, times=1)
    deliver(home, backend)

    assert wish.fired == 1
    assert_pauses(backend, wish, at_least_s=1.0)


@pytest.mark.parametrize("when", ["drop_before", "drop_after_effect"], ids=["before the effect", "after the effect"])
def test_connection_reset_is_repaired_by_the_same_object(home: Home, backend: Backend, when: str) -> None:
    reset = backend.s3.faults.add("put", **{when: True}, times=1)
    deliver(home, backend)

    assert reset.fired == 1
    assert_pauses(backend, reset, at_least_s=MIN_DELAY_S)
    run = backend.only_run()
    versions = backend.s3.versions(f"{run.prefix}/0001.csv.gz")
    assert len(versions) == (2 if when == "drop_after_effect" else 1)


def test_storage_that_hangs_is_given_up_after_our_own_timeout(home: Home, backend: Backend) -> None:
    hang = backend.s3.faults.add("put", hang=True, times=1)
    log = deliver(home, backend, env={"SENTINEL_CALL_TIMEOUT": "0.3"})

    assert hang.fired == 1
    assert "timed out: silent for 0.3 s" in log


@pytest.mark.parametrize(
    ("answer", "code"), [("malformed", "AuthorizationHeaderMalformed"), ("redirect", "PermanentRedirect")]
)
def test_wrong_region_is_learnt_from_the_answer(home: Home, backend: Backend, answer: str, code: str) -> None:
    backend.s3.region, backend.s3.wrong_region = "eu-central-1", answer
    assert backend.api.behaviour.region == "us-east-1"
    deliver(home, backend)

    assert len(refused(backend, code)) == 1
    assert backend.api.requests.of("refresh") == []


def test_redirect_to_another_host_is_not_followed(home: Home, backend: Backend) -> None:
    with S3Server(Keyring()) as elsewhere:
        location = {"Location": f"{elsewhere.url}/bucket/stolen"}
        redirect = backend.s3.faults.add("put", status=307, headers=location, times=1)
        deliver(home, backend)

        assert redirect.fired == 1
        assert elsewhere.requests.of() == []


def test_private_authority_is_trusted_when_aws_ca_bundle_names_it(home: Home, tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    with Backend(tls=server_context(authority, "IP:127.0.0.1")) as backend:
        uploader = home.start_uploader(*UPLOADS, env=backend.environ)
        recording = RecordedJob(home)
        wait_until(lambda: "certificate not trusted" in log_of(home), "the certificate is refused")
        assert backend.s3.objects() == {}
        uploader.kill()
        uploader.wait()
        home.start_uploader(*UPLOADS, env=backend.environ | {"AWS_CA_BUNDLE": str(authority.certificate)})
        wait_until(backend.s3.objects, "objects are stored")
        end(home, backend, recording)


def test_keys_with_spaces_plus_at_and_non_ascii_are_signed_as_they_are(home: Home) -> None:
    with Backend(upload_root=f"s3://bucket/{HARD_PREFIX}") as backend:
        deliver(home, backend)

        assert all(request.status == 200 for request in backend.s3.requests.of("put"))
        assert all(uri.startswith(f"s3://bucket/{HARD_PREFIX}/run-1/") for uri in backend.s3.objects())


def test_keys_with_spaces_plus_at_and_non_ascii_are_taken_by_a_real_server(home: Home, tmp_path: Path) -> None:
    keyring = Keyring(fixed=RcloneS3.keys)
    (tmp_path / "s3").mkdir()
    root = f"s3://bucket/{HARD_PREFIX}"
    with (
        RcloneS3(tmp_path / "s3", "bucket") as s3,
        SentinelServer(token=TOKEN, keyring=keyring, upload_root=root, fetch=s3.fetch) as api,
    ):
        environ = {"SENTINEL_API_URL": api.url, "SENTINEL_API_TOKEN": TOKEN, "AWS_ENDPOINT_URL_S3": s3.url}
        home.start_uploader(*UPLOADS, env=environ)
        recording = RecordedJob(home)
        wait_until(lambda: list((tmp_path / "s3").rglob("0002.csv.gz")), "objects are stored")
        recording.end()
        (run,) = api.runs.values()
        assert run.finish is not None
        bodies = [s3.fetch(uri) for uri in run.finish["data_uris"]]

    assert len(list((tmp_path / "s3").rglob("*.csv.gz"))) == len(bodies)
    assert rows_of_objects(body for body in bodies if body is not None) == recording.rows()


def wait_for_another_object(backend: Backend) -> None:
    stored = len(backend.s3.objects())
    wait_until(lambda: len(backend.s3.objects()) > stored, "objects are stored again")


def log_of(home: Home) -> str:
    return (home.directory / "uploader.log").read_text(encoding="utf-8")


def assert_pauses(backend: Backend, fault: Fault, *, at_least_s: float) -> None:
    """After each time that the fault fired nothing was put for so long."""
    requests = backend.s3.requests.of("put")
    for request, following in pairwise(requests):
        if request.fault is fault:
            assert following.at - request.at >= at_least_s
