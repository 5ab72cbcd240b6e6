"""Live runs: asked of a real uploader, shown on a screen that is driven, and as a table for a pipe."""

import asyncio
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from fakes.delivered_runs import START, sample, write_run
from fakes.process_harness import BIN, Home, wait_until
from fakes.viewer_server import ViewerServer
from textual.widgets import DataTable, Input

from sentinel_protocol.wire.sample import CSV_HEADER, csv_rows
from sentinel_viewer.analysis.view import view_of
from sentinel_viewer.cli.show import shown as show_text
from sentinel_viewer.errors import ReadError
from sentinel_viewer.live.lookup import found_live, named_live
from sentinel_viewer.live.uploaders import LiveRun, RowsAtUploader, runs_of
from sentinel_viewer.live.watch import LiveEntry, Watch
from sentinel_viewer.runs.naming import Library
from sentinel_viewer.top.app import TopApp
from sentinel_viewer.top.lines import filtered, once, sorted_entries

STREAM = str(BIN / "sentinel-stream")


def test_a_run_is_seen_while_it_is_recorded(home: Home) -> None:
    env = {"TRACKER_UPLOAD_INTERVAL": "1"}
    words = ["--interval", "0.1", "--wait", "0", "--job-name", "long", "--", "sleep", "600"]
    collector = home.start(str(BIN / "sentinel-collector"), *words, env=env)
    table = wait_until(lambda: _seen(home), "the run has delivered rows")
    assert "long" in table[1]
    assert "registered" in table[1]
    shown = home.run(STREAM, "show", "long")
    assert "running" in shown.stdout
    assert "more are on their way" in shown.stdout
    assert " waiting" in shown.stdout
    listed = home.run(STREAM, "ls")
    assert "not all" in listed.stdout
    collector.terminate()
    collector.communicate(timeout=60)
    wait_until(lambda: not home.run(STREAM, "top", "--once").stdout, "the run is over")
    assert "over" not in home.run(STREAM, "top", "--once").stderr


def test_a_run_that_only_its_uploader_knows_is_shown(home: Home) -> None:
    # An API that nobody answers: the run has no id yet, and no place.
    env = {"SENTINEL_API_TOKEN": "x", "SENTINEL_API_URL": "http://127.0.0.1:9"}
    words = ["--interval", "0.1", "--wait", "0", "--job-name", "lonely", "--", "sleep", "600"]
    collector = home.start(str(BIN / "sentinel-collector"), *words, env=env)
    shown = wait_until(lambda: _shown(home, "lonely"), "the uploader has rows of the run")
    assert "result    running" in shown
    assert "rows waiting; " in shown
    assert "lonely" in home.run(STREAM, "top", "--once").stdout
    assert home.run(STREAM, "show", "nobody").returncode == 2
    collector.terminate()
    collector.communicate(timeout=60)


def test_a_live_run_is_shown_up_to_its_newest_row(home: Home) -> None:
    """The upload interval is an hour: nothing but its first registration has left the uploader."""
    env = {"TRACKER_UPLOAD_INTERVAL": "3600"}
    words = ["--interval", "0.1", "--wait", "0", "--job-name", "fresh", "--", "sleep", "600"]
    collector = home.start(str(BIN / "sentinel-collector"), *words, env=env)
    table = wait_until(lambda: _seen(home), "top has rows")
    assert "fresh" in table[1]
    newest, heard = [cell for cell in table[1].split("  ") if cell.strip().endswith("ago")]
    assert float(newest.split()[0]) < 10, table
    assert float(heard.split()[0]) < 10, table
    assert not list(home.runs.glob("*/*.csv.gz"))
    shown = wait_until(lambda: _used(home, "show", "fresh"), "show has rows")
    assert "cores on average" in shown
    report = home.directory / "r.html"
    assert home.run(STREAM, "report", "fresh", "-o", str(report)).returncode == 0
    assert "process_cpu_usage" in report.read_text()
    server = ViewerServer(home)
    name = next(path.name for path in home.runs.iterdir())
    with urllib.request.urlopen(server.url(f"/run/{name}"), timeout=30) as answer:
        assert b"peak" in answer.read()
    server.process.terminate()
    collector.terminate()
    collector.communicate(timeout=60)


def _used(home: Home, *words: str) -> str:
    done = home.run(STREAM, *words)
    return done.stdout if "memory" in done.stdout else ""


def test_rows_at_the_uploader_go_on_where_the_delivered_ones_end(tmp_path: Path) -> None:
    directory = write_run(tmp_path, "run-0001", [sample(second) for second in range(40)])
    objects = [(directory / "0001.csv.gz").as_uri()]
    waiting = {"run-0001": rows_at_uploader(35, 50)}
    runs = [live(1, objects=objects)]
    watch = Watch(lambda: runs, Library(str(tmp_path), {}), lambda: waiting)
    (entry,) = watch.look(START + 60)
    assert (len(entry.history), entry.newest_row_s) == (50, 11)
    # Delivered to where this user cannot read it: what was seen stays.
    runs[0] = live(1, objects=["file:///nowhere/0002.csv.gz"])
    waiting["run-0001"] = rows_at_uploader(50, 55)
    (entry,) = watch.look(START + 60)
    assert (len(entry.history), entry.newest_row_s) == (55, 6)
    waiting.clear()
    assert watch.look(START + 60)[0].newest_row_s == 6


def rows_at_uploader(first: int, end: int) -> RowsAtUploader:
    return RowsAtUploader(CSV_HEADER + csv_rows([sample(second) for second in range(first, end)]), [])


def _shown(home: Home, name: str) -> str:
    done = home.run(STREAM, "show", name)
    return done.stdout if " rows waiting; register: " in done.stdout else ""


def test_a_live_run_is_found_by_what_it_is_called(tmp_path: Path) -> None:
    runs = [live(1), live(8), live(2)]
    assert named_live(runs, "run-0002") is runs[2]
    assert named_live(runs, "0008") is runs[1]
    assert named_live(runs, "job 2") is runs[2]
    assert named_live(runs, "run") is None
    assert named_live(runs, "") is None
    elsewhere = live(
        3, objects=["s3://nowhere/x/0001.csv.gz"], statistics={"process_cpu_usage": {"mean": 0.5, "max": 1}}
    )
    library = Library(str(tmp_path), {})
    found = found_live(elsewhere._replace(objects=["file:///nowhere/0001.csv.gz"]), library)
    assert found.location == "at the uploader"
    assert "0.50 of 4 cores on average" in show_text(view_of(found, library), 100, elsewhere)
    directory = write_run(tmp_path, "here", [sample(second) for second in range(5)], state="running")
    found = found_live(live(4, objects=[(directory / "0001.csv.gz").as_uri()]), library)
    assert len(view_of(found, library).rows) == 5


def _seen(home: Home) -> list[str]:
    """The lines of `top`, once they tell how old the newest row is."""
    done = home.run(STREAM, "top")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    return lines if len(lines) == 2 and " ago" in lines[1] else []


def test_without_an_uploader_nothing_is_live(home: Home) -> None:
    done = home.run(STREAM, "top", "--once")
    assert (done.returncode, done.stdout) == (0, "")
    assert "no run is being recorded" in done.stderr


def test_an_uploader_that_is_not_installed_is_missed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sentinel_viewer.live.uploaders._COMMAND", "no-such-command")
    from sentinel_viewer.live.uploaders import live_runs

    with pytest.raises(ReadError, match="is not installed here"):
        live_runs()


@pytest.mark.parametrize(
    "statuses",
    [None, {}, [{}], [{"runs": [None, 5]}], [{"runs": [{"run_id": 5, "objects": "x", "rows_waiting": "y"}]}]],
)
def test_another_versions_status_is_read_as_far_as_it_goes(statuses: Any) -> None:
    for one in runs_of(statuses):
        assert one.rows_waiting == 0


def live(number: int, **fields: Any) -> LiveRun:
    entry = {
        "run_id": f"run-{number:04d}",
        "state": "registered",
        "created_at": START,
        "metadata": {"job_name": f"job {number % 7}"},
        "host": {"host_vcpus": 4},
        "rows_waiting": number,
    }
    return runs_of([{"uploader_pid": 1, "runs": [entry | fields]}])[0]


def test_rows_are_read_once_until_there_are_newer_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write_run(tmp_path / "runs", "run-0001", [sample(second) for second in range(40)], objects=4)
    objects = [path.as_uri() for path in sorted(directory.glob("*.gz"))]
    runs = [live(1, objects=objects[:3])]
    watch = Watch(lambda: runs, Library(str(tmp_path / "runs"), {}))
    read: list[Any] = []
    monkeypatch.setattr("sentinel_viewer.live.watch.read_rows", _counted(read))
    (first,) = watch.look(START + 100)
    assert (first.cores, first.memory_mib, first.newest_row_s) == (0.5, 100, 71)
    assert watch.look(START + 101)[0].newest_row_s == 72
    assert len(read) == 1
    runs[0] = live(1, objects=objects)
    assert watch.look(START + 101)[0].newest_row_s == 62
    assert len(read) == 2


def _counted(read: list[Any]) -> Any:
    from sentinel_viewer.rows.reader import read_rows

    def reading(found: Any) -> Any:
        read.append(found)
        return read_rows(found)

    return reading


def test_objects_that_cannot_be_read_here_are_unknown(tmp_path: Path) -> None:
    watch = Watch(lambda: [live(1, objects=["file:///nowhere/0001.csv.gz"])], Library(str(tmp_path), {}))
    (entry,) = watch.look(START + 5)
    assert (entry.cores, entry.newest_row_s, entry.age_s) == (None, None, 5)


def test_a_retry_that_nobody_makes_is_not_promised(tmp_path: Path) -> None:
    failing = {"last_error": "register: HTTP 401: nobody", "next_try_at": START + 100}
    there = live(1, **failing)
    runs = [there, there._replace(has_uploader=False)]
    first, second = Watch(lambda: runs, Library(str(tmp_path), {})).look(START)
    assert first.trouble == "register: HTTP 401: nobody, next try in 1 min 40 s"
    assert second.trouble == "register: HTTP 401: nobody"
    assert second.state == "registered, no uploader"


def entry(number: int, **fields: Any) -> LiveEntry:
    values: dict[str, Any] = {
        "run_id": f"run-{number:04d}", "job": f"job {number % 7}", "host": f"node{number % 5}", "client": "",
        "state": "registered", "age_s": 10.0 * number, "cores": number / 100, "vcpus": 8, "history": [1.0, 2.0] * 40,
        "memory_mib": 5000.0 - number, "gpus": None, "rows_waiting": number % 3, "newest_row_s": 1.0, "trouble": "",
    }  # fmt: skip
    return LiveEntry(**(values | fields))


def test_a_silent_and_a_revoked_collector_are_marked(tmp_path: Path) -> None:
    runs = [live(1, last_heard_at=START - 20, late=True, revoked=True, interval_seconds=2)]
    assert runs[0].run.interval_s == 2
    (found,) = Watch(lambda: runs, Library(str(tmp_path), {})).look(START)
    assert (found.state, found.heard_s) == ("registered, late, revoked", 20)
    assert "20.0 s ago" in once([found])


def test_lines_are_sorted_and_filtered() -> None:
    entries = [entry(number) for number in (3, 1, 2)]
    assert [one.run_id[-1] for one in sorted_entries(entries, "cpu")] == ["3", "2", "1"]
    assert [one.run_id[-1] for one in sorted_entries(entries, "memory")] == ["1", "2", "3"]
    assert [one.run_id[-1] for one in sorted_entries(entries, "run")] == ["1", "2", "3"]
    assert [one.run_id[-1] for one in filtered(entries, "NODE2 job")] == ["2"]
    head, first, *_ = once([entry(1, job="\x1b[2Jx", trouble="a\nb")]).splitlines()
    assert "trouble" in head
    assert "GPU" not in head
    assert "\x1b" not in first


def test_the_screen_draws_what_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """500 runs: a new figure is one cell, and the cursor stays with its run when the order changes."""
    current = [entry(number) for number in range(500)]
    app = TopApp(lambda: list(current), 3600.0)
    changed: list[tuple[str, str]] = []

    async def drive() -> None:
        async with app.run_test(size=(160, 30)) as pilot:
            runs = app.query_one("#runs", DataTable)
            await _until(pilot, lambda: runs.row_count == 500)
            update = runs.update_cell

            def noted(run_id: str, column: str, *cell: Any, **how: Any) -> None:
                changed.append((run_id, column))
                update(run_id, column, *cell, **how)

            monkeypatch.setattr(runs, "update_cell", noted)
            current[7] = current[7]._replace(memory_mib=77.0)
            app._refresh_in_thread()
            await _until(pilot, lambda: changed)
            assert changed == [("run-0007", "memory")]

            await pilot.press("down", "down")
            chosen = app._order[runs.cursor_row]
            current[0] = current[0]._replace(cores=8.0)
            app._refresh_in_thread()
            await _until(pilot, lambda: app._order[0] == "run-0000")
            assert app._order[runs.cursor_row] == chosen

            await pilot.press("s")
            assert app._sorted_by == "history"
            await pilot.press("slash", *"node3")
            await _until(pilot, lambda: runs.row_count == 100)
            await pilot.press("enter")
            await pilot.press("enter")
        assert app.return_value is not None

    asyncio.run(drive())


def test_a_failure_is_shown_and_the_runs_stay() -> None:
    answers: list[Any] = [[entry(1, job="[bold]x")], ReadError("`sentinel-uploader status` failed: [no] spool")]

    def look() -> list[LiveEntry]:
        answer = answers[0] if len(answers) == 1 else answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return list(answer)

    app = TopApp(look, 3600.0)

    async def drive() -> None:
        async with app.run_test(size=(160, 30)) as pilot:
            runs = app.query_one("#runs", DataTable)
            await _until(pilot, lambda: runs.row_count == 1)
            app._refresh_in_thread()
            await _until(pilot, lambda: "failed: [no] spool" in str(app.query_one("#summary").render()))
            assert runs.row_count == 1
            assert str(runs.get_cell("run-0001", "job")) == "[bold]x"
            await pilot.press("slash", "z")
            assert runs.row_count == 0
            await pilot.press("escape")
            assert app.query_one("#filter", Input).value == ""
            await _until(pilot, lambda: runs.row_count == 1)

    asyncio.run(drive())


async def _until(pilot: Any, happened: Any) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        await pilot.pause(0.02)
