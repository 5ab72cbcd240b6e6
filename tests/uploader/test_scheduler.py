"""When each call is made, asserted on a clock that is moved by hand: no wait here is a real one."""

import itertools
import threading
import traceback
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any

import pytest
from fakes.scripted_backend import Gate, SteppedClock, away, expired, failing, final, refused
from fakes.uploader_harness import UploaderHarness, delivery, ended_record, finish, frame, hello

from sentinel_protocol.wire.messages import Ping, encode
from sentinel_uploader.admin.requests import discard_run, retry_run
from sentinel_uploader.delivery.backoff import EXPEDITED_DELAY_S, MAX_DELAY_S, SLOW_BASE_DELAY_S
from sentinel_uploader.delivery.wait_queues import MAX_CALLS_PER_DESTINATION
from sentinel_uploader.runs.delivery_error import DeliveryError
from sentinel_uploader.runs.lifecycle import RunState
from sentinel_uploader.runs.schedule import Policy
from sentinel_uploader.spool.errors import SpoolError
from sentinel_uploader.spool.types import SupersededError


@pytest.fixture
def up(tmp_path: Path) -> Iterator[UploaderHarness]:
    with delivery(tmp_path / "spool") as made:
        yield made


STALE = Policy(upload_interval_s=60.0, stale_after_s=900.0)


@pytest.fixture
def watchful(tmp_path: Path) -> Iterator[UploaderHarness]:
    with delivery(tmp_path / "spool", policy=STALE) as made:
        yield made


def gaps(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def state(up: UploaderHarness, key: str) -> RunState:
    for run in up.spool._runs.values():
        if run.record.key == key:
            return run.record.state
    record = ended_record(up.spool, key)
    assert record is not None
    return record.state


def test_run_is_registered_uploaded_at_the_interval_and_finished_at_its_end(up: UploaderHarness) -> None:
    began = up.clock.monotonic()
    run = up.begin(rows=3)
    up.advance(59.0)
    assert up.api.times("register") == [began]
    assert up.store.calls == []
    up.advance(2.0)
    assert up.store.times("put") == [began + 60.0]
    up.add(run, 2)
    up.end(run)
    up.settle()
    assert up.rows_stored("id-run") == [1, 2, 3, 4, 5]
    (ending,) = up.api.endings
    assert ending.data_uris == [f"s3://bucket/runs/id-run/000{n}.csv.gz" for n in (1, 2)]
    assert (ending.status, ending.exit_code, ending.summary["rows"]) == ("finished", 0, 5)
    assert state(up, "run") is RunState.FINISHED
    assert up.api.times("refresh") == []


def test_short_run_goes_inline_without_credentials_or_storage(tmp_path: Path) -> None:
    with delivery(tmp_path / "spool", inline_limit_bytes=5 << 20) as up:
        up.begin(rows=3, last=True)
        up.settle()
        (ending,) = up.api.endings
        assert ending.data_csv is not None
        assert ending.data_csv.count(b"\n") == 4
        assert ending.data_uris is None
        assert up.store.calls == []


def test_run_that_ends_while_it_is_being_registered_is_finished_all_the_same(up: UploaderHarness) -> None:
    gate = Gate()
    up.api.script("register", gate)
    run = up.begin(rows=1)
    up.settle(gate)
    up.spool.append([], [(run, finish(1, 3, "failed"))])
    gate.open()
    up.settle()
    assert [(ending.status, ending.exit_code) for ending in up.api.endings] == [("failed", 3)]


def test_inline_that_is_too_large_for_the_server_goes_through_storage(tmp_path: Path) -> None:
    with delivery(tmp_path / "spool", inline_limit_bytes=5 << 20) as up:
        up.api.script("finish", final(413))
        up.begin(rows=3, last=True)
        up.settle()
        assert [ending.data_csv for ending in up.api.endings] == [None]
        assert up.rows_stored("id-run") == [1, 2, 3]
        assert state(up, "run") is RunState.FINISHED


def test_empty_inline_that_is_refused_as_too_large_is_parked(tmp_path: Path) -> None:
    with delivery(tmp_path / "spool", inline_limit_bytes=5 << 20) as up:
        up.api.script("finish", final(413))
        up.begin(last=True)
        up.settle()
        assert state(up, "run") is RunState.QUARANTINED


def test_rows_beyond_a_batch_are_cut_and_put_without_waiting_for_the_interval(tmp_path: Path) -> None:
    policy = Policy(upload_interval_s=60.0, max_batch_rows=10)
    with delivery(tmp_path / "spool", policy=policy) as up:
        run = up.begin()
        for first in range(1, 26, 5):
            up.spool.append([frame(run, first, first + 4)], [])
        up.scheduler.notify(run)
        up.settle()
        assert len(up.store.of("put")) == 2
        assert up.rows_stored("id-run") == list(range(1, 21))
        assert run.unbatched_rows == 5


def test_api_that_is_away_is_tried_by_one_run_at_a_time_with_growing_waits(up: UploaderHarness) -> None:
    up.api.always["register"] = away()
    for number in range(20):
        up.begin(f"run-{number}", rows=1)
    up.advance(3600.0)
    times = up.api.times("register")
    assert len({call.run for call in up.api.of("register")}) > 10, "those that wait take turns"
    # The first calls were under way together when the outage began; after it there is one at a time.
    later = [time for time in times if time > times[0]]
    assert len(times) - len(later) <= MAX_CALLS_PER_DESTINATION
    assert len(set(later)) == len(later)
    assert max(gaps(later)) <= MAX_DELAY_S
    assert len(later) < 60

    up.api.always.clear()
    back = up.clock.monotonic()
    up.advance(MAX_DELAY_S + 5.0)
    after = [time for time in up.api.times("register") if time > back]
    first, *others = after
    assert len(after) == 20
    assert all(first <= time <= first + 1.0 for time in others)
    assert len(set(others)) > 10, "woken spread over a moment"
    assert {run.record.state for run in up.spool._runs.values()} == {RunState.REGISTERED}


def test_first_waits_after_a_lost_connection_are_those_of_the_back_off(up: UploaderHarness) -> None:
    up.api.script("register", *[away()] * 6)
    up.begin()
    up.advance(600.0)
    waits = gaps(up.api.times("register"))
    assert len(waits) == 6
    assert all(0.25 <= wait <= 2.0**attempt for attempt, wait in enumerate(waits, 1))


def test_server_that_says_when_to_come_back_is_not_called_before_by_anybody(up: UploaderHarness) -> None:
    up.api.script("register", failing(429, retry_after_s=120.0))
    began = up.clock.monotonic()
    first = up.begin("first")
    up.settle()
    up.begin("second")
    up.end(first)
    up.advance(119.0)
    assert up.api.times("register") == [began]
    up.advance(5.0)
    assert len(up.api.times("register")) == 3
    assert all(time >= began + 120.0 for time in up.api.times("register")[1:])


def test_token_that_is_refused_is_tried_slowly_and_for_all_at_once(up: UploaderHarness) -> None:
    up.api.always["register"] = refused(401)
    for number in range(3):
        up.begin(f"run-{number}")
    up.advance(1200.0)
    later = [time for time in up.api.times("register") if time > up.api.times("register")[0]]
    assert min(gaps(later)) >= SLOW_BASE_DELAY_S / 2
    assert len(later) <= 12
    up.api.always.clear()
    up.advance(MAX_DELAY_S + 2.0)
    assert {run.record.state for run in up.spool._runs.values()} == {RunState.REGISTERED}


def test_end_of_a_run_shortens_the_wait(up: UploaderHarness) -> None:
    up.api.always["register"] = away()
    run = up.begin(rows=1)
    up.advance(900.0)
    last = up.api.times("register")[-1]
    up.advance(0.0)
    up.end(run)
    up.api.always.clear()
    up.settle()
    up.advance(EXPEDITED_DELAY_S)
    assert state(up, "run") is RunState.FINISHED
    assert up.api.times("register")[-1] <= max(last + EXPEDITED_DELAY_S, up.clock.monotonic())


def test_status_shows_the_failing_destination_until_it_is_back(up: UploaderHarness) -> None:
    up.api.script("register", away(), away())
    run = up.begin()
    up.settle()
    shown = up.spool._database.query("SELECT name, attempts, error FROM destinations")
    assert shown == [("https://api.test", 1, "connection refused")]
    assert run.record.last_error == "connection refused"
    assert run.record.next_try_at > up.clock.now()
    up.advance(10.0)
    assert up.spool._database.query("SELECT * FROM destinations") == []
    assert run.record.last_error == ""


@pytest.mark.parametrize("error", [failing(500), away(), refused(403)], ids=["500", "no connection", "403"])
def test_run_that_always_fails_does_not_hold_up_the_others(up: UploaderHarness, error: DeliveryError) -> None:
    up.store.always["put:s3://bucket/runs/id-bad/0001.csv.gz"] = error
    good = up.begin("good", rows=1)
    bad = up.begin("bad", rows=1)
    for _ in range(30):
        up.advance(60.0)
        up.add(good, 1)
        good.last_seen_at = bad.last_seen_at = up.clock.monotonic()
    puts = up.store.times("put", "id-good")
    assert len(puts) == 30
    # An outage is believed once; when others had succeeded the failures are the run's own.
    assert all(58.0 <= gap <= 62.0 for gap in gaps(puts)[1:])
    tries = up.store.times("put", "id-bad")
    assert 3 <= len(tries) <= 60
    assert max(gaps(tries)) <= MAX_DELAY_S + 1.0


def test_hung_calls_hold_up_neither_other_buckets_nor_the_cutting_of_batches(tmp_path: Path) -> None:
    policy = Policy(upload_interval_s=60.0, max_batch_rows=2)
    with delivery(tmp_path / "spool", policy=policy) as up:
        gate = Gate()
        for number in range(MAX_CALLS_PER_DESTINATION + 4):
            up.store.always[f"put:s3://bucket/runs/id-hung-{number}/0001.csv.gz"] = gate
            up.begin(f"hung-{number}", rows=2)
        up.settle(gate, times=MAX_CALLS_PER_DESTINATION)
        assert len(up.store.of("put")) == MAX_CALLS_PER_DESTINATION

        up.api.prefix = "s3://other/runs"
        run = up.begin("free", rows=2, last=True)
        up.settle(gate, times=MAX_CALLS_PER_DESTINATION)
        assert state(up, "free") is RunState.FINISHED
        gate.open()
        up.settle()
        assert len(up.store.of("put", "id-hung")) == MAX_CALLS_PER_DESTINATION + 4
        assert run.id not in up.spool._runs


def test_address_that_leads_nowhere_is_the_runs_own_trouble(up: UploaderHarness) -> None:
    up.api.prefix = "ftp://elsewhere"
    up.begin("lost", rows=1)
    up.api.script("register", None)
    up.settle()
    up.api.prefix = "s3://bucket/runs"
    good = up.begin("good", rows=1)
    up.advance(61.0)
    assert len(up.store.of("put", "id-good")) == 1
    lost = next(run for run in up.spool._runs.values() if run is not good)
    assert "not an address" in lost.record.last_error


def test_steps_of_a_run_are_serialised_and_none_follows_its_end(up: UploaderHarness) -> None:
    gate = Gate()
    up.api.script("finish", gate)
    run = up.begin(rows=1, last=True)
    up.settle(gate)
    for _ in range(5):
        up.scheduler.notify(run)
        up.settle(gate)
    gate.open()
    up.settle()
    up.scheduler.notify(run)
    up.advance(3600.0)
    assert [call.name for call in up.api.calls] == ["register", "finish"]


def test_probe_whose_run_is_discarded_leaves_its_turn_to_another(up: UploaderHarness) -> None:
    up.store.always["put"] = away()
    runs = [up.begin(f"run-{number}", rows=1) for number in range(4)]
    up.advance(61.0)
    for run in runs[:3]:
        assert discard_run(up.spool, run) == "done"
        up.scheduler.on_run_closed(run)
    up.store.always.clear()
    up.advance(MAX_DELAY_S)
    assert up.rows_stored("id-run-3") == [1]


def test_probe_whose_run_is_parked_elsewhere_leaves_its_turn_to_another(tmp_path: Path) -> None:
    with delivery(tmp_path / "spool", lifetime_s=400.0) as up:
        up.store.always["put"] = away()
        runs = [up.begin(f"run-{number}", rows=1) for number in range(3)]
        up.advance(61.0)
        for run in runs[:2]:
            # Their credentials lapse during the outage, and the server has forgotten them.
            up.api.always[f"refresh:id-{run.record.key}"] = final(404)
        up.advance(800.0)
        assert [run.record.state for run in runs[:2]] == [RunState.QUARANTINED] * 2
        up.store.always.clear()
        up.advance(MAX_DELAY_S + 1.0)
        assert up.rows_stored("id-run-2") == [1]


def test_runs_beyond_the_limit_of_calls_all_get_their_turn(up: UploaderHarness) -> None:
    for number in range(5 * MAX_CALLS_PER_DESTINATION):
        up.begin(f"run-{number}", rows=1, last=True)
    up.settle()
    assert up.spool._runs == {}
    assert len(up.api.endings) == 5 * MAX_CALLS_PER_DESTINATION


def test_credentials_are_refreshed_once_per_upload_at_most_and_in_time(tmp_path: Path) -> None:
    with delivery(tmp_path / "spool", policy=Policy(upload_interval_s=2.0), lifetime_s=6.0) as up:
        run = up.begin(rows=1)
        for _ in range(30):
            up.advance(2.0)
            up.add(run, 1)
        puts = up.store.times("put")
        assert len(puts) >= 29
        assert 10 <= len(up.api.times("refresh")) <= 16
        assert all(
            credentials is not None and credentials.expires_at is not None for credentials in up.store.credentials
        )


def test_credentials_that_had_expired_before_they_came_are_used_until_storage_refuses_them(tmp_path: Path) -> None:
    with delivery(tmp_path / "spool") as up:
        up.api.expiry_error_s = -7200.0
        run = up.begin(rows=1)
        up.advance(61.0)
        up.add(run, 1)
        up.advance(60.0)
        assert up.api.times("refresh") == []
        assert len(up.store.times("put")) == 2


def test_refusal_by_storage_asks_for_new_credentials_at_once_and_then_backs_off(up: UploaderHarness) -> None:
    up.store.script("put", *[expired()] * 6)
    up.begin(rows=1)
    up.advance(60.0)
    up.settle()
    assert (len(up.store.times("put")), len(up.api.times("refresh"))) == (2, 1)
    up.advance(600.0)
    puts, refreshes = up.store.times("put"), up.api.times("refresh")
    assert len(puts) == 7
    assert len(refreshes) == 6
    assert puts[0] == puts[1]
    assert all(gap >= 0.25 for gap in gaps(puts)[1:])
    assert up.rows_stored("id-run") == [1]


def test_refresh_that_fails_does_not_stop_uploads_while_the_credentials_are_good(tmp_path: Path) -> None:
    with delivery(tmp_path / "spool", policy=Policy(upload_interval_s=10.0), lifetime_s=400.0) as up:
        up.api.always["refresh"] = failing(500)
        run = up.begin(rows=1)
        for _ in range(39):
            up.advance(10.0)
            up.add(run, 1)
        puts = up.store.times("put")
        assert len(puts) == 39
        assert all(gap == pytest.approx(10.0) for gap in gaps(puts))
        assert len(up.api.times("refresh")) >= 3
        up.advance(30.0)
        assert up.store.times("put") == puts, "not with credentials that have expired"
        up.api.always.clear()
        up.advance(MAX_DELAY_S + 10.0)
        assert up.rows_stored("id-run") == list(range(1, 41))


def test_restart_asks_for_credentials_before_the_first_put(tmp_path: Path) -> None:
    with delivery(tmp_path / "spool") as up:
        up.begin(rows=2)
        up.settle()
        clock, api, store = up.clock, up.api, up.store
    with delivery(tmp_path / "spool", clock=clock, api=api, store=store) as up:
        up.advance(61.0)
        assert [call.name for call in api.calls] == ["register", "refresh"]
        assert up.rows_stored("id-run") == [1, 2]


def test_run_that_the_server_forgot_is_parked_with_its_data_and_can_be_retried(up: UploaderHarness) -> None:
    up.api.script("finish", final(404))
    run = up.begin(rows=2, last=True)
    up.settle()
    assert run.record.state is RunState.QUARANTINED
    assert "404" in run.record.last_error
    up.advance(7200.0)
    assert len(up.api.times("finish")) == 1
    assert retry_run(up.spool, run) == "done"
    up.scheduler.notify(run)
    up.settle()
    assert state(up, "run") is RunState.FINISHED
    assert len(up.api.times("register")) == 1
    assert up.rows_stored("id-run") == [1, 2]


def test_repetition_of_finish_that_is_refused_parks_with_both_facts(up: UploaderHarness) -> None:
    up.api.script("finish", away(), final(422))
    run = up.begin(rows=1, last=True)
    up.advance(10.0)
    assert run.record.state is RunState.QUARANTINED
    assert "may have been accepted" in run.record.last_error
    assert "422" in run.record.last_error


def test_parked_run_still_takes_rows_and_its_end(up: UploaderHarness) -> None:
    up.api.script("register", final(422))
    run = up.begin(rows=1)
    up.settle()
    assert run.record.state is RunState.QUARANTINED
    up.add(run, 2)
    up.end(run, 0)
    up.settle()
    retry_run(up.spool, run)
    up.scheduler.notify(run)
    up.settle()
    assert up.rows_stored("id-run") == [1, 2, 3]
    assert state(up, "run") is RunState.FINISHED


def test_parked_run_is_cut_into_batches_so_that_memory_does_not_grow_with_its_rows(up: UploaderHarness) -> None:
    up.api.script("register", final(422))
    run = up.begin(rows=1)
    up.settle()
    assert run.record.state is RunState.QUARANTINED
    most = up.policy.max_batch_rows
    for _ in range(3):
        up.add(run, most)
        up.scheduler.notify(run)
        up.settle()
        assert len(run.frame_ids) <= 1
    assert not up.store.objects
    assert run.pending_batches >= 3
    up.end(run, 0)
    up.settle()
    retry_run(up.spool, run)
    up.scheduler.notify(run)
    up.settle()
    assert up.rows_stored("id-run") == list(range(1, 3 * most + 2))
    assert state(up, "run") is RunState.FINISHED


def test_parked_run_whose_rows_are_damaged_is_not_cut_again_and_again(up: UploaderHarness) -> None:
    up.api.script("register", final(422))
    run = up.begin(rows=1)
    up.settle()
    error = run.record.last_error
    with up.spool._database.transaction() as connection:
        connection.execute("UPDATE frames SET payload = x'c1' WHERE run = ?", (run.id,))
    up.add(run, up.policy.max_batch_rows)
    up.scheduler.notify(run)
    # It ends: there is a pause before the next try.
    assert up.settle() > up.clock.monotonic()
    assert up.scheduler._schedules[run.id].attempts == 2
    assert (run.record.state, run.record.last_error) == (RunState.QUARANTINED, error)
    assert run.undelivered_rows == up.policy.max_batch_rows + 1


def test_full_disk_after_register_does_not_register_again(up: UploaderHarness) -> None:
    gate = Gate()
    up.api.script("register", gate)
    up.begin(rows=1, last=True)
    up.settle(gate)
    up.spool._database.connection.execute("PRAGMA query_only = 1")
    gate.open()
    up.advance(20.0)
    assert len(up.api.times("register")) == 1
    up.spool._database.connection.execute("PRAGMA query_only = 0")
    up.advance(MAX_DELAY_S)
    assert len(up.api.times("register")) == 1
    assert state(up, "run") is RunState.FINISHED


def test_batch_that_cannot_be_written_is_not_tried_in_a_tight_loop(up: UploaderHarness) -> None:
    tries: list[float] = []

    def count(statement: str) -> None:
        if statement.startswith("INSERT INTO batches"):
            tries.append(up.clock.monotonic())

    up.begin(rows=1)
    up.settle()
    up.spool._database.connection.execute(
        "CREATE TRIGGER full BEFORE INSERT ON batches BEGIN SELECT raise(FAIL, 'disk I/O error'); END"
    )
    up.spool._database.connection.set_trace_callback(count)
    up.advance(660.0)
    # One statement with a trigger is traced several times.
    assert 3 <= len(set(tries)) <= 30
    up.spool._database.connection.execute("DROP TRIGGER full")
    up.advance(MAX_DELAY_S)
    assert up.rows_stored("id-run") == [1]


def test_finish_whose_answer_could_not_be_written_is_not_said_again(up: UploaderHarness) -> None:
    gate = Gate()
    up.api.script("finish", gate)
    up.begin(rows=1, last=True)
    up.settle(gate)
    up.spool._database.connection.execute("PRAGMA query_only = 1")
    gate.open()
    up.advance(20.0)
    up.spool._database.connection.execute("PRAGMA query_only = 0")
    up.advance(MAX_DELAY_S)
    assert len(up.api.times("finish")) == 1
    assert state(up, "run") is RunState.FINISHED


def test_silent_run_is_closed_as_failed_and_its_rows_are_delivered(watchful: UploaderHarness) -> None:
    watchful.begin(rows=3)
    began = watchful.clock.monotonic()
    watchful.advance(899.0)
    assert watchful.api.times("finish") == []
    watchful.advance(5.0)
    (ending,) = watchful.api.endings
    assert (ending.status, ending.exit_code) == ("failed", None)
    assert watchful.rows_stored("id-run") == [1, 2, 3]
    assert state(watchful, "run") is RunState.STALE_CLOSED
    assert watchful.api.times("finish")[0] >= began + 900.0


def test_uploader_that_was_down_counts_silence_from_its_own_start(tmp_path: Path) -> None:
    with delivery(tmp_path / "spool", policy=STALE) as up:
        up.begin(rows=1)
        up.settle()
        clock, api, store = up.clock, up.api, up.store
    clock.advance(86_400.0)
    with delivery(tmp_path / "spool", policy=STALE, clock=clock, api=api, store=store) as up:
        up.advance(890.0)
        assert api.times("finish") == []
        up.advance(20.0)
        assert len(api.times("finish")) == 1


@pytest.mark.parametrize("first_awake", ["scheduler", "intake"])
def test_suspended_uploader_does_not_close_the_runs_of_collectors_that_are_alive(
    watchful: UploaderHarness, first_awake: str
) -> None:
    run = watchful.begin(rows=1)
    watchful.settle()
    watchful.clock.advance(4000.0)
    if first_awake == "scheduler":
        watchful.scheduler.run_due()
    else:
        watchful.intake.poll_once(0.0)
        watchful.scheduler.run_due()
    watchful.settle()
    watchful.advance(880.0)
    assert not run.record.has_ended
    run.last_seen_at = watchful.clock.monotonic()
    watchful.advance(880.0)
    assert not run.record.has_ended
    watchful.advance(30.0)
    assert state(watchful, "run") is RunState.STALE_CLOSED


def test_run_that_ends_just_as_it_is_closed_keeps_its_own_end(tmp_path: Path) -> None:
    clock = SteppedClock()
    with delivery(tmp_path / "spool", policy=STALE, clock=clock) as up:
        run = up.begin(rows=1)
        up.settle()
        with up.spool._lock:
            clock.advance(901.0)
            up.intake.poll_once(0.0)
            up.intake.receiving_since = 0.0
            up.scheduler.run_due()
            up.spool.append([], [(run, finish(1, 7, "failed"))])
        up.settle()
        assert [ending.exit_code for ending in up.api.endings] == [7]
        assert state(up, "run") is RunState.FINISHED


def test_run_whose_collector_speaks_after_it_was_found_silent_is_not_closed(watchful: UploaderHarness) -> None:
    run = watchful.begin(rows=1)
    watchful.settle()
    with watchful.spool._lock:
        watchful.let_pass(901.0)
        watchful.scheduler.run_due()
        assert watchful.scheduler.steps_in_flight == 1
        watchful.spool.open_run(hello(), owner="")
    watchful.settle()
    assert not run.record.has_ended
    watchful.advance(890.0)
    assert not run.record.has_ended
    watchful.advance(20.0)
    assert state(watchful, "run") is RunState.STALE_CLOSED


@pytest.mark.parametrize("greeting", [{"epoch": "second"}, {"first_available_seq": 9}], ids=str)
def test_collector_that_a_full_disk_keeps_from_continuing_its_run_is_not_silent(
    watchful: UploaderHarness, greeting: dict[str, Any]
) -> None:
    run = watchful.begin(rows=1)
    watchful.advance(800.0)
    watchful.spool._database.connection.execute("PRAGMA query_only = 1")
    with pytest.raises(SpoolError):
        watchful.spool.open_run(hello(**greeting), owner="")
    watchful.spool._database.connection.execute("PRAGMA query_only = 0")
    watchful.advance(890.0)
    assert not run.record.has_ended
    watchful.advance(20.0)
    assert state(watchful, "run") is RunState.STALE_CLOSED


def test_superseded_collector_does_not_keep_its_run_open(watchful: UploaderHarness) -> None:
    run = watchful.begin(rows=1)
    watchful.spool.open_run(hello(epoch="second"), owner="")
    watchful.advance(800.0)
    with pytest.raises(SupersededError):
        watchful.spool.open_run(hello(), owner="")
    watchful.advance(110.0)
    assert run.record.closed_as_stale


def test_flush_delivers_what_is_there_and_not_each_row_that_follows(up: UploaderHarness) -> None:
    run = up.begin(rows=5)
    assert up.scheduler.is_flushed()
    up.scheduler.flush()
    assert not up.scheduler.is_flushed()
    up.settle()
    assert up.scheduler.is_flushed()
    up.add(run, 1)
    up.scheduler.notify(run)
    up.settle()
    assert up.scheduler.is_flushed()
    assert up.scheduler.pending_run_count() == 1
    assert up.rows_stored("id-run") == [1, 2, 3, 4, 5]


def test_retry_all_now_forgets_every_wait(up: UploaderHarness) -> None:
    up.api.always["register"] = away()
    up.begin(rows=1, last=True)
    up.advance(1000.0)
    up.api.always.clear()
    up.scheduler.flush()
    up.scheduler.reset_backoff()
    up.settle()
    assert state(up, "run") is RunState.FINISHED


@pytest.mark.parametrize("call", ["register", "put", "finish"])
def test_retry_all_now_does_not_ask_a_server_sooner_than_it_wants(up: UploaderHarness, call: str) -> None:
    source = up.store if call == "put" else up.api
    source.script(call, failing(429, retry_after_s=120.0))
    if call == "put":
        up.begin(rows=1)
        up.advance(up.policy.upload_interval_s)
    else:
        up.begin(rows=1, last=True)
    up.settle()
    calls = len(source.calls)
    up.scheduler.flush()
    up.scheduler.reset_backoff()
    up.advance(100.0)
    assert [one.name for one in source.calls].count(call) == 1
    assert len(source.calls) == calls
    up.advance(50.0)
    assert [one.name for one in source.calls].count(call) >= 2


def test_late_cloud_reaches_the_registration(up: UploaderHarness) -> None:
    up.begin(cloud_pending=True)
    up.advance(2.0)
    assert up.api.calls == []
    up.begin(cloud={"cloud_vendor_id": "aws"})
    up.settle()
    assert [run.cloud for run in up.api.descriptions] == [{"cloud_vendor_id": "aws"}]


def test_nothing_that_is_over_is_kept_in_memory(up: UploaderHarness) -> None:
    up.store.script("put", failing(500), failing(500), failing(500))
    for number in range(20):
        up.begin(f"run-{number}", rows=1, last=True)
    up.advance(60.0)
    assert up.spool._runs == {}
    scheduler = up.scheduler
    held: list[Sized] = [
        scheduler._queues, scheduler._schedules, scheduler._failures._steps, scheduler._due,
        scheduler.executor._sessions,
    ]  # fmt: skip
    assert [len(what) for what in held] == [0, 0, 0, 0, 0]


@pytest.mark.parametrize("hurry", ["end", "reset_backoff"])
def test_nobodys_hurry_shortens_what_the_server_wished_of_a_run(up: UploaderHarness, hurry: str) -> None:
    gate = Gate()
    up.store.script("put:s3://bucket/runs/id-a/0001.csv.gz", failing(retry_after_s=200.0))
    up.store.script("put:s3://bucket/runs/id-b/0001.csv.gz", gate)
    up.begin("b", rows=1)
    up.advance(1.0)
    run = up.begin("a", rows=1)
    up.advance(58.0)
    # One is under way, and stays so, before the other is refused: it would wait behind that.
    for _ in range(2):
        up.let_pass(1.0)
        up.settle(gate)
    gate.open()
    up.settle()
    assert up.rows_stored("id-b") == [1], "the destination is not failing any more"
    (refused_at,) = up.store.times("put", "id-a")
    if hurry == "end":
        up.end(run)
    else:
        up.scheduler.reset_backoff()
    up.advance(refused_at + 199.0 - up.clock.monotonic())
    assert up.store.times("put", "id-a") == [refused_at]
    up.advance(5.0)
    assert up.rows_stored("id-a") == [1]


def test_success_begins_a_runs_waiting_anew(up: UploaderHarness) -> None:
    run = up.begin(rows=1)
    up.store.script("put", *[failing()] * 7)
    up.advance(900.0)
    assert up.rows_stored("id-run") == [1]
    up.add(run, 1)
    up.store.script("put", failing())
    before = len(up.store.calls)
    up.advance(200.0)
    first, second = up.store.times("put")[before:]
    assert second - first <= 2.0


def test_object_that_was_damaged_in_the_spool_is_shown_to_a_person_and_not_put(up: UploaderHarness) -> None:
    up.store.always["put"] = away()
    up.begin(rows=1)
    up.advance(61.0)
    with up.spool._database.transaction() as connection:
        connection.execute("UPDATE batches SET body = x'00'")
    up.store.always.clear()
    before = len(up.store.calls)
    up.advance(MAX_DELAY_S)
    assert state(up, "run") is RunState.QUARANTINED
    assert len(up.store.calls) == before


@pytest.mark.parametrize("damaged", [b"\xc1", encode(Ping())], ids=["not a message", "another message"])
@pytest.mark.parametrize("inline_limit_bytes", [0, 5 << 20], ids=["objects", "inline"])
def test_rows_that_were_damaged_in_the_spool_are_shown_to_a_person_and_kept(
    tmp_path: Path, damaged: bytes, inline_limit_bytes: int
) -> None:
    with delivery(tmp_path / "spool", inline_limit_bytes=inline_limit_bytes) as up:
        run = up.begin(rows=3)
        up.begin("sound", rows=3, last=True)
        with up.spool._database.transaction() as connection:
            connection.execute("UPDATE frames SET payload = ? WHERE run = ?", (damaged, run.id))
        up.end(run)
        up.settle()
        assert (run.record.state, state(up, "sound")) == (RunState.QUARANTINED, RunState.FINISHED)
        assert "rows 1 to 3 are damaged in the spool" in run.record.last_error
        assert [ending.run_id for ending in up.api.endings] == ["id-sound"]
        assert up.spool._database.query("SELECT payload FROM frames") == [(damaged,)]


def test_object_that_was_damaged_in_the_spool_is_not_delivered_inline(tmp_path: Path) -> None:
    policy = Policy(upload_interval_s=60.0, stale_after_s=1e6, max_batch_rows=2, inline_limit_bytes=5 << 20)
    with delivery(tmp_path / "spool", policy=policy) as up:
        up.api.script("register", away())
        run = up.begin(rows=2)
        up.settle()
        with up.spool._database.transaction() as connection:
            assert connection.execute("UPDATE batches SET body = x'00'").rowcount == 1
        up.end(run)
        up.advance(MAX_DELAY_S)
        assert run.record.state is RunState.QUARANTINED
        assert up.api.endings == []


class WatchedLock:
    """A lock that knows whether the running thread holds it."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self.held = threading.local()

    def __enter__(self) -> None:
        self._lock.acquire()
        self.held.here = True

    def __exit__(self, *raised: object) -> None:
        self.held.here = False
        self._lock.release()

    @property
    def is_held_here(self) -> bool:
        return getattr(self.held, "here", False)


class RefusesUnder:
    """A lock that is not to be taken by a thread that holds the other one."""

    def __init__(self, lock: threading.RLock, other: WatchedLock) -> None:
        self._lock, self._other = lock, other
        self.taken = 0
        self.violations: list[str] = []

    def __enter__(self) -> None:
        self.taken += 1
        if self._other.is_held_here:
            self.violations.append("".join(traceback.format_stack()))
        self._lock.acquire()

    def __exit__(self, *raised: object) -> None:
        self._lock.release()


def test_nothing_is_written_and_no_spool_lock_is_taken_under_the_scheduling_lock(up: UploaderHarness) -> None:
    scheduling = WatchedLock(up.scheduler._lock)
    spool_lock = RefusesUnder(up.spool._lock, scheduling)
    up.scheduler._lock, up.spool._lock, up.spool.control._lock = scheduling, spool_lock, spool_lock  # type: ignore[assignment]
    up.spool._commits._lock = spool_lock  # type: ignore[assignment]
    commits = 0
    under_the_lock: list[str] = []

    def watch(statement: str) -> None:
        nonlocal commits
        if statement.startswith("COMMIT"):
            commits += 1
            if scheduling.is_held_here:
                under_the_lock.append("".join(traceback.format_stack()))

    up.spool._database.connection.set_trace_callback(watch)
    up.api.script("register", away(), failing(503), refused(401))
    up.store.script("put", failing(500), away(), expired(), failing(429, retry_after_s=9.0))
    up.api.script("finish", failing(502), final(422))
    good, quarantined = up.begin("good", rows=3, last=True), up.begin("quarantined", rows=3, last=True)
    broken = up.begin("broken", rows=3)
    up.advance(1200.0)
    up.spool.update(broken, uri_prefix="leads nowhere")
    up.add(broken, 2)
    up.advance(120.0)
    up.scheduler.flush()
    up.scheduler.reset_backoff()
    up.advance(1200.0)
    assert {good.record.state, quarantined.record.state} == {RunState.QUARANTINED, RunState.FINISHED}
    assert "not an address" in broken.record.last_error
    assert commits > 20
    assert spool_lock.taken > commits
    assert (under_the_lock, spool_lock.violations) == ([], [])
    up.spool._database.connection.set_trace_callback(None)
