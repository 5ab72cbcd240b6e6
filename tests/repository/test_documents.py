"""The README says what the commands do."""

import re

import pytest
from locations import ROOT

from sentinel_collector.settings import SETTINGS as COLLECTOR_SETTINGS
from sentinel_protocol.common.settings.model import Setting, markdown_table
from sentinel_uploader.app.limit_settings import LIMIT_SETTINGS
from sentinel_uploader.app.settings import SETTINGS as UPLOADER_SETTINGS
from sentinel_uploader.limits import ClientLimits
from sentinel_uploader.telemetry.counters import REJECT_REASONS

README = ROOT / "README.md"


@pytest.mark.parametrize(
    ("name", "settings"),
    [("collector", COLLECTOR_SETTINGS), ("uploader", UPLOADER_SETTINGS)],
    ids=["collector", "uploader"],
)
def test_configuration_tables_are_those_of_the_commands(name: str, settings: tuple[Setting, ...]) -> None:
    written = re.search(rf"<!-- {name} settings -->\n(.*?)<!-- end -->", README.read_text(encoding="utf-8"), re.DOTALL)
    assert written is not None
    # To mend it: put the output of `markdown_table` between the two marks.
    assert written[1] == markdown_table(settings)


def test_every_limit_is_in_the_operator_s_table_and_every_reason_explained() -> None:
    text = (README.parent / "docs/operation.md").read_text(encoding="utf-8")
    table = text.partition("<!-- limits -->")[2].partition("<!-- end -->")[0]
    for setting in LIMIT_SETTINGS:
        assert f"`{setting.flag}`" in table
    for reason in REJECT_REASONS:
        assert f"`{reason}`" in text
    assert set(re.findall(r"`([a-z-]+)`", "".join(line.split("|")[4] for line in table.splitlines()[4:-1]))) <= set(
        REJECT_REASONS
    )
    assert {setting.name for setting in LIMIT_SETTINGS} == set(ClientLimits.__struct_fields__)


def test_documents_that_are_linked_exist() -> None:
    for document in [README, *README.parent.glob("docs/*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links {target}"
