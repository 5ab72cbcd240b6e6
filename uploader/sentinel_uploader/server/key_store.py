"""The directory of CURVE keys: creates, lists and revokes them.

* `server.key` and `server.key_secret`: the server's pair.
* `clients/NAME.key`: the allow list.
* `clients/NAME.key_secret`: to be copied to the client. It can be deleted then.
* `revoked/NAME.key`: clients that were on the list.

Directories have mode 0700 and files 0600. Files are written atomically.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

import zmq
import zmq.utils.z85

from sentinel_protocol.common.atomic_file import sync_directory, write_atomically
from sentinel_protocol.common.errors import KeyFileError, UsageError
from sentinel_protocol.common.paths import make_private_dir
from sentinel_protocol.wire.curve_keys import KeyPair, format_certificate, read_key_pair, read_public

_PUBLIC = ".key"
_SECRET = ".key_secret"  # noqa: S105 -- how the files are called
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SERVER = "server"


class ClientEntry(NamedTuple):
    """One client; `error` says why its file cannot be used. `changed_at`: added or revoked, UNIX seconds."""

    name: str
    key: bytes
    is_revoked: bool
    changed_at: float
    error: str


class KeyStore:
    """Creates, lists and revokes keys. Its methods raise `UsageError` with the reason when they cannot."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.clients_dir = os.path.join(directory, "clients")
        self._revoked_dir = os.path.join(directory, "revoked")

    @property
    def exists(self) -> bool:
        """Whether there is a server key."""
        return os.path.lexists(self._path(self.directory, _SERVER, _SECRET))

    def init(self) -> bytes:
        """Create the server's pair and return its public key."""
        if self.exists:
            raise UsageError(
                f"{self.directory} has a server key already; with another one every collector would need it anew"
            )
        for path in (self.directory, self.clients_dir, self._revoked_dir):
            make_private_dir(path)
        pair = _new_pair()
        # The secret file is written last: when it exists, everything does.
        _write(self._path(self.directory, _SERVER, _PUBLIC), format_certificate(pair.public), replace=True)
        _write(self._path(self.directory, _SERVER, _SECRET), format_certificate(pair.public, pair.secret))
        return pair.public

    def server_pair(self) -> KeyPair:
        """Return the server's pair; raises `KeyFileError`."""
        if not self.exists:
            raise KeyFileError(f"there is no server key in {self.directory}: sentinel-uploader keys init")
        return read_key_pair(self._path(self.directory, _SERVER, _SECRET))

    def add(self, name: str, *, replace: bool) -> str:
        """Create a client's pair, add it to the allow list, and return the path of its secret file."""
        _check_name(name)
        self.server_pair()
        public = self._path(self.clients_dir, name, _PUBLIC)
        secret = self._path(self.clients_dir, name, _SECRET)
        was_there = os.path.lexists(public)
        if not replace and (was_there or os.path.lexists(self._path(self._revoked_dir, name, _PUBLIC))):
            what = "is on the list" if was_there else "was revoked"
            raise UsageError(
                f"{name} {what}: a new key under this name would own the runs of the old one; say --replace if that is "
                "meant, or take another name"
            )
        make_private_dir(self.clients_dir)
        pair = _new_pair()
        _write(secret, format_certificate(pair.public, pair.secret), replace=True)
        _write(public, format_certificate(pair.public), replace=True)
        return secret

    def revoke(self, name: str) -> None:
        """Remove a client from the allow list."""
        _check_name(name)
        public = self._path(self.clients_dir, name, _PUBLIC)
        make_private_dir(self._revoked_dir)
        revoked = self._path(self._revoked_dir, name, _PUBLIC)
        try:
            os.replace(public, revoked)
            # The modification time is the time of revocation. Back-ups keep it.
            os.utime(revoked)
        except FileNotFoundError:
            raise UsageError(f"there is no client {name!r}; `sentinel-uploader keys list` names all") from None
        except OSError as error:
            raise UsageError(f"cannot revoke {name}: {error.strerror}") from error
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(self.clients_dir, name, _SECRET))
        sync_directory(self.clients_dir)

    def clients(self) -> list[ClientEntry]:
        """Return all clients by name, revoked ones after the others."""
        found = list(_entries(self.clients_dir, is_revoked=False))
        active = {entry.name for entry in found}
        return found + [entry for entry in _entries(self._revoked_dir, is_revoked=True) if entry.name not in active]

    def _path(self, directory: str, name: str, suffix: str) -> str:
        return os.path.join(directory, name + suffix)


def read_client_keys(directory: str) -> Iterator[tuple[str, str, bytes, str]]:
    """Yield each client's name, the path of its public key, the key, and why it cannot be used; raises `OSError`."""
    for file in sorted(os.listdir(directory)):
        name = file.removesuffix(_PUBLIC)
        if name == file or not _NAME.fullmatch(name):
            continue
        path = os.path.join(directory, file)
        key, error = b"", ""
        try:
            key = read_public(path)
        except KeyFileError as cause:
            error = str(cause)
        yield name, path, key, error


def _entries(directory: str, *, is_revoked: bool) -> Iterator[ClientEntry]:
    try:
        for name, path, key, error in read_client_keys(directory):
            with contextlib.suppress(OSError):
                yield ClientEntry(name, key, is_revoked, os.lstat(path).st_mtime, error)
    except FileNotFoundError:
        return
    except OSError as cause:
        raise UsageError(f"cannot list {directory}: {cause.strerror}") from cause


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(f"client name {name!r}: must be 1 to 64 letters, digits, '.', '_' or '-', not '.' first")


def _new_pair() -> KeyPair:
    public, secret = zmq.curve_keypair()
    return KeyPair(zmq.utils.z85.decode(public), zmq.utils.z85.decode(secret))


def _write(path: str, content: str, *, replace: bool = False) -> None:
    try:
        write_atomically(path, content.encode("ascii"), replace=replace)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
