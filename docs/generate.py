"""Writes what comes from the commands' settings: the tables of `docs/settings.md`, and the files of shell completion.

`make settings` runs it. A test compares its result with the repository.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import shtab

from sentinel_collector import cli as collector
from sentinel_collector.settings import SETTINGS as COLLECTOR_SETTINGS
from sentinel_protocol.common.settings.model import Setting, choice
from sentinel_uploader.app.settings import SETTINGS as UPLOADER_SETTINGS
from sentinel_uploader.cli import main as uploader

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/settings.md"
TABLES = {"collector": COLLECTOR_SETTINGS, "uploader": UPLOADER_SETTINGS}
COMPLETIONS = {"bash": "completions/bash/{}", "zsh": "completions/zsh/_{}", "fish": "completions/fish/{}.fish"}
_JOB = {"bash": "_sentinel_job", "zsh": "_sentinel_job", "fish": "(__fish_complete_subcommand)"}
_PREAMBLE = {
    "bash": '_sentinel_job() {\n  compgen -A command -- "$1"\n  compgen -f -- "$1"\n}',
    "zsh": '_sentinel_job() {\n  _alternative "commands:command:_command_names -e" "files:file:_files"\n}',
}
"""Functions that offer the words behind the collector's `--`: commands and files."""


def markdown_table(settings: Sequence[Setting]) -> str:
    """Return the table for the documentation, one line a setting, `\\n` after each."""
    lines = ["| key | flag | environment | default | meaning |", "| --- | --- | --- | --- | --- |"]
    for each in settings:
        flag = each.flag and " ".join(filter(None, (each.flag, each.metavar)))
        code = [f"`{word}`" if word else "" for word in (each.name, flag, each.env)]
        cells = (*code, each.format_default() or "", each.help)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def generated() -> Iterator[tuple[Path, str]]:
    """Yield each generated file with its content."""
    text = PAGE.read_text(encoding="utf-8")
    for name, settings in TABLES.items():
        before, begin, rest = text.partition(f"<!-- {name} settings -->\n")
        _, end, after = rest.partition("<!-- end -->")
        text = "".join((before, begin, markdown_table(settings), end, after))
    yield PAGE, text
    for shell, pattern in COMPLETIONS.items():
        for parser, preamble in ((_collector_parser(), _PREAMBLE.get(shell, "")), (_uploader_parser(), "")):
            script = shtab.complete(parser, shell, preamble=preamble)
            yield ROOT / pattern.format(parser.prog), re.sub(r" +$", "", script, flags=re.MULTILINE).strip() + "\n"


def _collector_parser() -> argparse.ArgumentParser:
    parser = collector.make_parser()
    _describe_values(parser, COLLECTOR_SETTINGS)
    job: Any = parser.add_argument("command", nargs=argparse.REMAINDER)
    job.complete = _JOB
    return parser


def _uploader_parser() -> argparse.ArgumentParser:
    parser = uploader.default_parser()
    commands = parser.add_subparsers()
    for name, command in uploader.COMMANDS.items():
        made = command.make_parser(name, command.summary)
        commands.add_parser(name, parents=[made], add_help=False, help=command.summary)
    _describe_values(parser, UPLOADER_SETTINGS)
    return parser


def _describe_values(parser: argparse.ArgumentParser, settings: Sequence[Setting]) -> None:
    """Tell shtab what to offer as the value of each flag: words, files or directories."""
    by_name = {each.name: each for each in settings}
    action: Any
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to its flags
        if isinstance(action.choices, dict):
            for command in action.choices.values():
                _describe_values(command, settings)
            continue
        if action.dest in by_name and action.help is not argparse.SUPPRESS:
            setting = by_name[action.dest]
            action.help = setting.help.replace("%", "%%")
            if isinstance(setting.parse, choice):
                action.choices = setting.parse.options
        if "FILE" in str(action.metavar):
            action.complete = shtab.FILE
        elif "DIR" in str(action.metavar):
            action.complete = shtab.DIRECTORY


if __name__ == "__main__":
    for path, content in generated():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
