"""Numbers and times as people write them; unknown is `-`."""

from datetime import UTC, datetime
from math import isfinite

NOTHING = "-"
_BYTES = ("B", "kB", "MB", "GB", "TB", "PB")
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86_400


def duration(seconds: float | None) -> str:
    """`0.4 s`, `12.3 s`, `4 min 05 s`, `3 h 12 min`, `2 d 04 h`."""
    if seconds is None:
        return NOTHING
    if seconds < _MINUTE_S - 0.05:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < _HOUR_S:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < _DAY_S:
        return f"{whole // _HOUR_S} h {whole % _HOUR_S // 60:02} min"
    return f"{whole // _DAY_S} d {whole % _DAY_S // _HOUR_S:02} h"


def mebibytes(value: float | None) -> str:
    """`140 MiB`, `2.25 GiB`."""
    if value is None:
        return NOTHING
    if value >= 1024:
        return f"{value / 1024:.3g} GiB" if value < 1024 * 1000 else f"{value / 1024 / 1024:.3g} TiB"
    return f"{value:.0f} MiB" if value >= 10 else f"{value:.1f} MiB"


def size(value: float | None) -> str:
    """`640 B`, `1.5 MB`: powers of 1,000."""
    if value is None:
        return NOTHING
    for unit in _BYTES:
        if value < 999.5 or unit == _BYTES[-1]:
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def number(value: float | None, digits: int = 3) -> str:
    """Up to `digits` significant digits, thousands whole: `0.034`, `1.43`, `18500`."""
    if value is None or not isfinite(value):
        return NOTHING
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def cores(value: float | None) -> str:
    """Cores or GPUs in use: `0.034`, `1.43`; a thousandth is the least that is worth telling."""
    return NOTHING if value is None or not isfinite(value) else f"{value:.3f}" if 0 < value < 0.1 else f"{value:.2f}"


def change(percent: float) -> str:
    """A difference in percent; where it is beyond all measure, how many times as much: `+12.3 %`, `x 31`."""
    return f"{percent:+.1f} %" if percent < 400 else f"x {1 + percent / 100:.0f}"


def quantity(value: float | None, unit: str, *, per_second: bool = False) -> str:
    """Return a value of a column's unit (`cores`, `MiB`, `GB`, `bytes`, `s`, `GPUs`, empty)."""
    if value is None or not isfinite(value):
        return NOTHING
    if unit == "MiB":
        return mebibytes(value)
    if unit == "bytes":
        return size(value) + ("/s" if per_second else "")
    if unit in {"cores", "GPUs"}:
        return f"{cores(value)} {unit}"
    if unit == "s":
        # Seconds of CPU time per second are cores.
        return f"{cores(value)} cores" if per_second else f"{number(value)} s"
    return f"{number(value)} {unit}".rstrip()


def share(part: float | None, whole: float | None) -> str:
    """`71 %`, empty where either is unknown."""
    return f"{100 * part / whole:.0f} %" if part is not None and whole else ""


def local_time(stamp: float | None) -> str:
    """Return UNIX seconds as local time to the minute."""
    return NOTHING if stamp is None else datetime.fromtimestamp(stamp).astimezone().strftime("%Y-%m-%d %H:%M")


def utc_time(stamp: float | None) -> str:
    """Return UNIX seconds as ISO 8601 in UTC, empty where unknown."""
    return "" if stamp is None else datetime.fromtimestamp(stamp, UTC).isoformat(timespec="seconds")[:-6] + "Z"


def counted(count: int, word: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{count} {word}{'' if count == 1 else 's'}"
