"""The allow list of a running uploader: client names by key, at most `REFRESH_S` behind the directory.

A key file that cannot be read excludes its own client only. A directory that cannot be read excludes all clients.
"""

import errno
import logging
import os
import threading

from sentinel_protocol.common.clock import Clock
from sentinel_uploader.server.key_store import KeyStore, read_client_keys

log = logging.getLogger(__name__)

REFRESH_S = 0.25
_MISS_REFRESH_S = 0.05
_MTIME_GRANULARITY_S = 2.0
"""A directory that changed so shortly ago may change again without a new mtime (git: "racily clean")."""
_FULL_RESCAN_S = 10.0
"""All files are read again after this time: a file that is overwritten in place does not change its directory."""


class AllowList:
    """Which clients may connect. Thread-safe."""

    def __init__(self, store: KeyStore, *, clock: Clock) -> None:
        """Read the server's pair and the list; raises `KeyFileError` when the pair cannot be used."""
        self.pair = store.server_pair()
        self._directory = store.clients_dir
        self._clock = clock
        self._lock = threading.Lock()
        self._names: dict[bytes, str] = {}
        self._revision = 0
        self._seen: tuple[int, int] | None = None
        self._read_at = 0.0
        self._checked_at: float | None = None
        self._logged_errors: dict[str, str] = {}
        self._refresh(0.0)

    def is_allowed(self, key: bytes) -> bool:
        """Whether a client with this public key may connect and stay connected."""
        return self.name_of(key) is not None

    def name_of(self, key: bytes) -> str | None:
        """Return the name of the client with this public key; `None` when it is not on the list (any more)."""
        self._refresh(REFRESH_S)
        name = self._names.get(key)
        if name is None:
            # It may have just been added.
            self._refresh(_MISS_REFRESH_S)
            name = self._names.get(key)
        return name

    def revision(self) -> int:
        """Return a number that changes with the list."""
        self._refresh(REFRESH_S)
        return self._revision

    def __len__(self) -> int:
        return len(self._names)

    def names(self) -> list[str]:
        """Return all names on the list."""
        return sorted(self._names.values())

    def _refresh(self, least_age_s: float) -> None:
        now = self._clock.monotonic()
        with self._lock:
            if self._checked_at is not None and now - self._checked_at < least_age_s:
                return
            seen = None
            try:
                facts = os.stat(self._directory)
                seen = (facts.st_mtime_ns, facts.st_ino)
                is_racy = abs(self._clock.now() - facts.st_mtime) < _MTIME_GRANULARITY_S
                if is_racy or seen != self._seen or now - self._read_at >= _FULL_RESCAN_S:
                    self._set_names(self._read())
                    self._seen, self._read_at = seen, now
                self._log_once(self._directory, "")
            except OSError as error:
                if error.errno in {errno.EMFILE, errno.ENFILE} and seen == self._seen:
                    # No descriptor is left to read the directory, but it has not changed.
                    self._checked_at = now
                    return
                self._set_names({})
                self._seen = None
                self._log_once(self._directory, f"no client can connect, the list cannot be read: {error.strerror}")
            self._checked_at = now

    def _set_names(self, names: dict[bytes, str]) -> None:
        if names != self._names:
            self._names = names
            self._revision += 1

    def _read(self) -> dict[bytes, str]:
        names: dict[bytes, str] = {}
        for name, path, key, unusable in read_client_keys(self._directory):
            error = unusable or (f"the same key as that of {names[key]}" if key in names else "")
            if not error:
                names[key] = name
            self._log_once(path, error and f"client {name} cannot connect: {error}")
        return names

    def _log_once(self, path: str, text: str) -> None:
        """Log an error about a path once, until it changes."""
        if text and self._logged_errors.get(path) != text:
            log.error("allow list: %s", text)
        if text:
            self._logged_errors[path] = text
        else:
            self._logged_errors.pop(path, None)
