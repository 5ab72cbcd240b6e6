"""A log line as text and as JSON, and that nobody's text writes a line of its own."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from fakes.process_harness import Home
from fakes.raw_collector import collectors_of
from fakes.uploader_harness import finish, hello, samples

from sentinel_protocol.wire.messages import Finished
from sentinel_uploader.telemetry.logging_setup import set_up_logging

log = logging.getLogger("uploader.test")


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def only_entry(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    (line,) = capsys.readouterr().err.splitlines()
    entry: dict[str, Any] = json.loads(line)
    return entry


def test_pairs_of_the_message_are_fields(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("json", verbose=False)
    log.warning(
        "step failed run=%s step=%s next_try_in_s=%.1f error=%s",
        "run-1", "put", 1.25, ValueError("HTTP 503\nrun=other"), extra={"client": "alice"},
    )  # fmt: skip
    entry = only_entry(capsys)
    assert entry.pop("time").endswith("Z")
    assert entry == {
        "level": "warning",
        "logger": "uploader.test",
        "event": "step failed",
        "message": "step failed run=run-1 step=put next_try_in_s=1.2 error=HTTP 503\nrun=other",
        "run": "run-1",
        "client": "alice",
        "step": "put",
        "next_try_in_s": 1.25,
        "error": "HTTP 503\nrun=other",
    }


@pytest.mark.parametrize(
    ("template", "args", "event", "fields"),
    [
        ("spool has room again", (), "spool has room again", {}),
        ("%s, not acknowledging error=%s", ("spool is full", "x"), "spool is full, not acknowledging", {"error": "x"}),
        ("100%% of rows=%d", (3,), "100% of rows=3", {}),
        ("ready listening=%s time=%s", ("a", "now"), "ready", {"listening": "a"}),
        ("rows=%d of %d", (3, 4), "of 4", {"rows": 3}),
    ],
)
def test_event_is_the_message_without_its_pairs(
    capsys: pytest.CaptureFixture[str], template: str, args: tuple[object, ...], event: str, fields: dict[str, Any]
) -> None:
    set_up_logging("json", verbose=False)
    log.error(template, *args)
    entry = only_entry(capsys)
    assert entry["message"] == template % args
    assert entry["event"] == event
    assert entry["time"] != "now"
    known = {"time", "level", "logger", "message", "event"}
    assert {key: value for key, value in entry.items() if key not in known} == fields


def test_exception_is_a_field(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("json", verbose=False)
    try:
        raise RuntimeError("a defect")
    except RuntimeError:
        log.exception("step failed unexpectedly run=%s", "run-1", extra={"client": ""})
    entry = only_entry(capsys)
    assert entry["exception"].endswith("RuntimeError: a defect")
    assert (entry["run"], entry["event"]) == ("run-1", "step failed unexpectedly")
    assert "client" not in entry


def test_text_names_the_client_and_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("text", verbose=False)
    log.info("run registered run=%s key=%s", "id", "a\nb", extra={"client": "alice"})
    log.info("run registered run=%s", "id", extra={"client": ""})
    log.debug("not shown")
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("Z info run registered run=id key=a\\nb client=alice")
    assert second.endswith("Z info run registered run=id")


def test_lines_of_a_running_uploader_have_their_run(home: Home) -> None:
    home.start_uploader("--log-format", "json")
    with collectors_of(home.address) as collectors:
        collector = collectors.connect()
        collector.say(hello("nightly"), samples(1, 3), finish(3))
        told = collector.hear_until(Finished)
    lines = (home.directory / "uploader.log").read_text(encoding="utf-8").splitlines()
    entries = {entry["event"]: entry for entry in map(json.loads, lines)}
    assert entries["run registered"]["run"] == entries["run finished"]["run"] == told.run_id
    assert entries["run registered"]["key"] == "nightly"
    assert (entries["run finished"]["rows"], entries["run finished"]["status"]) == (3, "finished")
    assert entries["uploader ready"]["listening"] == home.address
