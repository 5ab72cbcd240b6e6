"""Makes the pictures of the documents: records real jobs and takes what a reader sees (`make pictures`)."""

import asyncio
import os
import shutil
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from fakes.process_harness import BIN, Home, home_in, wait_until
from fakes.viewer_server import STREAM, ViewerServer
from locations import ROOT
from playwright.sync_api import sync_playwright

from sentinel_protocol.common.clock import SystemClock
from sentinel_viewer.live.uploaders import live_runs
from sentinel_viewer.live.watch import Watch
from sentinel_viewer.runs.naming import Library
from sentinel_viewer.top.app import TopApp

PICTURES = ROOT / "docs" / "pictures"
TRAIN = str(ROOT / "examples" / "train.py")
COLLECTOR = str(BIN / "sentinel-collector")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
LEAK = """
import time
kept, began = [], time.monotonic()
while time.monotonic() - began < 35:
    kept.append(bytearray(1 << 20))
    sum(n * n for n in range(600_000))
    time.sleep(0.1)
"""
CRASH = "import os, signal, time; kept = bytearray(90 << 20); time.sleep(2); os.kill(os.getpid(), signal.SIGSEGV)"


def main() -> None:
    """Record, then look."""
    directory = Path(tempfile.mkdtemp(prefix="pictures-"))
    try:
        with home_in(directory) as home:
            home.environ["TRACKER_UPLOAD_INTERVAL"] = "2"
            record(home)
            live = [
                start(home, "nightly-eval", sys.executable, TRAIN, "900", "1"),
                start(home, "etl", sys.executable, "-c", LEAK.replace("35", "900")),
                start(home, "watcher", "sleep", "900"),
            ]
            wait_until(lambda: home.run(STREAM, "top").stdout.count(" ago") == 3, "three live runs")
            threading.Event().wait(25)  # for lines that show something
            draw(home)
            for process in live:
                process.terminate()
                process.communicate(timeout=60)
    finally:
        shutil.rmtree(directory)


def record(home: Home) -> None:
    """Record what the list and the reports show."""
    train = ("--interval", "0.2", "--job-name", "train", "--tag")
    home.collector(*train, "workers=1", "--", sys.executable, TRAIN, "25", "1")
    home.collector(*train, "workers=2", "--", sys.executable, TRAIN, "25", "2")
    home.collector("--job-name", "import", "--", sys.executable, "-c", CRASH)
    home.collector("--interval", "0.2", "--job-name", "etl", "--", sys.executable, "-c", LEAK)
    home.collector("--", "sh", "-c", "sleep 1; exit 3")


def start(home: Home, name: str, *words: str) -> Any:
    """Start a job that is still there when the pictures are taken."""
    return home.start(COLLECTOR, "--job-name", name, "--", *words)


def draw(home: Home) -> None:
    """Take all pictures."""
    home.run(STREAM, "report", "etl~1", "-o", "report.html")
    home.run(STREAM, "report", "train~1", "train", "-o", "compare.html")
    server = ViewerServer(home)
    top = home.directory / "top.svg"
    draw_top(home, top)
    with sync_playwright() as playwright:
        browser: Any = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for name, address, scheme, height in (
            ("report", (home.directory / "report.html").as_uri(), "light", 1500),
            ("report-dark", (home.directory / "report.html").as_uri(), "dark", 1150),
            ("compare", (home.directory / "compare.html").as_uri(), "light", 1150),
            ("web", server.url("/"), "light", 640),
        ):
            page = browser.new_page(viewport={"width": 1160, "height": height}, color_scheme=scheme)
            page.goto(address)
            page.wait_for_selector("html[data-ready]")
            if name == "report":
                page.locator("#memory .u-over").hover(position={"x": 520, "y": 60})
            page.wait_for_timeout(300)
            page.screenshot(path=PICTURES / f"{name}.png")
            page.close()
        page = browser.new_page(viewport={"width": 1400, "height": 260})
        # A screenshot of a terminal names fonts on the network.
        page.route("**/*", lambda route: route.continue_() if route.request.url.startswith("file:") else route.abort())
        page.goto(top.as_uri())
        page.locator("svg").screenshot(path=PICTURES / "top.png")
        browser.close()


def draw_top(home: Home, path: Path) -> None:
    """Take the screen of `top`, which is a program of its own event loop."""
    os.environ.update(home.environ)
    watch, clock = Watch(live_runs, Library(None, os.environ)), SystemClock()
    app = TopApp(lambda: watch.look(clock.now()), 2.0)

    async def take() -> None:
        async with app.run_test(size=(165, 10)) as pilot:
            for _ in range(300):
                await pilot.pause(0.1)
                if app.query_one("#runs").row_count == 3:  # type: ignore[attr-defined]  # a table
                    break
            await pilot.pause(5)
            app.save_screenshot(str(path))

    thread = threading.Thread(target=lambda: asyncio.run(take()))
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
