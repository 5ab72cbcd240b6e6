"""`python -m fakes.broken_zap_uploader UPLOADER WORDS…`: an uploader whose authenticator breaks on request.

Each line of the standard input breaks it.

`stop`: the authenticator ends. `break`: it fails whenever it is asked. What was done is said on the standard output.
"""

import sys
import threading
from collections.abc import Sequence

from sentinel_uploader.cli import main
from sentinel_uploader.server.allow_list import AllowList
from sentinel_uploader.server.connection_guard import ConnectionGuard

_guards: list[ConnectionGuard] = []
_start = ConnectionGuard.start


def _start_and_note(guard: ConnectionGuard, endpoints: Sequence[Sequence[str]]) -> None:
    _guards.append(guard)
    _start(guard, endpoints)


def _cannot_tell(self: AllowList, key: bytes) -> bool:
    raise OSError(f"the list of {len(key)} bytes is gone")


def _obey() -> None:
    for line in sys.stdin:
        if line.strip() == "stop":
            _guards[0].stop()
        else:
            AllowList.is_allowed = _cannot_tell  # type: ignore[method-assign]  # that is the fault
        print(f"{line.strip()}: done", flush=True)


if __name__ == "__main__":
    ConnectionGuard.start = _start_and_note  # type: ignore[method-assign,assignment]  # to get hold of it
    threading.Thread(target=_obey, daemon=True).start()
    sys.exit(main.main(sys.argv[2:]))
