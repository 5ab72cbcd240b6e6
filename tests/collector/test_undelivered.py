"""A run that cannot be delivered: its rows are kept, `status` and the collector say why, nobody waits in vain."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fakes.backend import TOKEN, Backend
from fakes.process_harness import UPLOADER, Home, wait_until
from fakes.recorded_job import RecordedJob, assert_delivered, only_status

UPLOADS = ("--upload-interval", "0.2")
INLINE = ("--upload-interval", "60")
FOR_EVER = 600
"""Of waiting, much longer than a test may take."""


def statuses(backend: Backend, call: str) -> list[int | None]:
    return [request.status for request in backend.api.requests.of(call)]


def test_404_at_refresh_parks_the_run_keeps_its_rows_and_says_so(home: Home, backend: Backend) -> None:
    home.start_uploader(*UPLOADS, env=backend.environ)
    recording = RecordedJob(home, wait_s=FOR_EVER)
    wait_until(backend.s3.objects, "an object is stored")
    run = backend.only_run()
    backend.api.forget(run.run_id)
    backend.keyring.revoke_all()
    wait_until(lambda: only_status(home)["state"] == "parked", "the run is parked")
    recording.wait_for_rows(3)
    said = recording.end()

    assert statuses(backend, "refresh") == [404]
    # While the job runs, and at its end.
    assert "keeps the run's samples without delivering them: refresh: HTTP 404" in said
    show = f"`sentinel-uploader show {only_status(home)['key']}`"
    assert f"until an operator checks it ({show}): refresh: HTTP 404" in said
    assert_kept_and_delivered_when_the_server_remembers(home, backend, run, recording, "refresh: HTTP 404")


@pytest.mark.parametrize("words", [UPLOADS, INLINE], ids=["objects", "inline"])
def test_404_at_finish_parks_the_run_keeps_its_rows_and_says_so(
    home: Home, backend: Backend, words: tuple[str, ...]
) -> None:
    home.start_uploader(*words, env=backend.environ)
    recording = RecordedJob(home, wait_s=FOR_EVER)
    recording.wait_for_rows(3)
    wait_until(lambda: backend.api.runs, "the run is registered")
    if words is UPLOADS:
        wait_until(backend.s3.objects, "an object is stored")
    run = backend.only_run()
    backend.api.forget(run.run_id)
    said = recording.end()

    assert statuses(backend, "finish") == [404]
    assert "finish: HTTP 404" in said
    assert_kept_and_delivered_when_the_server_remembers(home, backend, run, recording, "finish: HTTP 404")


def assert_kept_and_delivered_when_the_server_remembers(
    home: Home, backend: Backend, run: Any, recording: RecordedJob, reason: str
) -> None:
    spool = ("--spool", str(home.directory / "spool"))
    status = only_status(home)
    assert status["state"] == "parked"
    assert status["rows_waiting"] + status["rows_delivered"] == len(recording.rows())
    shown = home.run(UPLOADER, "status", *spool).stdout
    assert re.search(rf"{run.run_id} +parked .*{reason}", shown), shown

    backend.api.runs[run.run_id] = run
    done = home.run(UPLOADER, "retry", run.run_id, *spool)
    assert done.returncode == 0, done.stderr
    wait_until(lambda: run.finish, "the run is delivered")
    assert_delivered(backend, recording)


def test_refused_token_is_told_to_whoever_waits_for_the_agent(backend: Backend, home: Home) -> None:
    summary = home.directory / "summary.json"
    environ = backend.environ | {"SENTINEL_API_TOKEN": "another-token"}
    recording = RecordedJob(home, "--summary-json", str(summary), wait_s=0.5, env=environ)
    wait_until(lambda: 401 in statuses(backend, "register"), "the token is refused")
    said = recording.end()

    assert set(statuses(backend, "register")) == {401}
    assert f"{backend.api.url} refuses the token in SENTINEL_API_TOKEN. The samples are kept; " in said
    figures = json.loads(summary.read_text(encoding="utf-8"))
    assert f"`sentinel-uploader show {figures['run_key']}`" in said
    assert (figures["durable"], figures["delivered"], figures["parked"]) == (True, False, False)
    assert "HTTP 401" in figures["delivery_error"]
    # The former name.
    assert figures["trouble"] == figures["delivery_error"]
    assert "another-token" not in said
    # The home is closed before the backend: its local uploader has nothing to wait for when it is stopped.
    backend.api.tokens.add("another-token")


@pytest.mark.parametrize("content", [None, ""], ids=["missing", "empty"])
def test_token_file_that_holds_none_is_told_to_whoever_waits(
    home: Home, backend: Backend, tmp_path: Path, content: str | None
) -> None:
    token_file = tmp_path / "token"
    if content is not None:
        token_file.write_text(content, encoding="utf-8")
    environ = backend.environ | {"SENTINEL_API_TOKEN": "", "SENTINEL_API_TOKEN_FILE": str(token_file)}
    home.start_uploader(env=environ)
    recording = RecordedJob(home, wait_s=0.5)
    said = recording.end()

    assert f"not delivered yet: SENTINEL_API_TOKEN_FILE={token_file}: " in said
    token_file.write_text(TOKEN, encoding="utf-8")
    wait_until(lambda: backend.api.runs and backend.only_run().finish, "the run is delivered")
    assert_delivered(backend, recording)


def test_end_of_a_run_without_waiting_names_the_run_and_the_trouble_known_by_then(home: Home, backend: Backend) -> None:
    refused = backend.s3.faults.add("put", code="NoSuchBucket")
    home.start_uploader(*UPLOADS, env=backend.environ)
    recording = RecordedJob(home, wait_s=0)
    wait_until(lambda: refused.fired and only_status(home)["last_error"], "storage refuses")
    said = recording.end()

    assert refused.fired
    assert "not delivered yet: PUT s3://" in said
    assert "NoSuchBucket" in said
    assert f"`sentinel-uploader show {only_status(home)['key']}`" in said
    assert "secret" not in said
    assert only_status(home)["rows_waiting"] == len(recording.rows())


def test_run_that_waits_behind_anothers_try_tells_what_for(home: Home, backend: Backend) -> None:
    backend.api.tokens = set()
    home.start_uploader(*UPLOADS, env=backend.environ)
    first = RecordedJob(home, wait_s=0.5)
    wait_until(lambda: 401 in statuses(backend, "register"), "the token is refused")
    second = home.collector("--connect", home.address, "--wait", "3.5", "--run-key", "the second", "--", "true")
    first.end()

    assert set(statuses(backend, "register")) == {401}
    # Waiting is of no use.
    assert "waiting for up to" not in second.stderr
    assert f"{backend.api.url} refuses the token of the uploader. The samples are kept; " in second.stderr
    assert "`sentinel-uploader show 'the second'`" in second.stderr
