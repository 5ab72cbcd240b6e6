"""Markdown tables and formatted figures."""

from collections.abc import Sequence

UNKNOWN = "n/a"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; numbers go to the right, the first column to the left."""
    widths = [max(len(line[column]) for line in (header, *rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if not index else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join((first, *others))} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])


def number(value: float | None, digits: int = 2) -> str:
    """Return a number with a fixed number of decimals."""
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def deviation(value: float | None, truth: float, unit: str, scale: float = 1.0) -> str:
    """Return `value - truth`, in per cent and, times `scale`, in `unit`."""
    if value is None:
        return UNKNOWN
    return f"{(value / truth - 1) * 100:+.2f} % ({(value - truth) * scale:+.1f} {unit})".replace("-", "\N{MINUS SIGN}")


def check(text: str, failures: Sequence[str]) -> str:
    """Return one line of a list of checks."""
    return f"- {text}: " + ("holds" if not failures else f"does NOT hold: {'; '.join(failures)}")
