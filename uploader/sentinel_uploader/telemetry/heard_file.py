"""When each open run's collector was heard last, in a file beside the spool, for `status`.

Not in the spool: it would be a commit for every message. Nothing depends on the file, so it is not synced.
"""

import logging
import os
from collections.abc import Callable, Collection

import msgspec

from sentinel_protocol.common.atomic_file import write_atomically
from sentinel_protocol.common.clock import Clock
from sentinel_uploader.spool.store import Spool

log = logging.getLogger(__name__)

_FILE_NAME = "heard.json"


class HeardRuns(msgspec.Struct, frozen=True):
    """UNIX seconds by the number of the run, and clients with open runs whose key is not on the list any more."""

    runs: dict[int, float] = {}
    revoked: list[str] = []


class HeardFile:
    """Written by the uploader that owns the spool directory. Not thread-safe.

    `clients` returns the names of the clients that may connect, `None` where there are no keys.
    """

    def __init__(
        self, spool_dir: str, spool: Spool, clock: Clock, clients: Callable[[], Collection[str] | None]
    ) -> None:
        self._path = os.path.join(spool_dir, _FILE_NAME)
        self._spool = spool
        self._clock = clock
        self._clients = clients
        # What the previous uploader heard stays true until the run is heard again.
        self._written = self._earlier = read_heard(spool_dir)

    def write(self) -> None:
        """Write the times if they have changed."""
        to_unix = self._clock.now() - self._clock.monotonic()
        runs: dict[int, float] = {}
        clients, owners = self._clients(), set()
        for number, owner, created_at, seen_at in self._spool.view(
            lambda run: (run.id, run.record.owner, run.created_at, run.last_seen_at)
        ):
            owners.add(owner)
            if seen_at > created_at:
                runs[number] = round(seen_at + to_unix, 1)
            elif number in self._earlier.runs:
                runs[number] = self._earlier.runs[number]
        heard = HeardRuns(runs, [] if clients is None else sorted(owners.difference(clients, [""])))
        if heard == self._written:
            return
        try:
            write_atomically(self._path, msgspec.json.encode(heard), durable=False)
        except OSError as error:
            # A full disk is reported elsewhere.
            log.debug("cannot write when runs were heard error=%s", error.strerror)
            return
        self._written = heard


def read_heard(spool_dir: str) -> HeardRuns:
    """Return the file's content, empty without a readable file."""
    try:
        with open(os.path.join(spool_dir, _FILE_NAME), "rb") as file:
            return msgspec.json.decode(file.read(), type=HeardRuns)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return HeardRuns()
