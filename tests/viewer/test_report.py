"""The report as a file: everything is in it, nothing is asked for, and the rows in it are those of the run."""

import base64
import hashlib
import json
import re
import struct
import zlib
from array import array
from html import unescape
from math import floor, isnan
from pathlib import Path
from typing import Any

import pytest
from fakes.delivered_runs import busy_day, packed, sample, write_run
from fakes.process_harness import BIN, Home
from hypothesis import given
from hypothesis import strategies as st

import sentinel_viewer.report
from sentinel_viewer.cli.report import file_name, page_of
from sentinel_viewer.report.html import Markup, element
from sentinel_viewer.report.html import text as escaped
from sentinel_viewer.report.packing import pack_rows
from sentinel_viewer.rows.reader import parse_rows
from sentinel_viewer.rows.table import Rows
from sentinel_viewer.runs.naming import Library

STREAM = str(BIN / "sentinel-stream")
VENDORED = Path(str(sentinel_viewer.report.__file__)).parent / "vendor" / "uplot"
HOSTILE = "</script><script>alert(1)</script>\u202e"


def unpacked(rows: Rows) -> dict[str, list[float | None]]:
    """What `assets/data.js` makes of the packed rows."""
    described, block = pack_rows(rows)
    content = zlib.decompress(base64.b85decode(block.encode().translate(bytes.maketrans(b",:.", b"<>&"))))
    count, at = len(rows), 0
    columns: dict[str, list[float | None]] = {}
    for spec in described:
        mask = [True] * count
        if "known" in spec:
            mask = [byte == 1 for byte in content[at : at + count]]
            at += count
        known = spec.get("known", count)
        width = 8 if spec.get("raw") else spec["width"]
        planes = content[at : at + width * known]
        at += width * known
        numbers = iter(
            _values(spec, [planes[place * known : (place + 1) * known] for place in range(width)], columns, rows)
        )
        columns[spec["name"]] = [next(numbers) if is_known else None for is_known in mask]
    assert at == len(content)
    return columns


def _values(spec: dict[str, Any], planes: list[bytes], columns: dict[str, list[Any]], rows: Rows) -> list[float]:
    words = [bytes(word) for word in zip(*planes, strict=True)]
    if spec.get("raw"):
        return [struct.unpack("<d", word)[0] for word in words]
    coded = [int.from_bytes(word, "little") for word in words]
    numbers = [-(code + 1) // 2 if code % 2 else code // 2 for code in coded]
    if spec["delta"]:
        for place in range(1, len(numbers)):
            numbers[place] += numbers[place - 1]
    scale = 10 ** spec["decimals"]
    if spec.get("expected"):
        scope = spec["name"].removesuffix("_cpu_usage")
        times = columns["timestamp"]
        for place in range(len(numbers)):
            length = times[place] - times[place - 1] if place else rows.interval_s
            seconds = columns[f"{scope}_utime"][place] + columns[f"{scope}_stime"][place]
            numbers[place] += floor((seconds / length if length > 0 else 0.0) * scale + 0.5)
    return [number / scale for number in numbers]


def assert_same(rows: Rows) -> None:
    for name, values in unpacked(rows).items():
        assert values == [None if isnan(value) else value for value in rows.columns[name]], name


def test_packed_rows_are_the_rows() -> None:
    assert_same(parse_rows([("0001.csv.gz", packed(busy_day(3000)))], 1.0))


@given(
    st.lists(
        st.tuples(
            st.one_of(
                st.just(float("nan")), st.floats(-1e15, 1e15), st.integers(-(10**6), 10**6).map(lambda n: n / 1000)
            ),
            st.one_of(st.just(float("nan")), st.integers(0, 2**63).map(float)),
            st.floats(0, 1000),
        ),
        min_size=1,
        max_size=40,
    )
)
def test_whatever_the_values_are(values: list[tuple[float, float, float]]) -> None:
    columns = {
        "timestamp": array("d", [1e9 + place for place in range(len(values))]),
        "system_utime": array("d", [value[2] for value in values]),
        "system_stime": array("d", [value[2] for value in values]),
        "system_cpu_usage": array("d", [round(value[2], 4) for value in values]),
        "one": array("d", [value[0] for value in values]),
        "other": array("d", [value[1] for value in values]),
    }
    assert_same(Rows(columns, integers=["other"], interval_s=1.0))


def page(tmp_path: Path, *names: str) -> str:
    return page_of(Library(str(tmp_path / "runs"), {"HOME": str(tmp_path)}), names)[1]


def test_a_page_runs_what_its_policy_names_and_nothing_else(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "one", [sample(second) for second in range(60)], job="train")
    text = page(tmp_path, "one")
    policy = unescape(re.findall(r'Content-Security-Policy" content="([^"]*)"', text)[0])
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    executed = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert len(executed) == 4
    for content in (*executed, *styles):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'" in policy
    assert policy.count("sha256-") == len(executed) + len(styles)
    # No attribute of an element is a script or a style, and nothing is loaded.
    markup = re.sub(r"<(script|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    assert not re.search(r"\s(on\w+|style|src|href|action)=", markup)


@pytest.mark.parametrize("where", ["job", "tag", "host", "id", "remark"])
def test_names_from_elsewhere_stay_text(where: str, tmp_path: Path) -> None:
    rows = [sample(second) for second in range(10)]
    fields: dict[str, dict[str, Any]] = {
        "job": {"metadata": {"job_name": HOSTILE}},
        "tag": {"metadata": {"tags": {HOSTILE: HOSTILE}}},
        "host": {"host": {"host_hostname": HOSTILE}},
        "id": {"run_id": HOSTILE},
    }
    description = write_run(tmp_path / "runs", "one", rows, **fields.get(where, {})) / "run.json"
    if where == "remark":
        objects = json.dumps(["0001.csv.gz", HOSTILE.replace("/", "")])
        description.write_text(description.read_text().replace('["0001.csv.gz"]', objects))
    write_run(tmp_path / "runs", "two", rows)
    for names in (["latest~1"], ["two", "latest~1"]):
        text = page(tmp_path, *names)
        assert "<script>alert" not in text
        assert "\u202e" not in text
        assert "alert(1)" in text


def test_text_is_escaped_once() -> None:
    assert escaped("<b>&\"'") == "&lt;b&gt;&amp;&quot;&#x27;"
    assert element("p", Markup("<b>x</b>"), "<i>", title='"') == '<p title="&quot;"><b>x</b>&lt;i&gt;</p>'


def test_the_charts_library_is_the_one_that_was_published() -> None:
    lines = (VENDORED / "SHA256SUMS").read_text(encoding="ascii").splitlines()
    assert len(lines) == 3
    for line in lines:
        digest, name = line.split()
        assert hashlib.sha256((VENDORED / name).read_bytes()).hexdigest() == digest, name


@pytest.mark.parametrize(
    ("names", "file"),
    [
        (["20261130-1"], "20261130-1.html"),
        (["a", "b"], "a-b.html"),
        (["../../etc/passwd"], "etc_passwd.html"),
        (["…/\x00"], "run.html"),
        (["x" * 500], "x" * 100 + ".html"),
    ],
)
def test_the_name_of_a_report(names: list[str], file: str) -> None:
    assert file_name(names) == file


def test_a_report_is_written_and_opened(home: Home) -> None:
    write_run(home.runs, "one", [sample(second) for second in range(60)], job="train")
    write_run(home.runs, "two", [sample(5000 + second) for second in range(60)], job="train")
    done = home.run(STREAM, "report", "train", "-o", "run.html")
    assert done.returncode == 0, done.stderr
    assert (home.directory / "run.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert done.stdout == ""
    home.run(STREAM, "report")
    assert (home.directory / "two.html").exists()
    assert "</html>" in home.run(STREAM, "report", "one", "two", "-o", "-").stdout
    browser = home.directory / "browser"
    browser.write_text('#!/bin/sh\necho "$1" > opened\n')
    browser.chmod(0o755)
    done = home.run(STREAM, "open", "one", env={"BROWSER": str(browser)})
    assert done.returncode == 0, done.stderr
    opened = (home.directory / "opened").read_text().strip()
    assert opened.endswith("/.cache/sentinel-stream/reports/one.html")
    done = home.run(STREAM, "report", "one", "-o", "/nowhere/run.html")
    assert done.returncode == 2
    assert "cannot write /nowhere/run.html" in done.stderr
