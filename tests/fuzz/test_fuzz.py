"""A short fuzz: what was found before, and a few plays that nobody has written (`make fuzz` goes on from there)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from locations import TESTS

from fuzz.play import CLIENTS, play
from fuzz.site import Site

CORPUS = TESTS / "fuzz" / "corpus"
OUTCOMES = {
    "Welcome", "Ack", "Finished", "hello-first", "superseded", "closed", "not-allowed", "unknown-version",
    "finished", "failed", "discarded",
}  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("spool"), CLIENTS)
    yield made
    made.close()


def test_the_corpus_passes_and_reaches_every_outcome(site: Site) -> None:
    outcomes: set[str] = set()
    for file in sorted(CORPUS.iterdir()):
        outcomes |= play(site, file.read_bytes())[1]
    assert outcomes >= OUTCOMES
    assert site.counters.rejected.value("bad")
    assert site.counters.rejected.value("gap")
    assert site.counters.rejected.value("key")


@settings(
    max_examples=50,
    deadline=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.binary(max_size=512))
def test_nothing_that_strangers_say_disturbs_the_honest_client(site: Site, data: bytes) -> None:
    play(site, data)


def test_a_stranger_with_the_honest_clients_name_is_noticed(tmp_path: Path) -> None:
    """The play can fail: were keys not looked at, the honest client's run would be taken over."""
    site = Site(tmp_path, dict.fromkeys(CLIENTS, "honest"))
    take_over = bytes([1, 0b0100, 0, 0])
    try:
        with pytest.raises(AssertionError):
            play(site, take_over + bytes([7, 0]) * 16)
    finally:
        site.close()
