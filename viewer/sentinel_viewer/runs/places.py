"""Places that hold runs, each run in a directory of its own: `run.json` and `0001.csv.gz`, `0002.csv.gz`, …"""

import re
from typing import Protocol

DESCRIPTION = "run.json"
_OBJECT = re.compile(r"[0-9]{4,}\.csv\.gz")


class RunPlace(Protocol):
    """A directory or a prefix in a bucket. Every call may block, and raises `ReadError` where it cannot be done."""

    uri: str
    """As a person would write it; unique to the place."""
    parallel: int
    """How many reads at a time are worth it."""

    def versions(self) -> dict[str, str]:
        """Return the runs here by name; the value changes with the run's description and is empty without one."""

    def read_description(self, name: str) -> bytes | None:
        """Return a run's `run.json`, `None` where there is none."""

    def list_objects(self, name: str) -> dict[str, int]:
        """Return the names of a run's objects in their order, and the size of each in bytes."""

    def read_object(self, name: str, object_name: str) -> bytes:
        """Return one object's bytes."""

    def locate(self, name: str) -> str:
        """Return the run's path or URI."""

    def delete_run(self, name: str) -> None:
        """Delete the run's description and objects, and its directory when nothing else is in it."""


def is_object_name(name: str) -> bool:
    """Whether a file's name is that of an object with rows."""
    return _OBJECT.fullmatch(name) is not None


def in_order(objects: dict[str, int]) -> dict[str, int]:
    """Sort objects by their number: `10000.csv.gz` follows `9999.csv.gz`."""
    return dict(sorted(objects.items(), key=lambda item: int(item[0].partition(".")[0])))
