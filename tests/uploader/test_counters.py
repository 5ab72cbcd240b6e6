"""What is counted: sums by label, histograms, and clients, none of which grows without bounds."""

import threading

import pytest

from sentinel_uploader.telemetry.counters import (
    MAX_CLIENTS,
    MAX_SERIES,
    OTHER,
    UNNAMED,
    ClientActivity,
    Counter,
    Counters,
    Histogram,
)

T0 = 1_700_000_000.0


def test_counts_of_several_threads_add_up() -> None:
    count = Counter("n", "text", "kind")

    def add() -> None:
        for _ in range(1000):
            count.add(2, "a")

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count.all() == {("a",): 8000}
    assert (count.value("a"), count.value("b")) == (8000, 0)


def test_label_values_beyond_the_limit_are_one() -> None:
    count = Counter("n", "text", "kind", "code")
    for number in range(MAX_SERIES + 50):
        count.add(1, "put", str(number))
    count.add(1, "put", "0")
    assert len(count.all()) == MAX_SERIES + 1
    assert count.value(OTHER, OTHER) == 50
    assert count.value("put", "0") == 2


def test_number_without_labels_is_there_from_the_start() -> None:
    assert Counter("n", "text").all() == {(): 0}


def test_buckets_are_cumulative_and_bounds_belong_to_them() -> None:
    times = Histogram("n", "text", (0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 3.0):
        times.add(seconds)
    counts, total_s = times.all()
    assert counts == [2, 3, 4]
    assert total_s == pytest.approx(3.65)


def test_clock_offset_is_that_of_the_freshest_row_and_follows_the_clock() -> None:
    clients = ClientActivity()
    clients.record("alice", T0)
    assert clients.all() == [("alice", T0, None)]
    clients.record("alice", T0, T0 - 3600)
    clients.record("alice", T0 + 1, T0 + 5)
    clients.record("alice", T0 + 2, T0 - 1800)
    assert clients.all() == [("alice", T0 + 2, 4.0)]
    for second in range(3, 200):
        clients.record("alice", T0 + second, T0 + second - 10)
    assert clients.all() == [("alice", T0 + 199, -10.0)]
    # Our own clock is set back by an hour: what was seen before says nothing any more.
    for second in range(200, 300):
        clients.record("alice", T0 + second - 3600, T0 + second - 10)
    assert clients.all() == [("alice", T0 - 3301, 3590.0)]


def test_clients_heard_longest_ago_make_room() -> None:
    clients = ClientActivity()
    clients.record("", T0)
    for number in range(MAX_CLIENTS):
        clients.record(f"client-{number}", T0 + number)
        clients.record("", T0 + number)
    names = [client.name for client in clients.all()]
    assert len(names) == MAX_CLIENTS
    assert UNNAMED in names
    assert "client-0" not in names


def test_names_are_unique_and_described() -> None:
    counters = Counters()
    described: list[Counter | Histogram] = [*counters.counters(), *counters.histograms()]
    names = [value.name for value in described]
    assert len(names) == len(set(names)) >= 16
    assert all(value.help for value in described)
