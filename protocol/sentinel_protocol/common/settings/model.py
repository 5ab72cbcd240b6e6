"""What a command's settings are: each described once, in a table, with what its value may be.

Where values come from: `sentinel_protocol.common.settings.sources`.

Secrets are never settings: a wrong value is shown in the error, and flags are seen by everybody on the machine.

Imported before the job starts: nothing of weight.
"""

from __future__ import annotations

import os

from sentinel_protocol.common.errors import UsageError

TYPE_CHECKING = False  # `typing` itself would cost milliseconds of the job's start
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    Parse = Callable[[Any], Any]

INFINITY = float("inf")
_MAX_SHOWN_CHARS = 80
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
    def is_multi_valued(self) -> bool:
        """Whether several values are collected, into a list or a map."""
        return self.repeatable or self.parse is key_value

    def default_value(self) -> Any:
        """A new copy of the default, parsed where it is text."""
        if self.is_multi_valued:
            return self.parse_value(self.default or [], "default")
        return self.parse(self.default) if isinstance(self.default, str) else self.default

    def format_default(self) -> str | None:
        """Return the default as a person would write it, `None` where there is none."""
        default = self.default
        if self.default_text is not None:
            return self.default_text
        if isinstance(default, bool):
            return "on" if default else None
        if isinstance(default, int | float):
            return _format_number(default)
        if isinstance(default, dict):
            default = [f"{key}={value}" for key, value in default.items()]
        return ", ".join(_split_items(default or ())) or None

    def parse_value(self, value: Any, source: str) -> Any:
        """Parse what one source says, a list or a map item by item.

        Raises `UsageError` that names the source and the value.
        """
        if not self.is_multi_valued:
            return _parse_one(self.parse, value, source)
        if self.parse is key_value and isinstance(value, dict):
            return {key: _parse_one(_map_value, item, f"{source}.{key}") for key, item in value.items()}
        items = [_parse_one(self.parse, item, source) for item in _split_items(value)]
        return dict(items) if self.parse is key_value else items


def seconds(*, minimum: float = 0.0, maximum: float = INFINITY) -> Parse:
    """A finite number of seconds, fractions allowed."""
    return _float_parser("a number of seconds", minimum, maximum)


def percent(*, minimum: float = 0.0, maximum: float = 100.0) -> Parse:
    """A percentage without its sign, fractions allowed."""
    return _float_parser("a percentage", minimum, maximum)


def integer(*, minimum: int = 0, maximum: float = INFINITY) -> Parse:
    """A whole number."""
    expected = f"a whole number{_bounds(minimum, maximum)}"

    def parse(value: Any) -> int:
        number = _number("" if isinstance(value, float) else value, int, expected)
        return int(_check_range(number, minimum, maximum, expected))

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
        return int(_check_range(number * unit_bytes, minimum, maximum, expected))

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


def markdown_table(settings: Sequence[Setting]) -> str:
    """Return the table for the documentation, one line a setting, `\\n` after each."""
    lines = ["| key | flag | environment | default | meaning |", "| --- | --- | --- | --- | --- |"]
    for setting in settings:
        flag = setting.flag and " ".join(filter(None, (setting.flag, setting.metavar)))
        default = setting.format_default()
        cells = (_code(setting.name), _code(flag), _code(setting.env), default or "", setting.help)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def abbreviate(value: Any) -> str:
    """Return a wrong value for an error, cut where it is long."""
    words = repr(value)
    return words if len(words) <= _MAX_SHOWN_CHARS else words[: _MAX_SHOWN_CHARS - 1] + "…"


def _parse_one(parse: Parse, value: Any, source: str) -> Any:
    try:
        return parse(value)
    except (ValueError, UsageError) as error:
        raise UsageError(f"{source}: {abbreviate(value)}: {error}") from error


def _split_items(value: Any) -> list[Any]:
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


def _float_parser(kind: str, minimum: float, maximum: float) -> Parse:
    expected = f"{kind}{_bounds(minimum, maximum)}"

    def parse(value: Any) -> float:
        number = _number(value, float, expected)
        return float(_check_range(number, minimum, maximum, expected))

    return parse


def _number(value: Any, kind: type[int] | type[float], expected: str) -> float:
    is_number = isinstance(value, str | int | float) and not isinstance(value, bool)
    try:
        return kind(value if is_number else "")
    except (ValueError, OverflowError) as error:
        raise ValueError(f"must be {expected}") from error


def _check_range(number: float, minimum: float, maximum: float, expected: str) -> float:
    """Refuse what is out of bounds, not a number or infinite."""
    if not minimum <= number <= maximum or number == INFINITY:
        raise ValueError(f"must be {expected}")
    return number


def _bounds(minimum: float, maximum: float) -> str:
    if maximum == INFINITY:
        return f", at least {_format_number(minimum)}"
    return f" from {_format_number(minimum)} to {_format_number(maximum)}"


def _format_number(number: float) -> str:
    return f"{number:g}" if isinstance(number, float) else str(number)


def _code(word: str | None) -> str:
    return f"`{word}`" if word else ""
