"""What the log says of failures: each kind at once, none of them over and over, and its end."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.scripted_backend import away, expired, failing
from fakes.uploader_harness import UploaderHarness, delivery


@pytest.fixture
def up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[UploaderHarness]:
    caplog.set_level(logging.INFO, logger="sentinel_uploader.delivery.failure_log")
    with delivery(tmp_path / "spool") as made:
        yield made


def said(caplog: pytest.LogCaptureFixture, begin: str) -> list[str]:
    return [message for message in caplog.messages if message.startswith(begin)]


def test_each_step_of_a_run_that_fails_is_logged_at_once_whatever_failed_before(
    up: UploaderHarness, caplog: pytest.LogCaptureFixture
) -> None:
    up.store.script("put", expired())
    up.api.script("refresh", failing(500))
    up.api.script("finish", failing(502))
    up.begin(rows=3, last=True)
    up.advance(20.0)

    assert len(up.api.endings) == 1
    failed = [line.split(" step=")[1].split()[0] for line in said(caplog, "step failed run=id-run ")]
    assert failed == ["put", "refresh", "finish"]
    again = [line.split(" step=")[1].split()[0] for line in said(caplog, "step works again run=id-run ")]
    assert again == ["refresh", "put", "finish"]


def test_step_that_goes_on_failing_is_logged_once_a_minute_and_its_recovery_once(
    up: UploaderHarness, caplog: pytest.LogCaptureFixture
) -> None:
    failures = 12
    up.store.script("put", *[failing(503)] * failures)
    up.begin(rows=3)
    began = up.clock.monotonic()
    up.advance(3600.0)

    assert len(up.store.of("put")) == failures + 1
    lines = said(caplog, "step failed run=id-run step=put ")
    assert 2 <= len(lines) <= (up.clock.monotonic() - began) / 60
    assert len(lines) < failures
    (again,) = said(caplog, "step works again run=id-run step=put ")
    assert f" failures={failures} " in again


def test_outage_of_the_api_is_told_at_its_beginning_and_at_its_end(
    up: UploaderHarness, caplog: pytest.LogCaptureFixture
) -> None:
    up.api.script("register", *[away()] * 3)
    up.begin()
    up.advance(60.0)

    assert len(said(caplog, "destination is failing destination=https://api.test ")) == 1
    assert len(said(caplog, "destination is back destination=https://api.test ")) == 1
