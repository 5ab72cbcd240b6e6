"""What the uploader says of itself: alive, ready, healthy; on a clock that is moved by hand."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.scripted_backend import away
from fakes.uploader_harness import Delivery, delivery, open_spool_at

from sentinel_uploader.admin.requests import retry_run
from sentinel_uploader.runs.lifecycle import Event
from sentinel_uploader.spool.database import MIN_SPOOL_BYTES
from sentinel_uploader.spool.store import Spool
from sentinel_uploader.telemetry.health import HANG_THRESHOLD_S, WRITE_PROBE_INTERVAL_S, Health

UNHEALTHY_AFTER_S = 100.0


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Delivery]:
    with delivery(tmp_path / "spool") as made:
        yield made


def health_of(up: Delivery, *, spool: Spool | None = None, directory: str = "/") -> Health:
    return Health(
        spool=spool or up.spool,
        directory=directory,
        last_intake_loop_at=lambda: up.intake.last_loop_at,
        spool_unavailable=lambda: up.intake.availability.unavailable,
        last_main_loop_at=lambda: up.intake.last_loop_at,
        unhealthy_after_s=UNHEALTHY_AFTER_S,
        clock=up.clock,
    )


def test_age_is_that_of_the_oldest_row_that_is_not_delivered(up: Delivery) -> None:
    health = health_of(up)
    assert health.backlog().oldest_s == 0
    run = up.begin(rows=3)
    up.advance(20.0)
    up.add(run, 2)
    up.advance(10.0)
    assert health.backlog().oldest_s == 30.0
    # At the upload interval all are delivered.
    up.advance(31.0)
    backlog = health.backlog()
    assert (backlog.rows, backlog.objects, backlog.oldest_s) == (0, 0, 0.0)
    up.add(run, 1)
    up.advance(5.0)
    assert (health.backlog().rows, health.backlog().oldest_s) == (1, 5.0)


def test_rows_that_do_not_move_make_it_unhealthy_until_they_do(up: Delivery) -> None:
    health = health_of(up)
    up.store.always["put"] = away()
    run = up.begin(rows=3)
    up.advance(99.0)
    assert health.health_error() == ""
    assert health.backlog().objects == 1
    up.add(run, 3)
    up.advance(2.0)
    assert "has waited for 101 s" in health.health_error()
    del up.store.always["put"]
    up.scheduler.reset_backoff()
    up.advance(1.0)
    assert (health.health_error(), health.backlog().oldest_s) == ("", 3.0)


def test_age_outlives_the_process(tmp_path: Path) -> None:
    directory = tmp_path / "spool"
    with delivery(directory) as up:
        up.store.always["put"] = away()
        run = up.begin(rows=3)
        up.advance(70.0)
        up.add(run, 2)
        up.advance(30.0)
        assert health_of(up).backlog().oldest_s == 100.0
        up.clock.advance(50.0)
        again = open_spool_at(directory, up.clock)
        try:
            (run,) = again._runs.values()
            backlog = health_of(up, spool=again).backlog()
            assert (backlog.rows, backlog.oldest_s) == (5, 150.0)
            batch = again.next_batch(run)
            assert batch is not None
            again.confirm_batch(run, batch)
            # Of rows that are in no batch only this much is known: they came after the last one was cut.
            assert health_of(up, spool=again).backlog().oldest_s == 90.0
        finally:
            again.close()


def test_parked_runs_are_told_apart(up: Delivery) -> None:
    health = health_of(up)
    run = up.begin(rows=3)
    up.spool.update(run, Event.PERMANENT_FAILURE)
    up.advance(UNHEALTHY_AFTER_S + 1)
    backlog = health.backlog()
    assert (backlog.rows, backlog.parked_rows, backlog.oldest_s, health.health_error()) == (3, 3, 0.0, "")
    assert retry_run(up.spool, run) == "done"
    assert health.backlog().parked_rows == 0
    assert health.health_error() != ""


def test_loop_that_hangs_is_not_alive(up: Delivery) -> None:
    health = health_of(up)
    up.clock.advance(HANG_THRESHOLD_S)
    assert health.liveness_error() == ""
    up.clock.advance(1.0)
    assert health.liveness_error() == "the intake has hung for 121 s; the dispatcher has hung for 121 s"
    up.intake.poll_once(0.0)
    assert health.liveness_error() == ""


def test_spool_that_cannot_be_written_is_not_ready(up: Delivery) -> None:
    health = health_of(up)
    assert health.readiness_error() == ""
    up.spool._database.connection.execute("PRAGMA query_only = 1")
    up.clock.advance(WRITE_PROBE_INTERVAL_S)
    assert "readonly" in health.readiness_error()
    up.spool._database.connection.execute("PRAGMA query_only = 0")
    assert health.readiness_error() == ""


def test_writing_for_an_answer_changes_nothing(up: Delivery) -> None:
    health = health_of(up)
    up.begin(rows=3)
    before = [up.spool._database.query(f"SELECT * FROM {table}") for table in ("runs", "frames", "batches", "requests")]
    up.clock.advance(WRITE_PROBE_INTERVAL_S)
    assert health.readiness_error() == ""
    after = [up.spool._database.query(f"SELECT * FROM {table}") for table in ("runs", "frames", "batches", "requests")]
    assert before == after


def test_disk_without_room_is_not_ready(up: Delivery) -> None:
    assert health_of(up, directory="/proc").readiness_error() == "the disk of the spool /proc has 0 bytes left"
    assert "cannot be checked" in health_of(up, directory="/no/such/directory").readiness_error()


def test_full_spool_is_not_ready(up: Delivery, tmp_path: Path) -> None:
    spool = open_spool_at(tmp_path / "small", up.clock, max_bytes=MIN_SPOOL_BYTES)
    try:
        health = health_of(up, spool=spool)
        assert health.readiness_error() == ""
        with spool._database.transaction() as connection:
            connection.execute("INSERT INTO frames VALUES (1, 1, 1, 1, zeroblob(40000))")
        assert health.readiness_error() == f"the spool has reached its limit of {MIN_SPOOL_BYTES} bytes"
    finally:
        spool.close()


def test_uploader_that_stops_is_not_ready(up: Delivery) -> None:
    health = health_of(up)
    health.is_stopping = True
    assert health.readiness_error() == "the uploader is stopping"
