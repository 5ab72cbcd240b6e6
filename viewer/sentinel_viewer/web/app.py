"""The pages and what is behind them. Every request looks anew: a run may have come, grown or gone."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from sentinel_protocol.common.errors import SentinelStreamError
from sentinel_viewer.analysis.comparison import differences
from sentinel_viewer.analysis.spread import spread_of
from sentinel_viewer.analysis.view import view_of
from sentinel_viewer.errors import ReadError, RunNotFoundError
from sentinel_viewer.live.rows import current_rows
from sentinel_viewer.live.watch import LiveEntry
from sentinel_viewer.report.html import element, joined
from sentinel_viewer.report.page import report_page
from sentinel_viewer.runs.index import read_run
from sentinel_viewer.runs.naming import FoundRun, Library
from sentinel_viewer.web.access import Access
from sentinel_viewer.web.list_page import LIMIT, Query, list_page, run_path

_LOCAL_LOOK_S, _REMOTE_LOOK_S = 2.0, 30.0
_PAGE_S = 10.0
_MAX_RUNS = 8
_MAX_LIMIT = 100_000


class Pages:
    """Answers requests for the runs of one place.

    `look` returns the live runs; where it raises `ReadError` there is no uploader to ask, and the list has none.
    """

    def __init__(
        self,
        where: str | None,
        environ: Mapping[str, str],
        look: Callable[[], list[LiveEntry]],
        spool: str | None = None,
    ) -> None:
        self._where = where
        self._environ = environ
        self._look = look
        self._spool = spool

    async def list_runs(self, request: Request) -> Response:
        """All runs, filtered."""
        limit = request.query_params.get("limit", "")
        query = Query(
            words=request.query_params.get("q", ""),
            failed=bool(request.query_params.get("failed")),
            limit=min(int(limit), _MAX_LIMIT) if limit.isascii() and limit.isdecimal() and limit != "0" else LIMIT,
        )

        def build() -> str:
            library = self._library()
            return list_page(library.place.uri, library.runs(), self._live(), query)

        return HTMLResponse(await run_in_threadpool(build))

    async def show_run(self, request: Request) -> Response:
        """One run's report; it follows a run that is still recorded."""
        return HTMLResponse(await run_in_threadpool(self._report, [request.path_params["name"]]))

    async def save_run(self, request: Request) -> Response:
        """One run's report as a file to keep."""
        name = request.path_params["name"]
        text = await run_in_threadpool(self._report, [name], is_file=True)
        headers = {"Content-Disposition": 'attachment; filename="report.html"'}
        return HTMLResponse(text, headers=headers)

    async def compare(self, request: Request) -> Response:
        """Several runs on top of each other."""
        names = request.query_params.getlist("run")[:_MAX_RUNS]
        if len(names) < 2:
            return RedirectResponse(run_path(names[0]) if names else "/", 303)
        return HTMLResponse(await run_in_threadpool(self._report, names))

    async def follow_list(self, request: Request) -> Response:
        """Tell when the list has changed."""

        def state() -> tuple[str, bool]:
            versions = self._library().place.versions()
            live = [(one.run_id, one.state, one.rows_waiting, one.cores, one.trouble) for one in self._live()]
            return repr((sorted(versions.items()), live)), False

        return self._events(request, state)

    async def follow_run(self, request: Request) -> Response:
        """Tell when a run has more rows, and when it is over."""
        name = request.path_params["name"]
        await run_in_threadpool(self._found, name)

        def state() -> tuple[str, bool]:
            found = self._found(name)
            run = found.run
            objects = found.place.list_objects(name)
            # The page is made anew for each change: not for each row.
            step = max(1, round(_PAGE_S / (run.interval_s or 1.0)))
            waiting = [one.rows_waiting // step for one in self._live() if one.run_id == run.run_id]
            return repr((sorted(objects.items()), run.state, waiting)), not run.is_running

        return self._events(request, state)

    def _events(self, request: Request, state: Callable[[], tuple[str, bool]]) -> Response:
        wait_s = _LOCAL_LOOK_S if self._library().place.parallel == 1 else _REMOTE_LOOK_S
        headers = {"X-Accel-Buffering": "no"}
        return StreamingResponse(_changes(request, state, wait_s), media_type="text/event-stream", headers=headers)

    def _report(self, names: list[str], *, is_file: bool = False) -> str:
        library = self._library()
        found = [self._found(name) for name in names]
        views = [view_of(one, library, current_rows(one, self._spool)) for one in found]
        compared = differences([view.figures for view in views], spread_of(library, found)) if len(found) > 1 else []
        if is_file:
            return report_page(views, compared)
        links = [element("a", "all runs", href="/")]
        if len(found) == 1:
            links.append(element("a", "save as a file", href=f"/file{run_path(names[0])}"))
        events = f"/events{run_path(names[0])}" if len(found) == 1 and found[0].run.is_running else ""
        nav = element("nav", *(joined((link, " ")) for link in links), class_="toolbar")
        return report_page(views, compared, events=events, links=nav)

    def _found(self, name: str) -> FoundRun:
        library = self._library()
        # A name is one that the place lists, never a path.
        if name not in library.place.versions():
            raise RunNotFoundError(f"there is no run {name!r} in {library.place.uri}")
        return FoundRun(library.place, read_run(library.place, name))

    def _live(self) -> list[LiveEntry]:
        try:
            return self._look()
        except ReadError:
            return []

    def _library(self) -> Library:
        return Library(self._where, self._environ)


def create_app(pages: Pages, *, token: str | None) -> Starlette:
    """Return the ASGI application; with a token only who has it gets in."""
    routes = [
        Route("/", pages.list_runs),
        Route("/events", pages.follow_list),
        Route("/compare", pages.compare),
        Route("/run/{name:path}", pages.show_run),
        Route("/file/run/{name:path}", pages.save_run),
        Route("/events/run/{name:path}", pages.follow_run),
    ]
    handlers: dict[Any, Any] = {RunNotFoundError: _not_found, SentinelStreamError: _failed}
    return Starlette(routes=routes, middleware=[Middleware(Access, token=token)], exception_handlers=handlers)


async def _not_found(_: Request, error: Exception) -> Response:
    return PlainTextResponse(f"{error}\n", 404)


async def _failed(_: Request, error: Exception) -> Response:
    return PlainTextResponse(f"{error}\n", 502)


async def _changes(request: Request, state: Callable[[], tuple[str, bool]], wait_s: float) -> AsyncIterator[str]:
    """Yield an event for each change, and one at the end; a comment in between finds out whether anybody listens."""
    before = None
    while not await request.is_disconnected():
        try:
            text, has_ended = await run_in_threadpool(state)
        except SentinelStreamError:
            return
        digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
        if has_ended:
            yield "event: ended\ndata: \n\n"
            return
        yield "event: changed\ndata: \n\n" if before not in (None, digest) else ": \n\n"
        before = digest
        await asyncio.sleep(wait_s)
