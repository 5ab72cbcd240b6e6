"""What becomes of the API's answers as time goes by: credentials that expire, an outage of minutes."""

from functools import partial
from itertools import pairwise

from fakes.accelerated_uploader import HastyClock, hasty_uploader
from fakes.backend import Backend
from fakes.process_harness import Home, wait_until
from fakes.raw_collector import Collectors, RawCollector, collectors_of
from fakes.sentinel_api import EXPIRY_FORMATS
from fakes.uploader_harness import finish, hello, row_numbers, samples

from sentinel_protocol.wire.messages import Ack, Finished, Welcome

SHORT_LIFE_S = 6.0
HALF_LIFE_S = 3.0
SPEED = 3.0
OUTAGE_S = 300.0


def greet(collector: RawCollector, key: str = "run") -> None:
    collector.say(hello(key))
    collector.hear_until(Welcome)


def send_row(collector: RawCollector, number: int) -> None:
    collector.say(samples(number, number))
    while collector.hear_until(Ack).seq < number:
        pass


def has_registered(backend: Backend, runs: int) -> bool:
    return len(backend.api.runs) == runs


def end_and_count(backend: Backend, collector: RawCollector, rows: int) -> None:
    collector.say(finish(rows))
    collector.hear_until(Finished)
    delivered = backend.rows(backend.only_run())
    assert row_numbers("\n".join(delivered).encode()) == list(range(1, rows + 1))


def test_credentials_with_6_s_to_live_are_refreshed_each_half_life_and_not_each_tick(
    home: Home, collectors: Collectors
) -> None:
    clock = HastyClock(SPEED)
    collector = collectors.connect()
    with Backend(now=clock.now) as backend:
        backend.api.behaviour.lifetime_s = SHORT_LIFE_S
        backend.api.behaviour.expiry_format = "z-fraction"
        with hasty_uploader(home.directory, home.address, backend.environ, clock, upload_interval_s=0.5):
            greet(collector)
            wait_until(lambda: backend.api.runs, "the run is registered")
            began, rows = clock.monotonic(), 0
            while len(backend.api.requests.of("refresh")) < 4:
                rows += 1
                send_row(collector, rows)
            end_and_count(backend, collector, rows)
            lasted = clock.monotonic() - began

        assert len(backend.s3.objects()) > 5
        refreshes = backend.api.requests.of("refresh")
        # A loaded machine is late with some of them, not with all.
        assert lasted / SHORT_LIFE_S - 1 <= len(refreshes) <= lasted / HALF_LIFE_S + 1
        asked_at = [request.at for request in (*backend.api.requests.of("register"), *refreshes)]
        gaps_s = [(at - before) * SPEED for before, at in pairwise(asked_at)]
        assert HALF_LIFE_S <= min(gaps_s) < HALF_LIFE_S + 1


def test_expiry_under_either_name_with_fractions_and_offsets_is_understood(home: Home, backend: Backend) -> None:
    forms = [(key, form) for key in ("expires_at", "expiration") for form in EXPIRY_FORMATS]
    behaviour = backend.api.behaviour
    behaviour.lifetime_s = 3.0
    home.start_uploader("--upload-interval", "0.2", env=backend.environ)
    with collectors_of(home.address) as collectors:
        made = []
        for number, (behaviour.expiry_key, behaviour.expiry_format) in enumerate(forms, 1):
            made.append(collectors.connect())
            greet(made[-1], f"run-{number}")
            # With this form: the next one is told in another.
            backend.api.requests.wait_until(partial(has_registered, backend, number))
        for issued in backend.keyring.all():
            # Storage goes on taking them: nothing but the expiry that was told leads to a refresh.
            issued.expires_at += 3600.0
        rows = 0
        while {request.run_id for request in backend.api.requests.of("refresh")} != set(backend.api.runs):
            rows += 1
            assert rows < 3000, "not every form of expiry is understood"
            for collector in made:
                send_row(collector, rows)
        for collector in made:
            collector.say(finish(rows))
            collector.hear_until(Finished)

    assert {request.status for request in backend.s3.requests.of("put")} == {200}
    for run in backend.api.runs.values():
        assert row_numbers("\n".join(backend.rows(run)).encode()) == list(range(1, rows + 1))


def test_api_that_is_away_for_five_minutes_is_tried_at_growing_distances(home: Home, collectors: Collectors) -> None:
    clock = HastyClock(100.0)
    collector = collectors.connect()
    with Backend(now=clock.now) as backend:
        away = backend.api.faults.add("register", status=503)
        with hasty_uploader(home.directory, home.address, backend.environ, clock, upload_interval_s=5.0):
            greet(collector)
            wait_until(lambda: away.fired, "the API is away")
            began = clock.monotonic()
            send_row(collector, 1)
            wait_until(lambda: clock.monotonic() - began >= OUTAGE_S, "the outage lasts")
            tries = away.fired
            away.lift()
            # The end of the run shortens the wait.
            end_and_count(backend, collector, 1)

        # At distances like the first (two seconds at most) there were 150 and more. Twenty that double up to their cap,
        # each at random between zero and its ceiling, make less than five minutes once in 10^8 times.
        assert 2 <= tries <= 20
