"""`sentinel-stream web`: the runs in a browser."""

import os
import threading
import webbrowser

from sentinel_protocol.common.clock import SystemClock
from sentinel_protocol.common.errors import UsageError
from sentinel_viewer.cli import options
from sentinel_viewer.errors import missing_extra
from sentinel_viewer.live.uploaders import live_runs
from sentinel_viewer.live.watch import LiveEntry, Watch, newest_rows
from sentinel_viewer.output.console import note

_PORT = 7750
_TOKEN_VARIABLE = "SENTINEL_VIEW_TOKEN"  # noqa: S105 -- its name
_MIN_TOKEN_CHARS = 16
_FRESH_S = 1.5


def run(words: list[str]) -> int:
    """Serve until stopped."""
    parser = options.parser(
        "web",
        "Serve the runs as pages: a list, a report of each that follows it while it is recorded, comparisons.\n"
        "Only this machine's own browsers get in, unless --host says otherwise: then a token is needed, which is\n"
        f"{_TOKEN_VARIABLE} or made up. The connection is not encrypted: beyond this machine put TLS before it.",
        examples="  sentinel-stream web --open\n",
    )
    parser.add_argument("--host", metavar="ADDRESS", default="127.0.0.1", help="where to listen (default 127.0.0.1)")
    parser.add_argument("--port", metavar="N", type=int, default=_PORT, help=f"default {_PORT}; 0: any that is free")
    parser.add_argument("--spool", metavar="DIR", help="the spool of one uploader (default all of this user's)")
    parser.add_argument("--open", action="store_true", help="open the list in the browser")
    args = parser.parse_args(words)
    try:
        from sentinel_viewer.web.access import new_token
        from sentinel_viewer.web.server import address_of, listen, needs_token, serve
    except ImportError:
        raise missing_extra("web") from None
    library, clock, lock = options.library(args), SystemClock(), threading.Lock()
    watch = Watch(lambda: live_runs(args.spool), library, lambda: newest_rows(args.spool))
    token = _token(new_token()) if needs_token(args.host) else None

    latest: tuple[float, list[LiveEntry]] | None = None

    def look() -> list[LiveEntry]:
        # Requests come in several threads; one answer of the uploader does for all that come within a moment.
        nonlocal latest
        with lock:
            if latest is None or clock.monotonic() - latest[0] > _FRESH_S:
                latest = clock.monotonic(), watch.look(clock.now())
            return latest[1]

    opened = listen(args.host, args.port)
    address = address_of(opened, args.host, token)
    note(f"{address} shows {library.place.uri}; Ctrl-C ends")
    if args.open:
        webbrowser.open(address)
    serve(opened, args.runs, os.environ, look, token=token, spool=args.spool)
    return 0


def _token(made_up: str) -> str:
    given = os.environ.get(_TOKEN_VARIABLE, "")
    if given and len(given) < _MIN_TOKEN_CHARS:
        raise UsageError(f"{_TOKEN_VARIABLE}: needs {_MIN_TOKEN_CHARS} characters at least")
    return given or made_up
