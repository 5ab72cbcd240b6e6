"""Reads the values of settings from flags, the environment and a TOML file.

A flag wins over the environment, the environment over the TOML file of `--config`, the file over the default. All
values are checked, overridden ones too. The collector parses flags and environment before its job starts
(`parse_flags_and_env`), and the file afterwards (`merge_file`).

The collector imports this before its job starts: `argparse`, and nothing else heavy.
"""

from __future__ import annotations

import argparse
import os

from sentinel_protocol.common.errors import UsageError
from sentinel_protocol.common.settings.model import abbreviate, boolean

TYPE_CHECKING = False  # `typing` itself would delay the job's start by milliseconds
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, NoReturn

    from sentinel_protocol.common.settings.model import Setting

_HELP_COLUMNS = 100
_MIN_HELP_COLUMNS = 50


def build_parser(settings: Sequence[Setting], prog: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with `--config` and the flags of all settings; flags may not be abbreviated."""
    parser = ArgumentParser(prog=prog, description=description, allow_abbrev=False, formatter_class=_formatter)
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings")
    # A parser creates a formatter for each argument to check its metavar, a group does not. This saves 3 ms.
    add_arguments(parser.add_argument_group("settings"), settings)
    return parser


def add_arguments(parser: argparse._ActionsContainer, settings: Sequence[Setting]) -> None:
    """Add the settings' flags to a parser or a group. Values stay text; absent flags are `None`."""
    for setting in settings:
        if setting.flag is None:
            continue
        flags = [setting.short, setting.flag] if setting.short else [setting.flag]
        words = _help(setting)
        if setting.parse is boolean:
            parser.add_argument(*flags, dest=setting.name, action="store_const", const="true", help=words)
            parser.add_argument(
                _negated_flag(setting.flag),
                dest=setting.name,
                action="store_const",
                const="false",
                help=argparse.SUPPRESS,
            )
            continue
        action = "append" if setting.is_multi_valued else "store"
        parser.add_argument(*flags, dest=setting.name, metavar=setting.metavar, action=action, help=words)


class SettingsFile:
    """The file of `--config`, read once because it may be a pipe, and parsed later.

    `content` should be TOML in UTF-8.
    """

    __slots__ = ("content", "path")

    def __init__(self, path: str) -> None:
        """Read the file; raises `UsageError`."""
        self.path = path
        try:
            with open(path, "rb") as opened:
                self.content = opened.read()
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {error.strerror}") from error

    def parse_toml(self) -> dict[str, Any]:
        """Return the keys and values of the file; raises `UsageError`."""
        import tomllib

        try:
            return tomllib.loads(self.content.decode())
        except (ValueError, RecursionError) as error:  # neither TOML nor UTF-8
            raise UsageError(f"{self.path}: is not TOML: {error}") from error


def resolve(
    settings: Sequence[Setting], args: argparse.Namespace, environ: Mapping[str, str], file: str | None
) -> dict[str, Any]:
    """Return the value of every setting by name; raises `UsageError`."""
    given = parse_flags_and_env(settings, args, environ)
    return merge_file(settings, given, None if file is None else SettingsFile(file))


def parse_flags_and_env(
    settings: Sequence[Setting], args: argparse.Namespace, environ: Mapping[str, str]
) -> dict[str, Any]:
    """Return the values of flags and environment by name; an empty variable counts as unset.

    Raises `UsageError` that names the flag or variable and the value.
    """
    given: dict[str, Any] = {}
    for setting in settings:
        if setting.env is not None and (variable := environ.get(setting.env, "").strip()):
            given[setting.name] = setting.parse_value(variable, f"environment variable {setting.env}")
        flagged = getattr(args, setting.name, None)
        if flagged is not None:
            given[setting.name] = setting.parse_value(flagged, str(setting.flag))
    return given


def merge_file(settings: Sequence[Setting], given: Mapping[str, Any], file: SettingsFile | None) -> dict[str, Any]:
    """Return the value of every setting: the one in `given`, else in the file, else the default.

    Raises `UsageError` that names the file, the key and the value.
    """
    merged, errors = merge_file_collecting_errors(settings, given, file)
    if errors:
        raise errors[0]
    return merged


def merge_file_collecting_errors(
    settings: Sequence[Setting], given: Mapping[str, Any], file: SettingsFile | None
) -> tuple[dict[str, Any], list[UsageError]]:
    """`merge_file` that ignores wrong parts of the file, and returns their errors beside the values."""
    by_name = {setting.name: setting for setting in settings}
    merged = {name: setting.default_value() for name, setting in by_name.items()}
    errors = []
    try:
        table = {} if file is None else file.parse_toml()
    except UsageError as error:
        table = {}
        errors.append(error)
    for key, value in table.items():
        try:
            if key not in by_name and isinstance(value, dict):
                raise UsageError(
                    f"unknown table [{key}]: settings stand at the top of the file, without a table, and "
                    "sentinel-collector and sentinel-uploader have a file each"
                )
            if key not in by_name:
                raise UsageError(f"unknown key {key!r} (value {abbreviate(value)}){did_you_mean(key, by_name)}")
            merged[key] = by_name[key].parse_value(value, key)
        except UsageError as error:
            assert file is not None
            errors.append(UsageError(f"{file.path}: {error}"))
    merged.update(given)
    return merged, errors


def did_you_mean(word: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    """Return `; did you mean …?` with the closest known word, `""` if none is close."""
    import difflib

    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.7)
    return f"; did you mean {near[0]!r}?" if near else ""


def _formatter(prog: str) -> argparse.HelpFormatter:
    """Make argparse's formatter with a width; without one it imports `shutil`, for each flag."""
    try:
        width = os.get_terminal_size(1).columns - 2
    except OSError:
        width = _HELP_COLUMNS
    return argparse.HelpFormatter(prog, width=max(width, _MIN_HELP_COLUMNS))


class ArgumentParser(argparse.ArgumentParser):
    """Reports errors in one line, with the closest flag to an unknown one."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        known = [flag for flag in self._option_string_actions if flag.startswith("--")]
        unknown = (word.partition("=")[0].rstrip(":,") for word in message.split() if word.startswith("--"))
        near = next((did_you_mean(flag, known) for flag in unknown if flag not in known), "")
        self.exit(2, f"{self.prog.partition(' ')[0]}: {message}{near}; see `{self.prog} --help`\n")


def _negated_flag(flag: str) -> str:
    return "--" + flag[5:] if flag.startswith("--no-") else "--no-" + flag[2:]


def _help(setting: Setting) -> str:
    default = setting.format_default()
    facts = [f"default {default}"] if default else []
    if setting.env:
        facts.append(f"env {setting.env}")
    words = f"{setting.help} ({'; '.join(facts)})" if facts else setting.help
    return words.replace("%", "%%")
