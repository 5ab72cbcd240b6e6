"""The documents and the shell completion say what the commands do."""

import importlib.util
import re
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest
from fakes.process_harness import BIN
from locations import ROOT

from sentinel_uploader.app.settings import SETTINGS as UPLOADER_SETTINGS
from sentinel_uploader.limits import LIMIT_SETTINGS, ClientLimits, limits_of
from sentinel_uploader.telemetry.counters import REJECT_REASONS

README = ROOT / "README.md"
COMPLETIONS = ROOT / "completions"


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_settings_page_and_completion_are_those_of_the_commands() -> None:
    generate = generator()
    files = dict(generate.generated())
    assert len(files) == 7
    for settings in generate.TABLES.values():
        assert all(f"| `{setting.name}` | `{setting.flag}" in files[generate.PAGE] for setting in settings)
    stale = [str(path) for path, content in files.items() if path.read_text(encoding="utf-8") != content]
    assert not stale, "run: make settings"


# Loads a completion file as bash does, and prints what it offers for the last word.
_COMPLETE = """
. "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
function=$(complete -p "$1" | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
"$function" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}" 2>/dev/null
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        (["sentinel-collector", "--acc"], {"--accounting"}),
        (["sentinel-collector", "--accounting", ""], {"auto", "proc", "cgroup"}),
        (["sentinel-collector", "--scope", "c"], {"container"}),
        (["sentinel-collector", "--config", "some"], {"some.toml", "somewhere"}),
        (["sentinel-collector", "--interval", "2", "--state-dir", "some"], {"somewhere"}),
        (["sentinel-collector", "--quiet", "--", "base6"], {"base64"}),
        (["sentinel-collector", "--", "cat", "some."], {"some.toml"}),
        (["sentinel-uploader", "d"], {"drain", "discard", "doctor"}),
        (["sentinel-uploader", "--max-n"], {"--max-name"}),
        (["sentinel-uploader", "drain", "--t"], {"--target", "--timeout"}),
        (["sentinel-uploader", "serve", "--log-format", ""], {"text", "json"}),
        (["sentinel-uploader", "status", "--"], {"--help", "--config", "--spool", "--json"}),
        (["sentinel-uploader", "keys", "re"], {"revoke"}),
        (["sentinel-uploader", "keys", "add", "--re"], {"--replace"}),
        (["sentinel-uploader", "keys", "list", "--keys", "some"], {"somewhere"}),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_bash_completes(tmp_path: Path, line: list[str], offered: set[str]) -> None:
    (tmp_path / "some.toml").touch()
    (tmp_path / "somewhere").mkdir()
    words = ["bash", "--norc", "-c", _COMPLETE, "bash", str(COMPLETIONS / "bash" / line[0]), *line]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert set(done.stdout.split()) == offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_of_other_shells_has_no_syntax_error(shell: str) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    for path in (COMPLETIONS / shell).iterdir():
        subprocess.run([program, "-n", str(path)], check=True)


def test_the_wheel_installs_the_completion() -> None:
    for place in ("bash-completion/completions/{}", "zsh/site-functions/_{}", "fish/vendor_completions.d/{}.fish"):
        for name in ("sentinel-collector", "sentinel-uploader"):
            assert (BIN.parent / "share" / place.format(name)).is_file()


def test_every_limit_is_in_the_operator_s_table_and_every_reason_explained() -> None:
    text = (README.parent / "docs/operation.md").read_text(encoding="utf-8")
    table = text.partition("<!-- limits -->")[2].partition("<!-- end -->")[0]
    lines = table.splitlines()
    for limit, setting in zip(fields(ClientLimits), LIMIT_SETTINGS, strict=True):
        (line,) = [line for line in lines if f"`{setting.flag}`" in line]
        assert f"`{limit.metadata['reason']}`" in line
    assert {setting.name for setting in LIMIT_SETTINGS} <= {setting.name for setting in UPLOADER_SETTINGS}
    for reason in REJECT_REASONS:
        assert f"`{reason}`" in text
    assert set(re.findall(r"`([a-z-]+)`", "".join(line.split("|")[4] for line in lines[4:-1]))) <= set(REJECT_REASONS)


def test_a_limit_s_default_is_that_of_its_setting() -> None:
    defaults = {setting.name: setting.default_value() for setting in LIMIT_SETTINGS}
    assert limits_of(defaults) == ClientLimits()
    written = [(each.parse(each.format_default()), each.default) for each in LIMIT_SETTINGS if each.default is not None]
    assert all(value == default for value, default in written)


DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md")), ROOT / "benchmarks/README.md"]
_PACKAGES = sorted(ROOT.glob("*/sentinel_*"))
DESIGN = ROOT / "docs/architecture.md"
SOURCE_ROOTS = sorted({package.parent for package in _PACKAGES})
_FOLDERS = {package.name for package in _PACKAGES}
_FOLDERS |= {entry.name for entry in ROOT.iterdir() if entry.is_dir() and not entry.name.startswith(".")} | {".ci"}
_SUFFIXES = {".c", ".md", ".py", ".service", ".sh", ".svg", ".toml", ".yaml", ".yml"}


def prose_of(document: Path) -> str:
    """A document without its blocks of code."""
    return re.sub(r"^( *)```.*?^\1```$", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors_of(document: Path) -> set[str]:
    """The anchors that GitHub gives to a document's headings."""
    headings = re.findall(r"^#+ (.*)$", prose_of(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def named_paths(prose: str) -> set[str]:
    """What stands in backticks and looks like a path of this repository."""
    words = {word for word in re.findall(r"`([^`\s]+)`", prose) if not re.search(r"[A-Z]{3,}|[$~:<>{}=…]", word)}
    return {
        word
        for word in words
        if not word.startswith("/")
        and (("/" in word and word.split("/")[0] in _FOLDERS) or Path(word).suffix in _SUFFIXES)
    }


def is_in_repository(path: str, document: Path) -> bool:
    """Whether a path exists, seen from the top, a source root or the document; a bare name may be that of any file."""
    if any(any(base.glob(path)) for base in (ROOT, document.parent, *SOURCE_ROOTS)):
        return True
    return "/" not in path and any(any(ROOT.glob(f"{folder}/**/{path}")) for folder in sorted(_FOLDERS))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_links_exists(document: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", prose_of(document)):
        linked = document.parent / target if target else document
        assert linked.exists(), f"{document.name} links {target}"
        if anchor:
            assert anchor in anchors_of(linked), f"{document.name} links {target}#{anchor}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_make_targets_that_a_document_names_exist(document: Path) -> None:
    prose = prose_of(document)
    stale = sorted(path for path in named_paths(prose) if not is_in_repository(path, document))
    assert not stale, f"{document.name} names files that do not exist"
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)", prose))
    named |= set(re.findall(r"^ *(?:\$ )?make ([a-z-]+)", document.read_text(encoding="utf-8"), re.MULTILINE))
    assert named <= targets


@pytest.mark.parametrize("document", [DESIGN, *sorted(ROOT.glob("docs/design/*.md")), ROOT / "CONTRIBUTING.md"])
def test_classes_and_functions_that_a_document_names_exist(document: Path) -> None:
    code = "".join(
        path.read_text(encoding="utf-8") for root in (*SOURCE_ROOTS, ROOT / "tests") for path in root.rglob("*.py")
    )
    named = re.findall(r"`(?:\w+\.)*([a-z]+(?:_[a-z]+)+|(?:[A-Z][a-z]+){2,})(?:\(.*?\))?`", prose_of(document))
    assert not set(named) - set(re.findall(r"\w+", code))


def test_a_change_is_made_where_the_architecture_says() -> None:
    table = DESIGN.read_text(encoding="utf-8").partition("## Where a change goes")[2].partition("\n## ")[0]
    changes = [re.findall(r"`([^`]+)`", line) for line in table.splitlines() if line.startswith("| **")]
    assert len(changes) == 6
    for words in changes:
        files = [root / word for word in words for root in SOURCE_ROOTS if (root / word).is_file()]
        code = "".join(path.read_text(encoding="utf-8") for path in files)
        names = {word for word in words if word.isidentifier() and word != "report"}
        assert names
        assert not names - set(re.findall(r"\w+", code)), files


@pytest.mark.parametrize(
    ("document", "heading"), [("runbook", "The collector complains"), ("deployment", "A collector is not admitted")]
)
def test_the_collector_prints_the_lines_that_are_explained(document: str, heading: str) -> None:
    text = (ROOT / f"docs/{document}.md").read_text(encoding="utf-8")
    table = re.split(r"\n##", text.partition(f"# {heading}\n")[2])[0]
    lines = [
        line for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for line in re.findall(r"`([^`]+)`", row)
    ]
    assert len(lines) >= 3
    sources = [*ROOT.glob("collector/**/*.py"), *ROOT.glob("collector/**/*.c")]
    code = re.sub(r'"\s+f?"', "", "".join(path.read_text(encoding="utf-8") for path in sources))
    parts = {part.strip() for line in lines for part in line.split("…") if len(part.strip()) > 3}
    assert not {part for part in parts if part not in code}


def test_a_stale_path_in_a_document_is_found() -> None:
    prose = (
        "`sentinel_uploader/gone.py`, `tests/gone`, `gone.yml`, `make test`, `/proc/stat`, `RUN_ID/run.json`, `a.rows`"
    )
    assert named_paths(prose) == {"sentinel_uploader/gone.py", "tests/gone", "gone.yml"}
    assert not any(is_in_repository(path, README) for path in named_paths(prose))
    assert is_in_repository("sentinel_uploader/runs/ports.py", README)
    assert is_in_repository("ports.py", README)
    assert anchors_of(ROOT / "docs/settings.md") >= {"settings", "secrets-and-addresses-of-services"}
