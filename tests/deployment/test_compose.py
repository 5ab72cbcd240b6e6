"""`docker-compose.yml` on a real engine: everything is killed, stopped and brought up again, then rows are counted.

Run by `make test-docker`, which brings engine and image; not part of `make test`.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import pytest
from fakes.process_harness import timestamps, wait_until

from deployment.backend import API_PORT, S3_PORT
from deployment.stack import PATIENCE_S, Seen, Stack, docker

pytestmark = [pytest.mark.docker, pytest.mark.timeout(5400)]
COLLECTORS = 3
TOKEN = "planted-token-7f1e"
ENV_FILE = f"""\
SENTINEL_API_TOKEN={TOKEN}
SENTINEL_API_URL=http://127.0.0.1:{API_PORT}
AWS_ENDPOINT_URL_S3=http://127.0.0.1:{S3_PORT}
"""
MEMORY_S = 2.0
"""So young a row may be in a collector's memory alone, and go with it when that is killed."""
SLACK_S = 1.0
"""Between the kill and what is written down about its time."""
SPILLED_BYTES = 4096
"""More than the head of a collector's file: rows are in it."""


@pytest.fixture
def stack(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stack]:
    env_file = tmp_path / ".env"
    env_file.write_text(getattr(request, "param", ""))
    gateway = docker("network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}", "bridge").decode().strip()
    made = Stack(
        f"sentinel-test-{os.getpid()}",
        {
            "SENTINEL_INTERVAL": "0.1",
            "TRACKER_UPLOAD_INTERVAL": "1",
            # Nobody beyond this machine's bridge is to find it.
            "PUBLISH_ADDRESS": gateway,
            "PUBLISH_PORT": str(20_000 + os.getpid() % 10_000),
        },
        env_file,
    )
    try:
        yield made
    finally:
        made.close()


def wait_for_rows(stack: Stack, *, runs: int, more: int = 20) -> dict[str, str]:
    """Wait until so many runs go on and have grown by `more` delivered rows; return their ids by key."""

    def delivered() -> dict[str, int]:
        return {run["key"]: run["rows_delivered"] for run in stack.status() if run["state"] == "registered"}

    before = delivered()
    wait_until(
        lambda: len(now := delivered()) == runs and all(rows >= before.get(key, 0) + more for key, rows in now.items()),
        f"{runs} runs go on",
        timeout_s=PATIENCE_S,
    )
    return {run["key"]: run["run_id"] for run in stack.status() if run["state"] == "registered"}


def all_ended(stack: Stack, keys: Mapping[str, str]) -> bool:
    return all(run["state"] == "finished" for run in stack.status() if run["key"] in keys)


def verdict(seen: Seen, kills: Mapping[str, Sequence[float]]) -> dict[str, int]:
    """Compare what each collector wrote down with what was delivered under its name; return the figures."""
    recorded = seen.recorded
    runs = seen.runs
    assert {run["status"] for run in runs} == {"finished"}
    delivered = {run["run_id"]: seen.rows(run) for run in runs}
    doubled = [row for row, count in Counter(chain.from_iterable(delivered.values())).items() if count > 1]
    assert not doubled
    lost = 0
    for container, rows in recorded.items():
        arrived = list(
            chain.from_iterable(
                delivered[run["run_id"]] for run in runs if run["metadata"]["tags"]["container"] == container
            )
        )
        known = set(arrived)
        assert arrived == [row for row in rows if row in known], f"{container}: rows unknown or out of order"
        missing = [row for row in rows if row not in known]
        for row, stamp in zip(missing, timestamps(missing), strict=True):
            excused = any(kill - MEMORY_S - SLACK_S <= stamp <= kill + SLACK_S for kill in kills.get(container, ()))
            assert excused, f"{container}: lost {row}"
        lost += len(missing)
    return {
        "collectors": len(recorded),
        "runs": len(runs),
        "rows recorded": sum(map(len, recorded.values())),
        "rows delivered": sum(map(len, delivered.values())),
        "rows in the memory of a killed collector": lost,
    }


def test_killed_and_stopped_and_brought_up_again_loses_nothing(stack: Stack) -> None:
    kills: dict[str, list[float]] = {}
    stack.up(collectors=COLLECTORS)
    first = wait_for_rows(stack, runs=COLLECTORS + 1)

    victims = [*stack.containers("collector"), *stack.containers("remote-collector")]
    assert len(victims) == COLLECTORS + 1
    for container in victims:
        name = stack.inspect(container, "{{.Config.Hostname}}")
        kills.setdefault(name, []).append(stack.kill(container))
    # They are back, and so are their runs: no others were begun.
    assert wait_for_rows(stack, runs=COLLECTORS + 1) == first
    (uploader,) = stack.containers("uploader")
    stack.kill(uploader)
    assert wait_for_rows(stack, runs=COLLECTORS + 1) == first

    # Rows that no uploader takes, and then no collector is there either.
    stack.compose("stop", "uploader")
    wait_until(
        lambda: [size > SPILLED_BYTES for size in stack.seen().waiting_bytes.values()] == [True] * (COLLECTORS + 1),
        "every collector keeps rows on disk",
        timeout_s=PATIENCE_S,
    )
    stack.down()
    in_flight = stack.seen().waiting_bytes
    assert len(in_flight) == COLLECTORS + 1
    assert min(in_flight.values()) > SPILLED_BYTES
    stack.up(collectors=COLLECTORS)
    wait_until(lambda: all_ended(stack, first), "what was in flight is delivered", timeout_s=PATIENCE_S)

    second = wait_for_rows(stack, runs=COLLECTORS + 1)
    assert not second.keys() & first.keys()
    (uploader,) = stack.containers("uploader")
    stack.kill(uploader)
    stack.down()
    stack.up(collectors=COLLECTORS)
    wait_until(lambda: all_ended(stack, second), "the second runs are delivered", timeout_s=PATIENCE_S)
    wait_for_rows(stack, runs=COLLECTORS + 1)
    stack.down()

    seen = stack.seen()
    assert not seen.waiting_bytes
    figures = verdict(seen, kills)
    assert figures["collectors"] == 3 * (COLLECTORS + 1)
    print(", ".join(f"{name}: {value}" for name, value in figures.items()))


@pytest.mark.parametrize("stack", [ENV_FILE], ids=["token"], indirect=True)
def test_with_a_token_in_the_env_file_it_streams(stack: Stack) -> None:
    stack.up(collectors=1)
    stack.start_backend(TOKEN)
    wait_for_rows(stack, runs=2)
    logs = stack.compose("logs")
    collectors = [*stack.containers("collector"), *stack.containers("remote-collector")]
    environments = [stack.inspect(container, "{{.Config.Env}}") for container in collectors]
    stack.down()

    found = stack.stop_backend()
    seen = stack.seen()
    assert found["runs"] == 2
    assert found["rows"] == seen.recorded
    assert seen.runs == []
    assert TOKEN not in logs
    assert len(environments) == 2
    assert not any(TOKEN in environment for environment in environments)
