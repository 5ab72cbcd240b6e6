"""Remembers for an hour what a server rejected with 422, so that not every run tries twice."""

import logging
import threading
from collections.abc import Mapping
from typing import Any

import msgspec

from sentinel_protocol.common.clock import Clock
from sentinel_uploader.backends.sentinel.payload import tags_list
from sentinel_uploader.util.untrusted_text import printable

REMEMBERED_S = 3600.0
MAX_REMEMBERED = 1000

_log = logging.getLogger(__name__)


class UnsupportedFields:
    """The fields that one server does not accept; safe for several threads.

    A field that the server does not know, or wants in another form, is left out for every run. A field whose value is
    rejected is left out with that value only: another run's value may be fine.
    """

    def __init__(self, base_url: str, clock: Clock) -> None:
        self._base_url = base_url
        self._clock = clock
        self._lock = threading.Lock()
        self._until_s: dict[tuple[str, str], float] = {}

    def remember(self, field: str, form: str = "") -> None:
        """Remember that the field is rejected, in this form only when one is given."""
        now_s = self._clock.monotonic()
        with self._lock:
            if len(self._until_s) >= MAX_REMEMBERED:
                self._until_s = {key: until_s for key, until_s in self._until_s.items() if until_s > now_s}
                while len(self._until_s) >= MAX_REMEMBERED:
                    del self._until_s[next(iter(self._until_s))]
            self._until_s[field, form] = now_s + REMEMBERED_S

    def is_unsupported(self, field: str, form: str = "") -> bool:
        """Whether the field was rejected within the last hour, in every form or in this one."""
        now_s = self._clock.monotonic()
        with self._lock:
            return any(self._until_s.get((field, one), now_s) > now_s for one in ("", form))

    def strip(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the body without rejected fields. Tags become a list before they are left out."""
        adapted = {}
        for field, value in body.items():
            for form in _variants(field, value):
                if not self.is_unsupported(field, _variant_key(field, form)):
                    adapted[field] = form
                    break
        return adapted

    def record_422(self, body: Mapping[str, Any], answer_body: bytes) -> dict[str, Any] | None:
        """Remember the fields that a 422 names. Return the body without them, `None` when it does not change."""
        offences = {field: (kind, message) for field, kind, message in _parse_422(answer_body) if field in body}
        for field, (kind, message) in offences.items():
            value = body[field]
            whole_field = field != "tags" and "extra" in kind
            self.remember(field, "" if whole_field else _variant_key(field, value))
            _log.warning(
                "the server refused a field, sending without it: field=%s form=%s base_url=%s answer=%s",
                field, type(value).__name__, self._base_url, printable(message, 200),
            )  # fmt: skip
        adapted = self.strip(body)
        return adapted if adapted != body else None

    @staticmethod
    def fields_in(answer_body: bytes) -> set[str]:
        """Return the fields that a 422 names, without remembering them."""
        return {field for field, _, _ in _parse_422(answer_body)}


def _variants(field: str, value: Any) -> list[Any]:
    return [value, tags_list(value)] if field == "tags" and isinstance(value, dict) else [value]


def _variant_key(field: str, value: Any) -> str:
    # For tags, the form is the type of container: which one a server wants does not depend on the run.
    return type(value).__name__ if field == "tags" else msgspec.json.encode(value).decode()


def _parse_422(answer_body: bytes) -> list[tuple[str, str, str]]:
    """Return (field, kind, message) of each entry of a FastAPI-style 422 body; nothing for another body."""
    try:
        detail = msgspec.json.decode(answer_body).get("detail")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, AttributeError):
        return []
    found = []
    for entry in detail if isinstance(detail, list) else []:
        location = entry.get("loc") if isinstance(entry, dict) else None
        if not isinstance(location, list):
            continue
        path = [part for part in location if isinstance(part, str)]
        if path[:1] == ["body"]:
            path = path[1:]
        if path:
            found.append((path[0], str(entry.get("type", "")), str(entry.get("msg", ""))))
    return found
