"""Log lines on stderr: text for people, JSON for machines."""

import json
import logging
import sys
from datetime import UTC, datetime


class _TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z warning event key=value`."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_utc(record)} {record.levelname.lower()} {record.getMessage()}"
        return _one_line(line) if record.exc_info is None else f"{line}\n{self.formatException(record.exc_info)}"


class _JsonFormatter(logging.Formatter):
    """One object a line: `time`, `level`, `message`, `logger`, and `exception` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": _utc(record),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            "logger": record.name,
        }
        if record.exc_info is not None:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def set_up_logging(kind: str, *, verbose: bool) -> None:
    """Send log lines to stderr; `kind` is `text` or `json`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if kind == "json" else _TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    # These speak of every connection, and could show an address with a signature in it.
    for name in ("urllib3", "botocore", "boto3"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _utc(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _one_line(text: str) -> str:
    """A server's or a client's text must not be able to write log lines of its own."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
