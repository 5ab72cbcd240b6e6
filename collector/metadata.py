"""What the user says about the run."""

from collections.abc import Mapping
from typing import Any

from collector.config import METADATA_NAMES

_MAX_COMMAND_CHARS = 4096


def run_metadata(settings: Mapping[str, Any], argv: list[str]) -> dict[str, Any]:
    """Return the contract's metadata fields: what was given, the tags, and the command line as a list of words."""
    metadata: dict[str, Any] = {name: settings[name] for name in METADATA_NAMES if settings[name]}
    if settings["tag"]:
        metadata["tags"] = dict(settings["tag"])
    if argv and settings["command_line"]:
        metadata["command"] = _bounded(argv)
    return metadata


def _bounded(argv: list[str]) -> list[str]:
    """A command line may be megabytes long and hold bytes that are no text; a run's description may not."""
    words: list[str] = []
    left = _MAX_COMMAND_CHARS
    for word in argv:
        text = word.encode("utf-8", "replace").decode("utf-8", "replace")
        if len(text) > left:
            return [*words, text[:left] + "…"]
        words.append(text)
        left -= len(text)
    return words
