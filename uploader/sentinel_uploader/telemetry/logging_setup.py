"""Log lines on stderr: text for people, JSON for programs."""

import json
import logging
import re
import sys
from typing import Any

from sentinel_protocol.common.time_text import utc_text

_PLACEHOLDER = re.compile(r"(?: ?(?P<key>[a-z_]+)=)?%[-#0 +]*[0-9]*(?:\.[0-9]+)?[a-zA-Z]")
"""A conversion in a message's template, with the key before it."""
_CLIENT = "client"


class _TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z warning event key=value`."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{utc_text(record.created)} {record.levelname.lower()} {record.getMessage()}"
        client = getattr(record, _CLIENT, "")
        if client:
            line += f" {_CLIENT}={client}"
        return _one_line(line) if record.exc_info is None else f"{line}\n{self.formatException(record.exc_info)}"


class _JsonFormatter(logging.Formatter):
    """One object a line: `time`, `level`, `logger`, `message`, and `exception` where there is one.

    Each `key=value` of the message is a field too (`run`, `step`, `error`, …), and `event` is the message without them:
    a constant text. `client` is the owner of the run, if it has a key. A library would need `extra=` at each call.
    """

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": utc_text(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        event, fields = _event_and_fields(record)
        client = getattr(record, _CLIENT, "")
        entry = fields | ({_CLIENT: client} if client else {}) | entry | {"event": event}
        if record.exc_info is not None:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def set_up_logging(kind: str, *, verbose: bool) -> None:
    """Log to stderr; `kind` is `text` or `json`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if kind == "json" else _TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    # They log every connection, and might log a URL with a signature in it.
    for name in ("urllib3", "botocore", "boto3"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _event_and_fields(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    """Return the message without its `key=value` pairs, and the pairs."""
    template, args = str(record.msg), record.args
    places = list(_PLACEHOLDER.finditer(template))
    if not isinstance(args, tuple) or len(places) != len(args) or "%%" in template:
        return record.getMessage(), {}
    named = [(place["key"], value) for place, value in zip(places, args, strict=True)]
    fields = {key: value if isinstance(value, int | float) else str(value) for key, value in named if key}
    event = _PLACEHOLDER.sub(lambda place: "" if place["key"] else place[0], template)
    return (event % tuple(value for key, value in named if not key)).strip(), fields


def _one_line(text: str) -> str:
    """Escape control characters: a text from a server or client must not forge log lines."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
