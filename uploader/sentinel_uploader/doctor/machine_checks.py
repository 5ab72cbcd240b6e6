"""Checks of the machine: spool, disk, descriptors, key files. They leave nothing changed."""

import os
import resource
import stat
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from sentinel_protocol.common.errors import KeyFileError, UsageError
from sentinel_uploader.admin.status_reader import NoSpoolError, read_status
from sentinel_uploader.backends.local import DirectoryStore, uri_of_path
from sentinel_uploader.doctor.findings import Finding, failed, ok, pluralize, skipped, warning
from sentinel_uploader.runs.lifecycle import RunState
from sentinel_uploader.server.key_store import KeyStore
from sentinel_uploader.spool.database import database_path
from sentinel_uploader.spool.lock import lock_owner_pid
from sentinel_uploader.telemetry.health import MIN_FREE_BYTES, free_bytes
from sentinel_uploader.util.writable import write_error

MIN_RECOMMENDED_FDS = 1024
_AT_THE_API = frozenset({RunState.REGISTERED, RunState.FINISHING})
_NEARLY_ALL = 0.9
_MIB = 1 << 20
_GIVE = "give it to the user who runs this"
_SECRET_SUFFIX = "_secret"  # noqa: S105 -- how such files are named


class ProbedRun(NamedTuple):
    """A registered run that has not ended, and the URI prefix of its objects."""

    run_id: str
    uri_prefix: str


def check_spool(directory: str) -> Iterator[Finding]:
    """Check the spool's directory and file, and what its runs wait for."""
    if not os.path.isdir(directory):
        yield _will_be_created("spool", directory)
        return
    if (fault := write_error(directory)) is not None:
        yield failed("spool", f"{directory} cannot be written: {fault}", _GIVE)
        return
    if stat.S_IMODE(os.stat(directory).st_mode) & 0o077:
        yield warning("spool", f"other users can read {directory}, which holds samples", f"chmod 700 {directory}")
    if not os.path.isfile(database_path(directory)):
        yield ok("spool", f"{directory}, empty so far")
        return
    try:
        status = read_status(directory)
    except NoSpoolError as error:
        yield ok("spool", str(error))
        return
    except UsageError as error:
        yield failed("spool", str(error), "upgrade, or let `serve` set it aside; nothing in it is deleted")
        return
    pid = status["uploader_pid"]
    waiting = sum(run["rows_waiting"] for run in status["runs"])
    owner = "no uploader runs" if pid is None else f"uploader {pid} runs"
    yield ok(
        "spool", f"{directory}: {pluralize(len(status['runs']), 'run')}, {pluralize(waiting, 'row')} waiting, {owner}"
    )
    yield from _delivery_findings(status)


def open_run(directory: str, schemes: Collection[str]) -> ProbedRun | None:
    """Return the newest open run in the spool that has an id, and an address with one of the schemes."""
    try:
        runs = read_status(directory)["runs"]
    except UsageError:
        # `check_spool` reports it.
        return None
    kept = [run for run in runs if run["state"] in _AT_THE_API and run["location"].partition("://")[0] in schemes]
    newest = max(kept, key=lambda run: float(run["created_at"]), default=None)
    return None if newest is None else ProbedRun(newest["run_id"], newest["location"])


def check_disk(directory: str, spool_max_bytes: int) -> Finding:
    """Check the free space on the spool's disk."""
    place = _nearest(directory)
    try:
        free = free_bytes(place)
        used = os.path.getsize(database_path(directory)) if os.path.isfile(database_path(directory)) else 0
    except OSError as error:
        return failed("disk", f"{place} cannot be checked: {error.strerror}", "choose another --spool")
    if free < MIN_FREE_BYTES:
        return failed("disk", f"the disk of {place} is full", "free some space, or choose another --spool")
    text = f"{free // _MIB} MiB free for the spool"
    if free < spool_max_bytes - used:
        text += f", which may grow to {spool_max_bytes // _MIB} MiB"
        return warning("disk", text, "free some space, or lower --spool-max")
    return ok("disk", text)


def check_descriptors(directory: str) -> Finding:
    """Check the descriptor limit: of the running uploader, or else of a new one."""
    pid = lock_owner_pid(directory) if os.path.isdir(directory) else None
    remedy = "raise `ulimit -n`, or LimitNOFILE of the service"
    if pid:
        try:
            used, limit = len(os.listdir(f"/proc/{pid}/fd")), _open_files_limit(pid)
        except OSError as error:
            return skipped("descriptors", f"those of uploader {pid} cannot be read: {error.strerror}")
        text = f"uploader {pid} uses {used} of {limit}"
        if used > _NEARLY_ALL * limit:
            return failed("descriptors", text, remedy)
    else:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        text = f"{limit} at most"
    if limit < MIN_RECOMMENDED_FDS:
        return warning("descriptors", f"{text}, one for each collector", remedy)
    return ok("descriptors", text)


def check_keys(store: KeyStore, *, named: bool) -> Iterator[Finding]:
    """Check the keys, and the modes of their files. `named`: a directory of keys was configured."""
    if not store.exists:
        text = f"there is no server key in {store.directory}"
        if named:
            yield failed("keys", text, "sentinel-uploader keys init")
        else:
            yield skipped("keys", f"{text}: collectors of this machine only")
        return
    faults = list(_key_errors(store))
    yield from (failed("keys", text, remedy) for text, remedy in faults)
    if not faults:
        clients = sum(not entry.is_revoked for entry in store.clients())
        text = f"{store.directory}: a server key and {pluralize(clients, 'client')}"
        if clients:
            yield ok("keys", text)
        else:
            yield warning("keys", f"{text}: no client can connect", "sentinel-uploader keys add NAME")


def check_directory_target(directory: str) -> Finding:
    """Check the directory that runs are delivered to."""
    if not os.path.isdir(directory):
        return _will_be_created("target", directory)
    for probe in DirectoryStore().probe(uri_of_path(directory), None):
        if probe.error is not None:
            return failed("target", f"{directory} cannot be written: {probe.error}", probe.remedy)
    return ok("target", f"runs are delivered to {directory}")


def _delivery_findings(status: dict[str, Any]) -> Iterator[Finding]:
    for entry in status["destinations"]:
        text = (
            f"{entry['name']} has failed {pluralize(entry['attempts'], 'time')}, the last time with: {entry['error']}"
        )
        yield warning("deliveries", text)
    parked = [run["run_id"] or run["key"] for run in status["runs"] if run["state"] == RunState.QUARANTINED]
    if parked:
        remedy = "see `sentinel-uploader status`, then retry or discard"
        yield warning("runs", f"{len(parked)} parked, {parked[0]} is one", remedy)


def _will_be_created(subject: str, directory: str) -> Finding:
    place = _nearest(directory)
    fault = write_error(place)
    if fault is not None:
        return failed(subject, f"{directory} cannot be created in {place}: {fault}", f"create it, and {_GIVE}")
    return ok(subject, f"{directory} will be created")


def _nearest(path: str) -> str:
    """Return the path itself, or its nearest parent that exists."""
    path = os.path.abspath(path)
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path


def _key_errors(store: KeyStore) -> Iterator[tuple[str, str]]:
    """Yield pairs: an error about keys, and what to do."""
    for directory in (store.directory, store.clients_dir):
        if os.path.isdir(directory) and stat.S_IMODE(os.stat(directory).st_mode) & 0o022:
            yield f"other users can add keys to {directory}", f"chmod 700 {directory}"
    try:
        store.server_pair()
    except KeyFileError as error:
        yield str(error), "fix it, and create new keys if somebody may have read a secret one"
    for entry in store.clients():
        if entry.error and not entry.is_revoked:
            yield entry.error, "fix it: this client cannot connect"
    for name in sorted(os.listdir(store.clients_dir)) if os.path.isdir(store.clients_dir) else ():
        path = os.path.join(store.clients_dir, name)
        if name.endswith(_SECRET_SUFFIX) and stat.S_IMODE(os.stat(path).st_mode) & 0o077:
            yield (
                f"other users can read {path}",
                "delete it if its client has a copy, and create a new key for this client",
            )


def _open_files_limit(pid: int) -> int:
    """Return the soft limit of `Max open files` (proc(5), `/proc/pid/limits`)."""
    with open(f"/proc/{pid}/limits", encoding="ascii") as file:
        (line,) = [line for line in file if line.startswith("Max open files")]
    return int(line.split()[3])
