"""Runs that are over and not delivered are counted for their owner, and for nobody else."""

from pathlib import Path

from fakes.scripted_backend import SteppedClock
from fakes.uploader_harness import finish, hello, open_spool_at

from sentinel_uploader.intake.handshake import UndeliveredRunCounter
from sentinel_uploader.runs.lifecycle import Event


def test_only_what_has_ended_some_time_ago_counts_and_only_for_its_owner(tmp_path: Path) -> None:
    clock = SteppedClock()
    spool = open_spool_at(tmp_path / "spool", clock)
    left_behind = UndeliveredRunCounter(spool, clock)
    ended, open_, parked, other = (
        spool.open_run(hello(key), owner=owner)
        for key, owner in (("ended", "me"), ("open", "me"), ("parked", "me"), ("other", "you"))
    )
    spool.append([], [(ended, finish(0)), (other, finish(0))])
    spool.update(parked, Event.PERMANENT_FAILURE)
    # One that has just ended is on its way.
    assert (left_behind.count("me"), left_behind.count("you"), left_behind.count("")) == (1, 0, 0)
    clock.advance(61)
    assert (left_behind.count("me"), left_behind.count("you"), left_behind.count("")) == (2, 1, 0)
    spool.update(ended, Event.REGISTERED, Event.ENDED, run_id="id", uri_prefix="s3://b/p")
    spool.close_run(ended, Event.ACCEPTED)
    # Counted anew when some time has passed.
    assert left_behind.count("me") == 2
    clock.advance(0.1)
    assert left_behind.count("me") == 1
    assert open_.record.finish is None
    spool.close()
