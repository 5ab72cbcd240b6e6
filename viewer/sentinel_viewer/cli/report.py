"""`sentinel-stream report` and `open`: a run, or several on top of each other, as one HTML file."""

import contextlib
import os
import re
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from sentinel_protocol.common.errors import UsageError
from sentinel_protocol.common.paths import make_private_dir
from sentinel_viewer.analysis.comparison import differences
from sentinel_viewer.analysis.spread import spread_of
from sentinel_viewer.analysis.view import view_of
from sentinel_viewer.cli import options
from sentinel_viewer.errors import ReadError
from sentinel_viewer.live.rows import current_rows
from sentinel_viewer.output import units
from sentinel_viewer.output.console import note, write
from sentinel_viewer.report.page import report_page
from sentinel_viewer.runs.index import cache_home
from sentinel_viewer.runs.naming import Library

_UNSAFE = re.compile(r"[^\w.-]+")
_MAX_NAME_CHARS = 100


def run(words: list[str]) -> int:
    """Write the report, and open it if told to."""
    parser = options.parser(
        "report",
        "Write a report of a run, or of several on top of each other: one HTML file with charts, statistics,\n"
        "advice and all rows. It needs no network.",
        examples="  sentinel-stream report latest -o run.html --open\n  sentinel-stream report train~1 train\n",
    )
    parser.add_argument("run", metavar="RUN", nargs="*", help="default latest; see `sentinel-stream --help`")
    parser.add_argument("-o", "--output", metavar="FILE", help="default RUN_ID.html here; - is the standard output")
    parser.add_argument("--open", action="store_true", help="open it in the browser")
    args = parser.parse_args(words)
    library = options.library(args)
    names, text = page_of(library, args.run or ["latest"])
    if args.output == "-":
        write(text)
        return 0
    path = args.output or file_name(names)
    write_file(path, text)
    note(f"{path}: {units.size(len(text.encode()))}")
    if args.open:
        show_file(path)
    return 0


def open_run(words: list[str]) -> int:
    """Write the report into the cache and open it in the browser."""
    parser = options.parser("open", "Open the report of a run, or of several on top of each other, in the browser.")
    parser.add_argument("run", metavar="RUN", nargs="*", help="default latest; see `sentinel-stream --help`")
    args = parser.parse_args(words)
    library = options.library(args)
    names, text = page_of(library, args.run or ["latest"])
    directory = make_private_dir(os.path.join(cache_home(os.environ), "reports"))
    path = os.path.join(directory, file_name(names))
    write_file(path, text)
    show_file(path)
    return 0


def page_of(library: Library, words: Sequence[str]) -> tuple[list[str], str]:
    """Return the ids of the runs that the words name, and their report."""
    found = library.find(words)
    views = [view_of(one, library, current_rows(one)) for one in found]
    compared = differences([view.figures for view in views], spread_of(library, found)) if len(found) > 1 else []
    return [one.run.run_id for one in found], report_page(views, compared)


def file_name(names: Sequence[str]) -> str:
    """Return the name of the runs' report; a run's id may come from anywhere."""
    safe = _UNSAFE.sub("_", "-".join(names)).strip("._")[:_MAX_NAME_CHARS] or "run"
    return f"{safe}.html"


def write_file(path: str, text: str) -> None:
    """Write a report; it takes its name when it is whole."""
    temporary = f"{path}.part"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def show_file(path: str) -> None:
    """Open a file in the browser; raises `ReadError` where there is none."""
    address = Path(path).absolute().as_uri()
    if not webbrowser.open(address):
        raise ReadError(f"there is no browser here: copy {path} to where there is one")
    note(f"opened {address}")
