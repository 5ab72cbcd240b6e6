"""A command's settings: each is declared once, as a row of the command's table.

The flag, the environment variable, the TOML key, the help text, `docs/settings.md` and shell completion all come from
the row. `sentinel_protocol.common.settings.sources` reads the values.

Secrets are never settings: errors quote wrong values, and every user of the machine can see flags.

The collector imports this before its job starts, so it imports nothing heavy.
"""

from __future__ import annotations

import os

from sentinel_protocol.common.errors import UsageError

TYPE_CHECKING = False  # `typing` itself would delay the job's start by milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Parse = Callable[[Any], Any]
else:
    Parse = object

INFINITY = float("inf")
_MAX_QUOTED_CHARS = 80
_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")
_SIZE_UNITS = {"": 1, "b": 1}
for _power, _prefix in enumerate("kmgt", start=1):
    _SIZE_UNITS |= {f"{_prefix}b": 1000**_power, f"{_prefix}ib": 1024**_power}


class Setting:
    """One row of a command's table; `setting` makes one with the usual flag and variable.

    `name` is the TOML key, and the key of the value in the result. `parse` converts the text of a flag or variable, or
    a TOML value; it raises `ValueError` or `UsageError` that says what the value must be. With `boolean` the flag is a
    switch, with `key_value` the setting is a map (a table in the file). A `repeatable` setting is a list: one item for
    each flag, separated by commas in the environment, a list in the file. `metavar`, by default that of the `Parser`,
    also tells shell completion what to offer: files for `FILE`, directories for `DIR`. `default` is a value or its text
    (`"2GiB"`); `default_text` describes a default that is computed later.
    """

    def __init__(
        self,
        *,
        name: str,
        flag: str | None,
        parse: Parse,
        help: str,  # noqa: A002 - argparse's word for it, and keyword-only
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
        self.metavar = metavar or getattr(parse, "metavar", None)
        self.is_multi_valued = repeatable or parse is key_value
        """Whether several values are collected, into a list or a map."""
        self.default_text = default_text
        self.short = short

    def default_value(self) -> Any:
        """Return a new copy of the default, parsed if it is text."""
        if self.is_multi_valued:
            return self.parse_value(self.default or [], "default")
        return self.parse(self.default) if isinstance(self.default, str) else self.default

    def format_default(self) -> str | None:
        """Return the default as a user would write it, `None` without one."""
        default = self.default
        if self.default_text is not None:
            return self.default_text
        if isinstance(default, bool):
            return "on" if default else None
        if isinstance(default, int | float):
            return _format_size(int(default)) if self.metavar == "SIZE" else _format_number(default)
        if isinstance(default, dict):
            default = [f"{key}={value}" for key, value in default.items()]
        return ", ".join(_split_items(default or ())) or None

    def parse_value(self, value: Any, source: str) -> Any:
        """Parse the value that one source gives, a list or a map item by item.

        Raises `UsageError` that names the source and the value.
        """
        if not self.is_multi_valued:
            return _parse_one(self.parse, value, source)
        if self.parse is key_value and isinstance(value, dict):
            return {key: _parse_one(_map_value, item, f"{source}.{key}") for key, item in value.items()}
        items = [_parse_one(self.parse, item, source) for item in _split_items(value)]
        return dict(items) if self.parse is key_value else items


def setting(
    name: str,
    parse: Parse,
    help: str,  # noqa: A002 - argparse's word for it
    *,
    env: str | None = "",
    **facts: Any,
) -> Setting:
    """Declare a setting: `spool_max` has the flag `--spool-max` and the variable `SENTINEL_SPOOL_MAX`.

    `env` names another variable; `None` is for settings of a single call.
    """
    flag = "--" + name.replace("_", "-")
    env = f"SENTINEL_{name.upper()}" if env == "" else env
    return Setting(name=name, flag=flag, parse=parse, help=help, env=env, **facts)


class Parser:
    """A function that parses a value, with the word for the value in help texts."""

    __slots__ = ("_parse", "metavar")

    def __init__(self, metavar: str, parse: Parse) -> None:
        self.metavar = metavar
        self._parse = parse

    def __call__(self, value: Any) -> Any:
        """Return the parsed value; raises `ValueError` that says what the value must be."""
        return self._parse(value)


def seconds(*, minimum: float = 0.0, maximum: float = INFINITY) -> Parser:
    """A finite number of seconds, fractions allowed."""
    return _float_parser("SECONDS", "a number of seconds", minimum, maximum)


def percent(*, minimum: float = 0.0, maximum: float = 100.0) -> Parser:
    """A percentage without its sign, fractions allowed."""
    return _float_parser("PERCENT", "a percentage", minimum, maximum)


def integer(*, minimum: int = 0, maximum: float = INFINITY) -> Parser:
    """A whole number."""
    expected = f"a whole number{_format_bounds(minimum, maximum)}"

    def parse(value: Any) -> int:
        number = _number("" if isinstance(value, float) else value, int, expected)
        return int(_check_range(number, minimum, maximum, expected))

    return Parser("N", parse)


def size(*, minimum: int = 0, maximum: float = INFINITY) -> Parser:
    """A number of bytes: `2GiB`, `128KiB`, `500MB`, `1.5 GB` or plain bytes.

    `K`, `M` and `G` alone are refused: some programs count them by 1000, others by 1024.
    """
    expected = f"a size such as 2GiB, 500MB or a number of bytes{_format_bounds(minimum, maximum)}"

    def parse(value: Any) -> int:
        written = "" if isinstance(value, float) else str(value).strip()
        digits = written.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
        unit_bytes = _SIZE_UNITS.get(written[len(digits) :].lower())
        if unit_bytes is None:
            raise ValueError(f"must be {expected}")
        number = _number(digits, int if digits.strip().isdecimal() else float, expected)
        return int(_check_range(number * unit_bytes, minimum, maximum, expected))

    return Parser("SIZE", parse)


class choice:  # noqa: N801 - stands in tables beside `seconds` and `size`
    """One of the options."""

    __slots__ = ("options",)

    def __init__(self, *options: str) -> None:
        self.options = options

    def __call__(self, value: Any) -> str:
        """Return the value; raises `ValueError` if it is no option."""
        if value not in self.options:
            raise ValueError("must be one of " + ", ".join(self.options))
        return str(value)


def text(value: Any) -> str:
    """Text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError("must be text, and not empty")
    return value


def path(value: Any) -> str:
    """A file or directory; `~` is expanded here because no shell expands it in a file."""
    return os.path.expanduser(text(value))


directory = Parser("DIR", path)


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


def abbreviate(value: Any) -> str:
    """Return a wrong value for an error message, cut if it is long."""
    quoted = repr(value)
    return quoted if len(quoted) <= _MAX_QUOTED_CHARS else quoted[: _MAX_QUOTED_CHARS - 1] + "…"


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
    """Return a map's value as text; booleans and numbers are written as in TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    raise ValueError("must be text, a number, true or false")


def _float_parser(metavar: str, kind: str, minimum: float, maximum: float) -> Parser:
    expected = f"{kind}{_format_bounds(minimum, maximum)}"
    return Parser(metavar, lambda value: _check_range(_number(value, float, expected), minimum, maximum, expected))


def _number(value: Any, kind: type[int] | type[float], expected: str) -> float:
    is_number = isinstance(value, str | int | float) and not isinstance(value, bool)
    try:
        return kind(value if is_number else "")
    except (ValueError, OverflowError) as error:
        raise ValueError(f"must be {expected}") from error


def _check_range(number: float, minimum: float, maximum: float, expected: str) -> float:
    """Return the number; raises `ValueError` if it is out of bounds, infinite or NaN."""
    if not minimum <= number <= maximum or number == INFINITY:
        raise ValueError(f"must be {expected}")
    return number


def _format_bounds(minimum: float, maximum: float) -> str:
    if maximum == INFINITY:
        return f", at least {_format_number(minimum)}"
    return f" from {_format_number(minimum)} to {_format_number(maximum)}"


def _format_number(number: float) -> str:
    return f"{number:g}" if isinstance(number, float) else str(number)


def _format_size(size_bytes: int) -> str:
    for unit in ("GiB", "MiB", "KiB"):
        if size_bytes % _SIZE_UNITS[unit.lower()] == 0:
            return f"{size_bytes // _SIZE_UNITS[unit.lower()]}{unit}"
    return str(size_bytes)
