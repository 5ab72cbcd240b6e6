"""The settings of both commands, each described once, in a table.

A flag wins over an environment variable, that over the TOML file that `--config` names, that over the default.
Whatever is given is checked, also where something else wins over it. Flags and environment can be checked before
the file is read (`check_flags_and_environment`, then `merge_file`): the collector starts its job in between.

Secrets are never settings: a wrong value is shown in the error, and flags are seen by everybody on the machine.

Imported before the job starts: `argparse` and nothing else of weight.
"""

from __future__ import annotations

import argparse
import os

from protocol.errors import UsageError

TYPE_CHECKING = False  # `typing` itself would cost milliseconds of the job's start
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, NoReturn

    Parse = Callable[[Any], Any]

INFINITY = float("inf")
_MAX_SHOWN_CHARS = 80
_HELP_COLUMNS = 100
_MIN_HELP_COLUMNS = 50
_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")
_SIZE_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}


class Setting:
    """One row of a command's table.

    `name` is the key in the TOML file and in the result. `parse` turns text (flag, environment) or a TOML value
    into the result's value and raises `ValueError` or `UsageError` with what it must be; `boolean` makes the flag a
    switch, `key_value` makes the setting a map (a table in the file). A `repeatable` setting is a list: flag by
    flag, separated by commas in the environment, a list in the file. `default` is the value itself or the text of
    one (`"2GiB"`); `default_text` describes one that is only known later.
    """

    __slots__ = ("default", "default_text", "env", "flag", "help", "metavar", "name", "parse", "repeatable", "short")

    def __init__(
        self,
        *,
        name: str,
        flag: str | None,
        parse: Parse,
        help: str,  # noqa: A002 - the word that argparse has for it, and a keyword only
        default: Any = None,
        env: str | None = None,
        metavar: str | None = None,
        repeatable: bool = False,
        default_text: str | None = None,
        short: str | None = None,
    ) -> None:
        self.name = name
        self.flag = flag
        self.parse = parse
        self.help = help
        self.default = default
        self.env = env
        self.metavar = metavar
        self.repeatable = repeatable
        self.default_text = default_text
        self.short = short

    @property
    def takes_many(self) -> bool:
        """Whether several values are collected, into a list or a map."""
        return self.repeatable or self.parse is key_value

    def default_value(self) -> Any:
        """A new copy of the default, parsed where it is text."""
        if self.takes_many:
            return _parsed(self, self.default or [], "default")
        return self.parse(self.default) if isinstance(self.default, str) else self.default


def seconds(*, minimum: float = 0.0, maximum: float = INFINITY) -> Parse:
    """A finite number of seconds, fractions allowed."""
    expected = f"a number of seconds{_bounds(minimum, maximum)}"

    def parse(value: Any) -> float:
        number = _number(value, float, expected)
        return float(_within(number, minimum, maximum, expected))

    return parse


def integer(*, minimum: int = 0, maximum: float = INFINITY) -> Parse:
    """A whole number."""
    expected = f"a whole number{_bounds(minimum, maximum)}"

    def parse(value: Any) -> int:
        number = _number("" if isinstance(value, float) else value, int, expected)
        return int(_within(number, minimum, maximum, expected))

    return parse


def size(*, minimum: int = 0, maximum: float = INFINITY) -> Parse:
    """A number of bytes: `2GiB`, `128KiB`, `500MB`, `1.5 GB` or plain bytes. `K`, `M`, `G` alone mean two things."""
    expected = f"a size such as 2GiB, 500MB or a number of bytes{_bounds(minimum, maximum)}"

    def parse(value: Any) -> int:
        written = "" if isinstance(value, float) else str(value).strip()
        digits = written.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
        unit_bytes = _SIZE_UNITS.get(written[len(digits) :].lower())
        if unit_bytes is None:
            raise ValueError(f"must be {expected}")
        number = _number(digits, int if digits.strip().isdecimal() else float, expected)
        return int(_within(number * unit_bytes, minimum, maximum, expected))

    return parse


def choice(*options: str) -> Parse:
    """One of the options."""
    expected = "one of " + ", ".join(options)

    def parse(value: Any) -> str:
        if value not in options:
            raise ValueError(f"must be {expected}")
        return str(value)

    return parse


def text(value: Any) -> str:
    """Text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError("must be text, and not empty")
    return value


def path(value: Any) -> str:
    """A file or directory; `~` is expanded, since no shell has done so in a file."""
    return os.path.expanduser(text(value))


def boolean(value: Any) -> bool:
    """A switch: true or false in the file, also 1/0, yes/no, on/off in text."""
    lowered = value.strip().lower() if isinstance(value, str) else value
    if lowered is True or lowered in _TRUE:
        return True
    if lowered is False or lowered in _FALSE:
        return False
    raise ValueError("must be true or false")


def key_value(value: Any) -> tuple[str, str]:
    """`KEY=VALUE`."""
    key, separator, rest = value.partition("=") if isinstance(value, str) else ("", "", "")
    if not key.strip() or not separator:
        raise ValueError("must be KEY=VALUE")
    return key.strip(), rest


def build_parser(settings: Sequence[Setting], prog: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with `--config` and the flags of all settings; flags may not be abbreviated."""
    parser = _Parser(prog=prog, description=description, allow_abbrev=False, formatter_class=_formatter)
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings")
    # A parser makes a formatter for each argument to check its metavar, a group does not: 3 ms less.
    add_arguments(parser.add_argument_group("settings"), settings)
    return parser


def add_arguments(parser: argparse._ActionsContainer, settings: Sequence[Setting]) -> None:
    """Add the flags to a parser or a group of one. Values stay text; nothing that was not given is in the way."""
    for setting in settings:
        if setting.flag is None:
            continue
        flags = [setting.short, setting.flag] if setting.short else [setting.flag]
        words = _help(setting)
        if setting.parse is boolean:
            parser.add_argument(*flags, dest=setting.name, action="store_const", const="true", help=words)
            parser.add_argument(
                _opposite(setting.flag), dest=setting.name, action="store_const", const="false", help=argparse.SUPPRESS
            )
            continue
        action = "append" if setting.takes_many else "store"
        parser.add_argument(*flags, dest=setting.name, metavar=setting.metavar, action=action, help=words)


class SettingsFile:
    """What `--config` names, read once (it may be a pipe) and understood later.

    `content` is TOML in UTF-8, or what should be.
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

    def table(self) -> dict[str, Any]:
        """Return the keys and values as they are written; raises `UsageError`."""
        import tomllib

        try:
            return tomllib.loads(self.content.decode())
        except (ValueError, RecursionError) as error:  # neither TOML nor UTF-8
            raise UsageError(f"{self.path}: is not TOML: {error}") from error


def resolve(
    settings: Sequence[Setting], args: argparse.Namespace, environ: Mapping[str, str], file: str | None
) -> dict[str, Any]:
    """Return the value of every setting by name; raises `UsageError`."""
    given = check_flags_and_environment(settings, args, environ)
    return merge_file(settings, given, None if file is None else SettingsFile(file))


def check_flags_and_environment(
    settings: Sequence[Setting], args: argparse.Namespace, environ: Mapping[str, str]
) -> dict[str, Any]:
    """Return the values that flags and environment give, by name; an empty variable counts as unset.

    Raises `UsageError` that names the flag or variable and the value.
    """
    given: dict[str, Any] = {}
    for setting in settings:
        if setting.env is not None and (variable := environ.get(setting.env, "").strip()):
            given[setting.name] = _parsed(setting, variable, f"environment variable {setting.env}")
        flagged = getattr(args, setting.name, None)
        if flagged is not None:
            given[setting.name] = _parsed(setting, flagged, str(setting.flag))
    return given


def merge_file(settings: Sequence[Setting], given: Mapping[str, Any], file: SettingsFile | None) -> dict[str, Any]:
    """Return the value of every setting: what is `given`, else what the TOML file says, else the default.

    Raises `UsageError` that names the file, the key and the value.
    """
    merged, errors = merge_what_is_right(settings, given, file)
    if errors:
        raise errors[0]
    return merged


def merge_what_is_right(
    settings: Sequence[Setting], given: Mapping[str, Any], file: SettingsFile | None
) -> tuple[dict[str, Any], list[UsageError]]:
    """`merge_file` for whoever has to go on: what is wrong in the file is left out and returned as errors."""
    by_name = {setting.name: setting for setting in settings}
    merged = {name: setting.default_value() for name, setting in by_name.items()}
    errors = []
    try:
        table = {} if file is None else file.table()
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
                raise UsageError(f"unknown key {key!r} (value {_shown(value)}){nearest(key, by_name)}")
            merged[key] = _parsed(by_name[key], value, key)
        except UsageError as error:
            assert file is not None
            errors.append(UsageError(f"{file.path}: {error}"))
    merged.update(given)
    return merged, errors


def markdown_table(settings: Sequence[Setting]) -> str:
    """Return the table for the documentation, one line a setting, `\\n` after each."""
    lines = ["| key | flag | environment | default | meaning |", "| --- | --- | --- | --- | --- |"]
    for setting in settings:
        flag = setting.flag and " ".join(filter(None, (setting.flag, setting.metavar)))
        default = _default_text(setting)
        cells = (_code(setting.name), _code(flag), _code(setting.env), default or "", setting.help)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _formatter(prog: str) -> argparse.HelpFormatter:
    """The usual formatter, told its width: to find that out by itself it imports `shutil`, for every single flag."""
    try:
        width = os.get_terminal_size(1).columns - 2
    except OSError:
        width = _HELP_COLUMNS
    return argparse.HelpFormatter(prog, width=max(width, _MIN_HELP_COLUMNS))


class _Parser(argparse.ArgumentParser):
    """Names the flag that was probably meant."""

    def error(self, message: str) -> NoReturn:
        known = [flag for flag in self._option_string_actions if flag.startswith("--")]
        unknown = (word.partition("=")[0].rstrip(":,") for word in message.split() if word.startswith("--"))
        near = next((nearest(flag, known) for flag in unknown if flag not in known), "")
        super().error(message + near)


def _parsed(setting: Setting, value: Any, source: str) -> Any:
    """Check one source's value; a list or a map is checked item by item."""
    if not setting.takes_many:
        return _checked(setting.parse, value, source)
    if setting.parse is key_value and isinstance(value, dict):
        return {key: _checked(_map_value, item, f"{source}.{key}") for key, item in value.items()}
    items = [_checked(setting.parse, item, source) for item in _items(value)]
    return dict(items) if setting.parse is key_value else items


def _checked(parse: Parse, value: Any, source: str) -> Any:
    try:
        return parse(value)
    except (ValueError, UsageError) as error:
        raise UsageError(f"{source}: {_shown(value)}: {error}") from error


def _items(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return list(value) if isinstance(value, list | tuple) else [value]


def _map_value(value: Any) -> str:
    """A map's value is text; TOML's other plain values are written as TOML has them."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    raise ValueError("must be text, a number, true or false")


def _number(value: Any, kind: type[int] | type[float], expected: str) -> float:
    is_number = isinstance(value, str | int | float) and not isinstance(value, bool)
    try:
        return kind(value if is_number else "")
    except (ValueError, OverflowError) as error:
        raise ValueError(f"must be {expected}") from error


def _within(number: float, minimum: float, maximum: float, expected: str) -> float:
    """Refuse what is out of bounds, not a number or infinite."""
    if not minimum <= number <= maximum or number == INFINITY:
        raise ValueError(f"must be {expected}")
    return number


def _bounds(minimum: float, maximum: float) -> str:
    if maximum == INFINITY:
        return f", at least {_plain(minimum)}"
    return f" from {_plain(minimum)} to {_plain(maximum)}"


def _plain(number: float) -> str:
    return f"{number:g}" if isinstance(number, float) else str(number)


def _opposite(flag: str) -> str:
    return "--" + flag[5:] if flag.startswith("--no-") else "--no-" + flag[2:]


def nearest(word: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    """Return `; did you mean …?` for the closest of the known words, nothing where none is close."""
    import difflib

    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= _MAX_SHOWN_CHARS else shown[: _MAX_SHOWN_CHARS - 1] + "…"


def _default_text(setting: Setting) -> str | None:
    """The default as a person would write it, `None` where there is none."""
    default = setting.default
    if setting.default_text is not None:
        return setting.default_text
    if isinstance(default, bool):
        return "on" if default else None
    if isinstance(default, int | float):
        return _plain(default)
    if isinstance(default, dict):
        default = [f"{key}={value}" for key, value in default.items()]
    return ", ".join(_items(default or ())) or None


def _help(setting: Setting) -> str:
    default = _default_text(setting)
    facts = [f"default {default}"] if default else []
    if setting.env:
        facts.append(f"env {setting.env}")
    words = f"{setting.help} ({'; '.join(facts)})" if facts else setting.help
    return words.replace("%", "%%")


def _code(word: str | None) -> str:
    return f"`{word}`" if word else ""
