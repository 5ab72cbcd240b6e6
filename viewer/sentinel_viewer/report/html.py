"""HTML from text that may come from anywhere: whatever goes into a page goes through here."""

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from sentinel_viewer.output import units
from sentinel_viewer.output.text_table import printable


class Markup(str):
    """Text that is HTML already; anything else is escaped."""

    __slots__ = ()


def text(value: str) -> Markup:
    """Return the value as text of a page. What turns the direction of writing, or is no character, is replaced."""
    if isinstance(value, Markup):
        return value
    return Markup(escape(printable(value), quote=True))


def element(name: str, *content: str, **attributes: str) -> Markup:
    """Return `<name …>content</name>`; an attribute's trailing underscore is dropped, one inside is a hyphen."""
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"' for key, value in attributes.items() if value
    )
    return Markup(f"<{name}{words}>{joined(content)}</{name}>")


def joined(parts: Iterable[str]) -> Markup:
    """Return the parts one after the other."""
    return Markup("".join(map(text, parts)))


def definition_list(pairs: Iterable[tuple[str, str]], **attributes: str) -> Markup:
    """Return a `<dl>`."""
    items = (element("div", element("dt", name), element("dd", value)) for name, value in pairs)
    return element("dl", *items, **attributes)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str, numbers: Iterable[int] = ()) -> Markup:
    """Return a table; the first cell of each row is its heading, `numbers` are right-aligned columns."""
    right = frozenset(numbers)

    def cell(name: str, place: int, value: str, **attributes: str) -> str:
        return element(name, value, class_="number" if place in right else "", **attributes)

    heading = element("tr", *(Markup(cell("th", place, value, scope="col")) for place, value in enumerate(head)))
    body = [
        element(
            "tr",
            *(
                Markup(cell("th", place, value, scope="row") if place == 0 else cell("td", place, value))
                for place, value in enumerate(row)
            ),
        )
        for row in rows
    ]
    inner = joined(
        (
            element("caption", element("span", caption, class_="hidden-text")),
            element("thead", heading),
            element("tbody", *body),
        )
    )
    return element("div", element("table", inner), class_="scroll")


def moment(stamp: float | None) -> Markup:
    """Return a time, UTC until the page's script has made it the reader's own."""
    if stamp is None:
        return Markup(units.NOTHING)
    return element("time", units.utc_time(stamp), datetime=units.utc_time(stamp))


def json_block(identity: str, value: Any) -> Markup:
    """Return data for a script. No text in it can end the block."""
    content = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return Markup(f'<script type="application/json" id="{text(identity)}">{content}</script>')


def asset(path: str) -> str:
    """Return a file of this package's."""
    return files("sentinel_viewer.report").joinpath(path).read_text(encoding="utf-8")


def page(title: str, body: str, *, scripts: Sequence[str], styles: Sequence[str], is_served: bool = False) -> str:
    """Return a whole document that runs these scripts and styles, and nothing else: the policy has their hashes.

    One that `is_served` may also ask its own server for more.
    """
    directives = [
        "default-src 'none'",
        f"script-src {' '.join(map(_hash, scripts))}",
        f"style-src {' '.join(map(_hash, styles))}",
        "base-uri 'none'",
        *(["form-action 'self'", "connect-src 'self'"] if is_served else ["form-action 'none'"]),
    ]
    head = joined(
        (
            Markup('<meta charset="utf-8">'),
            Markup(f'<meta http-equiv="Content-Security-Policy" content="{escape("; ".join(directives))}">'),
            Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            Markup('<meta name="referrer" content="no-referrer">'),
            element("title", title),
            *(Markup(f"<style>{style}</style>") for style in styles),
        )
    )
    ends = "".join(f"<script>{script}</script>" for script in scripts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{text(body)}\n{ends}</body></html>\n'


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
