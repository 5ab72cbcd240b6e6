"""The README says what the commands do."""

import re
from pathlib import Path

import pytest

from collector.config import SETTINGS as COLLECTOR_SETTINGS
from protocol.settings import Setting, markdown_table
from uploader.config import SETTINGS as UPLOADER_SETTINGS

README = Path(__file__).parent.parent / "README.md"


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


def test_documents_that_are_linked_exist() -> None:
    for document in [README, *README.parent.glob("docs/*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links {target}"
