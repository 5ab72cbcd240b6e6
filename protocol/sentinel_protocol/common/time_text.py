"""Times as text."""

from datetime import UTC, datetime


def utc_text(unix_s: float, timespec: str = "milliseconds") -> str:
    """Return UNIX seconds as ISO 8601 in UTC, such as `2026-11-30T21:33:04.000Z`; `timespec` is that of `isoformat`."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec=timespec).replace("+00:00", "Z")
