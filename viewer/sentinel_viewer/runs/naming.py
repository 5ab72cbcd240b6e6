"""What people call a run: its id, a unique part of that, its job's name, `latest~2`, a path, an object's URI."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import unquote

import msgspec

from sentinel_protocol.common.local_uploader import default_target
from sentinel_protocol.common.paths import data_home
from sentinel_viewer.errors import ReadError, RunNotFoundError
from sentinel_viewer.runs.directory import DirectoryPlace, is_run_directory
from sentinel_viewer.runs.index import list_runs, read_run
from sentinel_viewer.runs.places import RunPlace, in_order, is_object_name
from sentinel_viewer.runs.run import Run, run_of
from sentinel_viewer.runs.s3 import SCHEME, S3Place

RUNS_VARIABLE = "SENTINEL_RUNS"
_LATEST = "latest"
_BACK = re.compile(r"(?P<name>.*)~(?P<steps>[0-9]{1,6})", re.DOTALL)
_SHOWN = 5


class FoundRun(NamedTuple):
    """A run and where it is."""

    place: RunPlace
    run: Run

    @property
    def location(self) -> str:
        """The run's path or URI."""
        return self.place.locate(self.run.name)


class Library:
    """The runs of one place, listed once when first needed, and runs that are named by path or URI."""

    def __init__(self, where: str | None, environ: Mapping[str, str]) -> None:
        """`where` is a directory or `s3://BUCKET/PREFIX`, by default `$SENTINEL_RUNS` or this user's own runs."""
        self.place = open_place(where or environ.get(RUNS_VARIABLE) or own_runs(environ))
        self.environ = environ
        self._runs: list[Run] | None = None

    def runs(self) -> list[Run]:
        """Return all runs, the newest last."""
        if self._runs is None:
            self._runs = list_runs(self.place, self.environ)
        return self._runs

    def same_job(self, found: FoundRun, limit: int) -> list[Run]:
        """Return up to `limit` other ended runs of the same job in the same place, the newest last.

        A run from elsewhere has none here: what is called alike on another machine is another job.
        """
        run = found.run
        if not run.job or found.place.uri != self.place.uri:
            return []
        others = [
            other
            for other in self.runs()
            if other.job == run.job and other.run_id != run.run_id and other.is_described and not other.is_running
        ]
        return others[-limit:]

    def find(self, words: Sequence[str]) -> list[FoundRun]:
        """Return the runs that the words name; objects of one directory are one run of exactly these.

        Raises `RunNotFoundError` for a word that names no run, or several.
        """
        found: list[FoundRun] = []
        objects: dict[str, int] = {}
        for word in words:
            directory, _, name = _path_of(word).rpartition("/")
            if name.endswith((".csv.gz", ".csv")) and (word.startswith(SCHEME) or os.path.isfile(_path_of(word))):
                # Of several objects the first one makes the run, the others go into it.
                key = os.path.abspath(directory or ".") if not word.startswith(SCHEME) else directory
                if is_object_name(name) and key in objects:
                    run = found[objects[key]].run
                    names = in_order(dict.fromkeys([*(run.objects or ()), name], 0))
                    found[objects[key]] = FoundRun(
                        found[objects[key]].place, msgspec.structs.replace(run, objects=list(names))
                    )
                    continue
                if is_object_name(name):
                    objects[key] = len(found)
                found.append(_run_of_object(key, name))
            else:
                found.append(self._find(word))
        return found

    def _find(self, word: str) -> FoundRun:
        if word.startswith(SCHEME):
            return _run_at_uri(word)
        path = _path_of(word)
        if path and is_run_directory(path):
            place, name = _parent(path)
            return FoundRun(place, read_run(place, name))
        if "/" in word:
            text = "is a directory of runs, not a run: name it with --runs" if os.path.isdir(path) else "is not a run"
            raise RunNotFoundError(f"{path} {text}")
        return FoundRun(self.place, self._by_name(word))

    def _by_name(self, word: str) -> Run:
        runs = self.runs()
        if not runs:
            raise RunNotFoundError(f"there are no runs in {self.place.uri}; --runs names another directory or s3://…")
        match = _BACK.fullmatch(word)
        name, steps = (match["name"], int(match["steps"])) if match else (word, 0)
        candidates = runs if name == _LATEST else [run for run in runs if name and run.job == name]
        if candidates and steps < len(candidates):
            exact = [run for run in runs if word in (run.run_id, run.name)]
            return exact[0] if exact else candidates[-1 - steps]
        if candidates:
            raise RunNotFoundError(f"{word!r}: there are only {len(candidates)} such runs in {self.place.uri}")
        return self._by_id(word, runs)

    def _by_id(self, word: str, runs: Sequence[Run]) -> Run:
        exact = [run for run in runs if word in (run.run_id, run.name)]
        found = exact or [run for run in runs if word and word in run.run_id]
        if len(found) == 1:
            return found[0]
        if not found:
            raise RunNotFoundError(
                f"there is no run {word!r} in {self.place.uri}; `sentinel-stream ls` lists what is there"
            )
        shown = ", ".join(run.run_id for run in found[-_SHOWN:])
        raise RunNotFoundError(f"{word!r} is part of {len(found)} run ids ({shown}{', …' * (len(found) > _SHOWN)})")


def own_runs(environ: Mapping[str, str]) -> str:
    """Return where this user's runs are delivered: the target when it is a directory, else the data directory."""
    target = default_target(environ)
    is_directory = ":" not in target.partition("/")[0]
    return target if is_directory else os.path.join(data_home(environ), "runs")


def open_place(where: str) -> RunPlace:
    """Return the place at a path or an `s3://` URI."""
    return S3Place(where) if where.startswith(SCHEME) else DirectoryPlace(_path_of(where))


def _path_of(word: str) -> str:
    if word.startswith("file://"):
        return unquote(word.removeprefix("file://"))
    return os.path.expanduser(word)


def _parent(path: str) -> tuple[DirectoryPlace, str]:
    """Split a run's directory into its place and its name there."""
    directory, name = os.path.split(os.path.realpath(path))
    return DirectoryPlace(directory), name


def _run_at_uri(uri: str) -> FoundRun:
    parent, _, name = uri.rstrip("/").rpartition("/")
    if parent == SCHEME.rstrip("/"):
        parent, name = uri.rstrip("/"), ""
    place = S3Place(uri.rstrip("/"))
    versions = place.versions()
    if "" not in versions:
        text = "holds several runs: name it with --runs" if versions else "holds no run"
        raise RunNotFoundError(f"{uri} {text}")
    run = read_run(place, "")
    return FoundRun(place, run if run.is_described else msgspec.structs.replace(run, run_id=name or parent))


def _run_of_object(directory: str, name: str) -> FoundRun:
    """Return the run of one file with rows; a CSV file that a collector wrote (`--output`) is one as well."""
    place: RunPlace
    if directory.startswith(SCHEME):
        place, base, run_id = S3Place(directory), "", directory.rpartition("/")[2]
    else:
        place, base = _parent(directory)
        run_id = base
    try:
        run = read_run(place, base) if is_object_name(name) else run_of(base, None)
    except ReadError:
        run = run_of(base, None)
    if not is_object_name(name):
        run_id = name.partition(".csv")[0]
    if not run.is_described:
        run = msgspec.structs.replace(run, run_id=run_id)
    return FoundRun(place, msgspec.structs.replace(run, objects=[name]))
