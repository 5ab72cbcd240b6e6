"""The description of a run that its uploader gets: metadata, host and cloud."""

from collections.abc import Mapping
from typing import Any

import msgspec

from sentinel_collector.settings import METADATA_NAMES

_MAX_COMMAND_BYTES = 4096
"""Encoded bytes. The uploader's limit for the whole description is four times that."""
_WORD_BYTES = 3
"""Encoding overhead of a word."""


class RunDescription(msgspec.Struct, kw_only=True):
    """The run's description as `Hello` has it; later results of discovery are filled in."""

    interval_s: float
    metadata: dict[str, Any]
    host: dict[str, str | int | float]
    cloud: dict[str, str]
    cloud_pending: bool


def run_metadata(settings: Mapping[str, Any], argv: list[str]) -> dict[str, Any]:
    """Return the contract's metadata fields that were given, the tags, and the command line as a list of words."""
    metadata: dict[str, Any] = {name: _as_text(settings[name]) for name in METADATA_NAMES if settings[name]}
    if settings["tag"]:
        metadata["tags"] = {_as_text(key): _as_text(value) for key, value in settings["tag"].items()}
    if argv and settings["command_line"]:
        metadata["command"] = _truncate_command(argv)
    return metadata


def _as_text(word: str) -> str:
    """Replace bytes that are not UTF-8, which Python keeps as surrogates and messages cannot hold."""
    return word.encode("utf-8", "replace").decode("utf-8")


def _truncate_command(argv: list[str]) -> list[str]:
    """Limit the command line, which may be megabytes long, to `_MAX_COMMAND_BYTES` of text."""
    words: list[str] = []
    left = _MAX_COMMAND_BYTES
    for word in argv:
        text = _as_text(word).encode()
        left -= len(text) + _WORD_BYTES
        if left < 0:
            return [*words, text[: max(0, left + len(text))].decode("utf-8", "ignore") + "…"]
        words.append(text.decode("utf-8"))
    return words
