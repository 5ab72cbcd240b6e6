"""Tables for a terminal, and text from elsewhere made harmless for it."""

import unicodedata
from collections.abc import Iterable, Sequence

_WIDE = frozenset("WF")


def table(rows: Sequence[Sequence[str]], *, right: Iterable[int] = (), indent: str = "") -> str:
    """Return aligned columns, two spaces between them; `right` are the numbers of right-aligned ones."""
    aligned = frozenset(right)
    plain = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(width, column)) for column in zip(*plain, strict=True)]
    lines = []
    for row in plain:
        cells = []
        for place, (cell, room) in enumerate(zip(row, widths, strict=True)):
            padding = " " * (room - width(cell))
            cells.append(padding + cell if place in aligned else cell + padding)
        lines.append(indent + "  ".join(cells).rstrip() + "\n")
    return "".join(lines)


def printable(text: str) -> str:
    """Replace what would steer a terminal, or turn the direction of writing: names come from anywhere.

    The line ends and tabs of a command become spaces.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else " " if char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def width(text: str) -> int:
    """Return how many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in _WIDE else 1 for char in text
    )


def shortened(text: str, columns: int) -> str:
    """Cut text that is wider than `columns`."""
    text = printable(text)
    if width(text) <= columns:
        return text
    kept = ""
    for char in text:
        if width(kept) + width(char) > columns - 1:
            break
        kept += char
    return kept + "…"
