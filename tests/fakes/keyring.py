"""The temporary credentials that the API stand-in issues and the storage stand-in checks."""

import itertools
import threading
from dataclasses import dataclass


@dataclass
class Issued:
    """One set of credentials; `prefix` (`s3://…`) is where it may write, `revoked` the code it is refused with."""

    access_key: str
    secret_key: str
    session_token: str
    expires_at: float
    prefix: str
    revoked: str | None = None


class Keyring:
    """All credentials that were issued."""

    def __init__(self, fixed: tuple[str, str] | None = None) -> None:
        """`fixed` (access key, secret key) is handed out every time, for a server that knows only one pair."""
        self._fixed = fixed
        self._numbers = itertools.count(1)
        self._issued: list[Issued] = []
        self._lock = threading.Lock()

    def issue(self, prefix: str, expires_at: float) -> Issued:
        """Make new credentials; `expires_at` is UNIX seconds by the servers' clock."""
        with self._lock:
            number = next(self._numbers)
            access_key, secret_key = self._fixed or (f"ASIAKEY{number:013d}", f"secret/+{number:032d}")
            token = f"session+/token=={number}"
            issued = Issued(access_key, secret_key, token, expires_at, prefix)
            self._issued.append(issued)
            return issued

    def find(self, access_key: str) -> Issued | None:
        """Return the newest credentials with this access key."""
        with self._lock:
            return next((one for one in reversed(self._issued) if one.access_key == access_key), None)

    def all(self) -> list[Issued]:
        """Return all credentials in the order of their issue."""
        with self._lock:
            return list(self._issued)

    def revoke_all(self, code: str = "ExpiredToken") -> int:
        """Refuse everything issued so far with this S3 code; return how many that were."""
        with self._lock:
            for one in self._issued:
                one.revoked = code
            return len(self._issued)
