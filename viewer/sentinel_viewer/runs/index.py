"""All runs of a place, from a cache of their descriptions: ten thousand files are not read again for each listing.

The cache is only that. It may be deleted at any time, and an entry counts while the description's version is the same.
"""

import contextlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import msgspec

from sentinel_protocol.common.hashing import sha256
from sentinel_protocol.common.paths import APPLICATION, make_private_dir
from sentinel_viewer.errors import ReadError
from sentinel_viewer.runs.places import RunPlace
from sentinel_viewer.runs.run import Run, run_of

_FORMAT = 1  # to be raised when `Run` changes its meaning; another one is ignored
_WORTH_WRITING = 32  # so many new descriptions; fewer are read again sooner than a large index is written


class _Entry(msgspec.Struct, array_like=True):
    version: str
    run: Run


class _Index(msgspec.Struct):
    format: int
    place: str
    entries: dict[str, _Entry] = {}


def list_runs(place: RunPlace, environ: Mapping[str, str]) -> list[Run]:
    """Return the place's runs, the newest last; runs without a known start come first, by name."""
    versions = place.versions()
    path = _index_path(place, environ)
    known = _read(path, place)
    entries: dict[str, _Entry] = {}
    new = []
    for name, version in versions.items():
        entry = known.get(name)
        if entry is not None and entry.version == version:
            entries[name] = entry
        else:
            new.append(name)
    for name, run in zip(new, _described(place, new), strict=True):
        entries[name] = _Entry(versions[name], run)
    gone = len(known) - (len(entries) - len(new))
    if len(new) >= _WORTH_WRITING or gone > _WORTH_WRITING:
        _write(path, _Index(_FORMAT, place.uri, entries))
    return sorted((entry.run for entry in entries.values()), key=lambda run: (run.started_at or 0.0, run.name))


def read_run(place: RunPlace, name: str) -> Run:
    """Return one run as its description tells of it now."""
    content = place.read_description(name)
    try:
        description = None if content is None else msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        description = None
    return run_of(name, description)


def cache_home(environ: Mapping[str, str]) -> str:
    """`$XDG_CACHE_HOME/sentinel-stream`: everything in it can be made again."""
    base = environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".cache")
    return os.path.join(base, APPLICATION)


def _described(place: RunPlace, names: list[str]) -> Iterable[Run]:
    def read(name: str) -> Run:
        try:
            return read_run(place, name)
        except ReadError:
            # One run that is unreadable, or was deleted just now, must not hide the others.
            return run_of(name, None)

    if place.parallel == 1 or len(names) < 2:
        return map(read, names)
    with ThreadPoolExecutor(place.parallel) as pool:
        return list(pool.map(read, names))


def _index_path(place: RunPlace, environ: Mapping[str, str]) -> str:
    digest = sha256(place.uri.encode("utf-8", "surrogateescape")).hex()[:16]
    return os.path.join(cache_home(environ), "index", f"{digest}.msgpack")


def _read(path: str, place: RunPlace) -> dict[str, _Entry]:
    try:
        with open(path, "rb") as file:
            index = msgspec.msgpack.decode(file.read(), type=_Index)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return {}
    return index.entries if index.format == _FORMAT and index.place == place.uri else {}


def _write(path: str, index: _Index) -> None:
    # A full disk or a home that is read-only costs time at the next listing, nothing else.
    temporary = f"{path}.{os.getpid()}"
    with contextlib.suppress(Exception):
        make_private_dir(os.path.dirname(path))
        try:
            with open(temporary, "wb") as file:
                file.write(msgspec.msgpack.encode(index))
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
