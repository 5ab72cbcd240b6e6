"""`sentinel-stream top`: all live runs."""

from sentinel_protocol.common.clock import SystemClock
from sentinel_viewer.cli import options
from sentinel_viewer.cli.report import file_name, page_of, show_file, write_file
from sentinel_viewer.errors import missing_extra
from sentinel_viewer.live.uploaders import live_runs
from sentinel_viewer.live.watch import LiveEntry, Watch, newest_rows
from sentinel_viewer.output.console import is_terminal, note, write
from sentinel_viewer.top.lines import KEYS, once, sorted_entries

_MIN_INTERVAL_S = 0.5


def run(words: list[str]) -> int:
    """Show live runs until stopped, or once."""
    parser = options.parser(
        "top",
        "Show all runs that are being recorded, as their uploader has them.\n"
        "CPU and memory are those of the newest rows; `newest row` says how old these are.",
        examples="  sentinel-stream top\n  sentinel-stream top --once --sort memory\n",
    )
    parser.add_argument("--spool", metavar="DIR", help="the spool of one uploader (default all of this user's)")
    parser.add_argument("--once", action="store_true", help="write the table once; so does a pipe")
    parser.add_argument(
        "--all", action="store_true", help="also runs that have ended and that the uploader still knows"
    )
    parser.add_argument("--sort", metavar="COLUMN", choices=KEYS, default="cpu", help=f"one of {', '.join(KEYS)}")
    parser.add_argument("--interval", metavar="SECONDS", type=float, default=2.0, help="default 2")
    args = parser.parse_args(words)
    if not args.interval >= _MIN_INTERVAL_S:
        parser.error(f"--interval: at least {_MIN_INTERVAL_S}")
    library, clock = options.library(args), SystemClock()
    watch = Watch(lambda: live_runs(args.spool), library, lambda: newest_rows(args.spool))

    def look() -> list[LiveEntry]:
        return watch.look(clock.now(), all_runs=args.all)

    if args.once or not is_terminal():
        entries = look()
        if entries:
            write(once(sorted_entries(entries, args.sort)))
        else:
            note("no run is being recorded; `sentinel-stream ls` lists those that were")
        return 0
    try:
        from sentinel_viewer.top.app import TopApp
    except ImportError:
        raise missing_extra("top") from None
    chosen = TopApp(look, args.interval, sort=args.sort).run()
    if chosen is not None:
        names, text = page_of(library, [chosen])
        path = file_name(names)
        write_file(path, text)
        show_file(path)
    return 0
