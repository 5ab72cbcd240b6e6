"""A disk that fails is another matter than one that is full: it is called what it is, and outlived."""

from pathlib import Path

from fakes.backend import Backend
from fakes.failing_disk import FailingDisk
from fakes.process_harness import Home, wait_until
from fakes.recorded_job import RecordedJob, assert_delivered


def log_of(home: Home) -> str:
    text = (home.directory / "uploader.log").read_text(encoding="utf-8")
    assert "Traceback" not in text, text
    return text


def test_io_errors_hold_up_acknowledgements_and_are_not_called_a_full_disk(
    home: Home, backend: Backend, tmp_path: Path
) -> None:
    disk = FailingDisk(tmp_path, "/spool/spool.db")
    home.start_uploader("--upload-interval", "0.2", env=backend.environ | disk.environ)
    recording = RecordedJob(home)
    wait_until(backend.s3.objects, "a first object")
    disk.break_down()
    wait_until(lambda: "spool cannot be written" in log_of(home), "the disk fails")
    recording.wait_for_rows(5)
    assert disk.failures
    disk.repair()
    stored = len(backend.s3.objects())
    wait_until(lambda: len(backend.s3.objects()) > stored, "objects are stored again")
    said = recording.end()

    assert "SQLITE_IOERR" in log_of(home)
    assert "full" not in log_of(home)
    assert "no room" not in log_of(home) + said
    assert "rejects samples (busy: the spool cannot be written); keeping the samples" in said
    assert "accepts samples again" in said
    assert_delivered(backend, recording)
