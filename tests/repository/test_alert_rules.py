"""Alert rules, dashboard and documents name what a running uploader exports, and nothing else."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser
import pytest
import yaml
from fakes.http_probe_client import HttpProbeClient
from fakes.process_harness import Home, wait_until
from fakes.raw_collector import collectors_of
from fakes.uploader_harness import hello, samples
from locations import ROOT

from sentinel_protocol.wire.messages import Ack, RejectCode, Welcome
from sentinel_uploader.telemetry.counters import REJECT_REASONS

ALERTS = ROOT / "docs/deployment/prometheus/alerts.yml"
ALERTS_TEST = ROOT / "docs/deployment/prometheus/alerts_test.yml"
DASHBOARD = ROOT / "docs/deployment/grafana/uploader.json"
OPERATION = ROOT / "docs/operation.md"
RUNBOOK = ROOT / "docs/runbook.md"
PREFIX = "sentinel_uploader_"
OF_THE_SCRAPE = {"job", "instance"}
_TYPES = {"counter", "gauge", "histogram"}


class Metric(NamedTuple):
    """One exported family: its type, the labels that its samples have, and its description."""

    kind: str
    labels: frozenset[str]
    text: str


@pytest.fixture
def exported(home: Home) -> Iterator[str]:
    """What `/metrics` of a running uploader says after a client has sent a row."""
    home.start_uploader("--http", "0")
    probe = HttpProbeClient(home.directory / "uploader.log")
    with collectors_of(home.address) as collectors:
        collector = collectors.connect()
        collector.say(hello(), samples(1, 1))
        collector.hear(Welcome)
        collector.hear(Ack)
        wait_until(lambda: "client_clock_offset_seconds{" in probe.ask("/metrics").text, "the client is seen")
        yield probe.ask("/metrics").text


def families(exposition: str) -> dict[str, Metric]:
    """Return what is exported by name, as it is queried (`_total`; a histogram without its suffixes)."""
    found = {}
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", exposition, re.MULTILINE):
        (text,) = re.findall(rf"^# HELP {name} (.*)$", exposition, re.MULTILINE)
        labels = re.findall(rf"^{name}(?:_bucket)?\{{(.*)\}} ", exposition, re.MULTILINE)
        names = {label for line in labels for label in re.findall(r'(\w+)="', line)}
        found[name] = Metric(kind, frozenset(names - {"le"}), text)
    return found


def documented() -> dict[str, Metric]:
    """Return the same from the table in the documents."""
    table = re.search(r"<!-- metrics -->\n(.*?)<!-- end -->", OPERATION.read_text(encoding="utf-8"), re.DOTALL)
    assert table is not None
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table[1].splitlines()[2:]]
    names = [name.strip("`") for name, *_ in rows]
    return {
        name if name.startswith("process_") else PREFIX + name: Metric(
            kind, frozenset(re.findall(r"`(\w+)`", labels)), text
        )
        for name, (_, kind, labels, text) in zip(names, rows, strict=True)
    }


def alert_rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    board: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = board["panels"]
    return found


def expressions() -> dict[str, str]:
    """Return every expression by where it stands, with Grafana's variables filled in."""
    found = {rule["alert"]: rule["expr"] for rule in alert_rules()}
    for panel in panels():
        for target in panel["targets"]:
            text = target["expr"].replace("$instance", ".*").replace("$__rate_interval", "5m")
            assert "$" not in text
            found[f"panel {panel['title']} {target['refId']}"] = text
    return found


def selectors(expression: str) -> list[Any]:
    """Return the vector selectors of an expression; raises `ValueError` for what is not PromQL, or has wrong types."""
    found: list[Any] = []

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.MatrixSelector):
            found.append(node.vector_selector)
        elif isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        return True

    promql_parser.walk(promql_parser.parse(expression), pre_visit=visit)
    return found


def test_table_has_what_is_exported(exported: str) -> None:
    table = documented()
    live = families(exported)
    assert set(table) == set(live)
    for name, metric in live.items():
        assert (table[name].kind, table[name].text) == (metric.kind, metric.text), name
        # Some label sets have no sample yet.
        assert metric.labels <= table[name].labels, name
        assert metric.kind in _TYPES


def test_every_expression_asks_for_what_is_exported(exported: str) -> None:
    live = families(exported)
    table = documented()
    queried = {f"{name}{suffix}": name for name, metric in live.items() if metric.kind == "histogram"
               for suffix in ("_bucket", "_sum", "_count")}  # fmt: skip
    queried |= {name: name for name, metric in live.items() if metric.kind != "histogram"}
    asked: set[str] = set()
    for where, expression in expressions().items():
        found = selectors(expression)
        assert found, where
        for selector in found:
            labels = {matcher.name for matcher in selector.matchers.matchers}
            if selector.name == "up":
                assert labels <= OF_THE_SCRAPE, where
                continue
            assert selector.name in queried, where
            asked.add(queried[selector.name])
            assert labels <= table[queried[selector.name]].labels | OF_THE_SCRAPE | {"le"}, where
    # And nobody exports what nobody looks at.
    unseen = {name for name in live if name not in asked and name.startswith(PREFIX)}
    assert not unseen - {f"{PREFIX}build_info"}


def test_labels_that_are_grouped_by_and_shown_exist() -> None:
    known = {label for metric in documented().values() for label in metric.labels} | OF_THE_SCRAPE | {"le"}
    for where, expression in expressions().items():
        for names in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
            assert set(re.split(r",\s*", names)) <= known, where
    for text in [target["legendFormat"] for panel in panels() for target in panel["targets"]]:
        assert set(re.findall(r"\{\{(\w+)\}\}", text)) <= known, text
    for rule in alert_rules():
        for text in rule["annotations"].values():
            assert set(re.findall(r"\$labels\.(\w+)", text)) <= known, rule["alert"]


def test_every_reason_of_a_rejection_is_known_and_explained() -> None:
    written = OPERATION.read_text(encoding="utf-8")
    assert [reason for reason in (*RejectCode, *REJECT_REASONS) if f"`{reason}`" not in written] == []
    used = {
        reason
        for package in ("protocol", "uploader")
        for path in (ROOT / package).rglob("*.py")
        for reason in re.findall(
            r'(?:rejected\.add\([^,)]+, |on_rejected\()"([^"]+)"', path.read_text(encoding="utf-8")
        )
    }
    assert used
    assert used <= {*REJECT_REASONS}


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    rules = alert_rules()
    names = [rule["alert"] for rule in rules]
    assert len(names) == len(set(names))
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"]["summary"]
    told = re.findall(r"^\| `(SentinelUploader\w+)` \|", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE)
    assert told == names


def test_panels_have_their_own_places_and_one_data_source() -> None:
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    assert {variable["name"] for variable in board["templating"]["list"]} == {"datasource", "instance"}
    assert len({panel["id"] for panel in panels()}) == len(panels()) == len({panel["title"] for panel in panels()})
    for panel in panels():
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
    for first, second in combinations([panel["gridPos"] for panel in panels()], 2):
        apart = any(
            one[at] + one[size] <= other[at]
            for at, size in (("x", "w"), ("y", "h"))
            for one, other in ((first, second), (second, first))
        )
        assert apart, (first, second)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (of Prometheus) is not installed")
def test_prometheus_own_tool_agrees(exported: str, tmp_path: Path) -> None:
    for words in (["check", "rules", str(ALERTS)], ["test", "rules", str(ALERTS_TEST)]):
        done = subprocess.run(["promtool", *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run(["promtool", "check", "metrics"], input=exported, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
