"""Reports in a real Chromium: `make test-browser`. Where a page is opened, nothing else is asked for."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fakes.delivered_runs import START, busy_day, packed, sample, write_run
from fakes.process_harness import Home, wait_until
from fakes.viewer_server import ViewerServer

from sentinel_protocol.wire.sample import CSV_HEADER, csv_rows
from sentinel_viewer.cli.report import page_of
from sentinel_viewer.runs.naming import Library

pytestmark = pytest.mark.browser
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_READY_MS = 30_000
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\u202e\"'&"
_WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective));
"""
_PIXELS = """
([id, colour]) => {
  const canvas = document.querySelector(`#${id} canvas`);
  const probe = document.createElement("canvas").getContext("2d");
  probe.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(colour).trim();
  probe.fillRect(0, 0, 1, 1);
  const wanted = probe.getImageData(0, 0, 1, 1).data;
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let found = 0;
  for (let i = 0; i < data.length; i += 4)
    if (data[i + 3] > 200 && [0, 1, 2].every((part) => Math.abs(data[i + part] - wanted[part]) < 12)) found++;
  return found;
}
"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="make test-browser installs it")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert path is not None, "chromium is missing: apt-get install chromium"
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_FLAGS)
        yield browser
        browser.close()


class Reader:
    """A page that is watched: what it says on the console, what it asks for, what its policy forbids."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.console: list[str] = []
        self.requests: list[str] = []
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.console.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("dialog", lambda dialog: self.console.append(f"dialog {dialog.message}"))
        page.add_init_script(_WATCH)

    def _heard(self, message: Any) -> None:
        # That is about `pixels` below.
        if "willReadFrequently" not in message.text:
            self.console.append(message.text)

    def open(self, path: Path | str) -> None:
        self.page.goto(path if isinstance(path, str) else path.as_uri())
        self.page.wait_for_selector("html[data-ready]", timeout=_READY_MS)

    def pixels(self, chart: str, colour: str) -> int:
        """How many pixels of a chart have a colour of the style sheet."""
        return int(self.page.evaluate(_PIXELS, [chart, colour]))

    def shown(self) -> list[float]:
        """The time that the charts show, from and to; all of them show the same."""
        texts = set(self.page.eval_on_selector_all(".chart", "charts => charts.map((chart) => chart.dataset.shown)"))
        assert len(texts) == 1, texts
        return [float(edge) for edge in texts.pop().split()]

    def drag(self, chart: str, first: float, last: float, key: str = "") -> None:
        """Drag across a chart, from and to as shares of its width."""
        over = self.page.locator(f"#{chart} .u-over")
        over.scroll_into_view_if_needed()
        box = over.bounding_box()
        y = box["y"] + box["height"] / 2
        if key:
            self.page.keyboard.down(key)
        self.page.mouse.move(box["x"] + box["width"] * first, y)
        self.page.mouse.down()
        self.page.mouse.move(box["x"] + box["width"] * last, y, steps=8)
        self.page.mouse.up()
        if key:
            self.page.keyboard.up(key)

    def legend(self, chart: str) -> str:
        """The values at the pointer."""
        return str(self.page.locator(f"#{chart} .u-legend").inner_text())


@pytest.fixture
def reader(chromium: Any) -> Iterator[Reader]:
    context = chromium.new_context(
        viewport={"width": 1200, "height": 1000},
        color_scheme="light",
        timezone_id="Europe/Vienna",
        accept_downloads=True,
    )
    made = Reader(context.new_page())
    yield made
    assert made.page.evaluate("violations") == []
    assert made.console == []
    # Of a file nothing but itself, of a server nothing but what is its own.
    first, *others = made.requests
    origin = first.partition("://")[2].partition("/")[0]
    assert all(origin and one.startswith(f"http://{origin}/") for one in others), made.requests
    context.close()


def report(tmp_path: Path, *names: str) -> Path:
    _, text = page_of(Library(str(tmp_path / "runs"), {"HOME": str(tmp_path)}), names)
    path = tmp_path / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


def test_charts_are_drawn_and_values_appear_under_the_pointer(tmp_path: Path, reader: Reader) -> None:
    rows = [sample(second, cores=1.0 + second % 2, process_memory_mib=300.0 + second % 100) for second in range(300)]
    write_run(tmp_path / "runs", "one", rows, job="train")
    reader.open(report(tmp_path, "one"))
    assert reader.page.title() == "train - sentinel-stream"
    assert reader.pixels("cpu", "--job") > 500
    assert reader.pixels("memory", "--job") > 300
    assert reader.pixels("memory", "--peak") > 300
    over = reader.page.locator("#cpu .u-over")
    over.hover(position={"x": 300, "y": 60})
    assert "cores" in reader.legend("cpu")
    assert "MiB" in reader.legend("memory")


def test_every_chart_shows_the_same_time(tmp_path: Path, reader: Reader) -> None:
    rows = [sample(second, process_disk_write_bytes=4096 * second) for second in range(600)]
    write_run(tmp_path / "runs", "one", rows)
    reader.open(report(tmp_path, "one"))
    everything = [START, START + 599]
    assert reader.shown() == everything
    reader.drag("cpu", 0.25, 0.75)
    first, last = reader.shown()
    assert START + 140 < first < START + 160
    assert START + 440 < last < START + 460
    reader.drag("memory", 0.5, 0.4, key="Shift")
    assert reader.shown()[0] == pytest.approx(first + 30, abs=5)
    reader.page.locator("#disk .u-over").dblclick()
    assert reader.shown() == everything
    reader.drag("disk", 0.5, 0.6)
    reader.page.get_by_role("button", name="show all").click()
    assert reader.shown() == everything


def test_a_chart_is_read_with_the_keyboard_alone(tmp_path: Path, reader: Reader) -> None:
    rows = [sample(second, cores=second / 100) for second in range(100)]
    write_run(tmp_path / "runs", "one", rows)
    reader.open(report(tmp_path, "one"))
    for _ in range(20):
        reader.page.keyboard.press("Tab")
        if reader.page.evaluate("document.activeElement.id") == "cpu":
            break
    said = reader.page.locator("#live")
    reader.page.keyboard.press("ArrowRight")
    assert "job 0.00 cores" in said.inner_text()
    reader.page.keyboard.press("ArrowRight")
    reader.page.keyboard.press("ArrowRight")
    assert "job 0.02 cores" in said.inner_text()
    reader.page.keyboard.press("End")
    assert "job 0.99 cores" in said.inner_text()
    reader.page.keyboard.press("+")
    first, last = reader.shown()
    assert last - first < 70
    reader.page.keyboard.press("Shift+ArrowLeft")
    assert reader.shown()[0] < first
    reader.page.keyboard.press("Escape")
    assert reader.shown() == [START, START + 99]


def test_what_a_chart_shows_is_in_a_table_behind_it(tmp_path: Path, reader: Reader) -> None:
    write_run(tmp_path / "runs", "one", [sample(second, cores=second % 2 * 1.5) for second in range(120)])
    reader.open(report(tmp_path, "one"))
    for chart in reader.page.locator("figure").all():
        assert chart.get_by_role("table").count() == 1  # the values at the pointer
        chart.locator("summary").click()
        table = chart.get_by_role("table").last
        assert table.get_by_role("row").count() == 31
    table = reader.page.locator("figure").first.get_by_role("table").last
    cells = table.get_by_role("row").nth(1).get_by_role("cell").all_inner_texts()
    assert cells[3:6] == ["0.75 cores", "0.00 cores", "1.50 cores"]


def test_light_and_dark(tmp_path: Path, reader: Reader) -> None:
    write_run(tmp_path / "runs", "one", [sample(second, cores=1.0 + second % 2) for second in range(300)])
    reader.page.emulate_media(color_scheme="dark")
    reader.open(report(tmp_path, "one"))
    background = "getComputedStyle(document.body).backgroundColor"
    dark = reader.page.evaluate(background)
    assert reader.pixels("cpu", "--job") > 500
    assert (
        reader.page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--job').trim()") == "#6ea8ff"
    )
    reader.page.get_by_role("button", name="light / dark").click()
    assert reader.page.evaluate(background) != dark
    reader.page.wait_for_function(
        "getComputedStyle(document.documentElement).getPropertyValue('--job').trim() === '#1d5fd1'"
    )
    reader.page.wait_for_timeout(100)
    assert reader.pixels("cpu", "--job") > 500


def test_the_printed_page_is_dark_on_white_and_has_the_charts(tmp_path: Path, reader: Reader) -> None:
    write_run(tmp_path / "runs", "one", [sample(second, cores=1.0 + second % 2) for second in range(300)])
    reader.page.emulate_media(color_scheme="dark")
    reader.open(report(tmp_path, "one"))
    reader.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert reader.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    reader.page.wait_for_timeout(100)
    assert reader.pixels("cpu", "--job") > 500
    assert reader.page.pdf(format="A4").startswith(b"%PDF")


def test_hostile_names_stay_text(tmp_path: Path, reader: Reader) -> None:
    metadata = {"job_name": HOSTILE, "tags": {HOSTILE: HOSTILE}, "command": [HOSTILE, "x"], HOSTILE: HOSTILE}
    rows = [sample(second) for second in range(60)]
    write_run(tmp_path / "runs", "one", rows, metadata=metadata, host={"host_hostname": HOSTILE, "host_vcpus": 4})
    write_run(tmp_path / "runs", "two", rows, metadata=metadata, run_id=HOSTILE)
    for names in (["one"], ["one", "two"]):
        reader.requests.clear()
        reader.open(report(tmp_path, *names))
        assert "<script>document.title='owned'</script>" in reader.page.locator("main").inner_text()
        assert reader.page.title().startswith("</script><script>document.title='owned'")
        assert reader.page.locator("main img").count() == 0
        assert "\u202e" not in reader.page.locator("main").inner_text()


def test_the_rows_come_out_as_they_were_delivered(tmp_path: Path, reader: Reader) -> None:
    rows = busy_day(2000)
    rows[5] = msgspec.structs.replace(rows[5], process_memory_mib=None, system_gpu_usage=None, process_pid=None)
    rows[6] = msgspec.structs.replace(rows[6], system_net_recv_bytes=2**60)
    write_run(tmp_path / "runs", "one", rows)
    reader.open(report(tmp_path, "one"))
    with reader.page.expect_download() as started:
        reader.page.get_by_role("button", name="save the rows as CSV").click()
    assert started.value.suggested_filename == "one.csv"
    assert Path(started.value.path()).read_bytes() == CSV_HEADER + csv_rows(rows)


def test_a_day_with_gaps(tmp_path: Path, reader: Reader) -> None:
    write_run(tmp_path / "runs", "day", busy_day(), objects=96, job="train")
    path = report(tmp_path, "day")
    assert path.stat().st_size < 3_000_000
    reader.open(path)
    assert reader.pixels("cpu", "--job") > 2000
    # The hour that nobody sampled is red.
    gap = reader.page.evaluate(
        """() => {
          const canvas = document.querySelector('#cpu canvas');
          const { width, height } = canvas;
          const place = Math.round(width * (76 + (width - 88) * 0.3542) / width);
          return [...canvas.getContext('2d').getImageData(place, Math.round(height * 0.3), 20, 20).data];
        }"""
    )
    assert sum(gap[0::4]) > sum(gap[2::4]) + 1000
    reader.drag("cpu", 0.5, 0.51)
    first, last = reader.shown()
    assert 600 < last - first < 1200


def test_runs_on_top_of_each_other(tmp_path: Path, reader: Reader) -> None:
    for number, cores in enumerate((1.0, 2.0)):
        rows = [sample(5000 * number + second, cores=cores) for second in range(200 + 50 * number)]
        write_run(tmp_path / "runs", f"run-{number}", rows, job="train")
    reader.open(report(tmp_path, "run-0", "run-1"))
    assert reader.shown() == [pytest.approx(1), pytest.approx(250)]
    assert reader.pixels("cpu", "--run-0") > 200
    assert reader.pixels("cpu", "--run-1") > 200
    reader.page.locator("#cpu .u-over").hover(position={"x": 300, "y": 60})
    assert "1.00 cores" in reader.legend("cpu")
    assert "2.00 cores" in reader.legend("cpu")
    differences = reader.page.get_by_role("row", name="CPU, mean").inner_text()
    assert "+100.0 %" in differences


def test_a_run_without_rows_has_a_report_too(tmp_path: Path, reader: Reader) -> None:
    write_run(tmp_path / "runs", "one", [], state="running", job="train")
    reader.page.goto(report(tmp_path, "one").as_uri())
    assert "No rows have been delivered yet" in reader.page.locator("main").inner_text()


def test_the_list_in_a_browser(home: Home, reader: Reader) -> None:
    for number in range(3):
        rows = [sample(5000 * number + second, cores=1.0 + number) for second in range(100)]
        write_run(home.runs, f"run-{number}", rows, job=HOSTILE if number == 2 else "train")
    server = ViewerServer(home)
    reader.open(server.url("/"))
    page = reader.page
    assert page.get_by_role("row").count() == 4
    page.get_by_role("checkbox").nth(2).check()
    page.get_by_role("checkbox").nth(3).check()
    # A new run comes by itself, and what was ticked stays ticked.
    write_run(home.runs, "run-3", [sample(20_000)], job="new one", exit_code=139)
    page.get_by_role("link", name="new one").wait_for()
    assert page.locator("input:checked").count() == 2
    page.get_by_role("button", name="compare").click()
    page.wait_for_selector("html[data-ready]")
    assert "Differences from the first run" in page.locator("main").inner_text()
    assert reader.pixels("cpu", "--run-1") > 100
    page.get_by_role("link", name="all runs").click()
    page.wait_for_selector("html[data-ready]")
    page.get_by_role("checkbox", name="failed only").check()
    page.get_by_role("button", name="apply").click()
    page.wait_for_selector("html[data-ready]")
    assert page.get_by_role("row").count() == 2
    assert "alert(1)" not in page.title()


def test_a_page_follows_a_run(home: Home, reader: Reader) -> None:
    directory = write_run(home.runs, "one", [], state="running", job="train")
    server = ViewerServer(home)
    reader.open(server.url("/run/one"))
    page = reader.page
    assert "No rows have been delivered yet" in page.locator("main").inner_text()
    (directory / "0001.csv.gz").write_bytes(packed(sample(second, cores=1.0 + second % 2) for second in range(100)))
    description = directory / "run.json"
    description.write_text(description.read_text().replace('"objects": []', '"objects": null'))
    page.locator("#cpu canvas").wait_for()
    wait_until(lambda: page.evaluate("document.querySelector('#cpu')?.dataset.shown"), "the charts are there")
    assert reader.shown() == [START, START + 99]
    assert reader.pixels("cpu", "--job") > 300
    # Who looks at a part of it goes on looking at that.
    reader.drag("cpu", 0.2, 0.4)
    part = reader.shown()
    (directory / "0002.csv.gz").write_bytes(packed(sample(second) for second in range(100, 200)))
    wait_until(lambda: "200 rows" in page.locator(".tiles").inner_text(), "the new rows are there")
    wait_until(lambda: page.evaluate("document.querySelector('#cpu')?.dataset.shown"), "the charts are there")
    assert reader.shown() == pytest.approx(part)
    page.get_by_role("button", name="show all").click()
    assert reader.shown() == [START, START + 199]
    description.write_text(description.read_text().replace('"running"', '"finished"'))
    page.locator(".badge.ok").wait_for()
    assert reader.pixels("cpu", "--job") > 300
