"""What the user says about the run."""

from collections.abc import Mapping
from typing import Any

from sentinel_collector.settings import METADATA_NAMES

_MAX_COMMAND_BYTES = 4096
"""As the message's encoding counts them; what an uploader takes of a description altogether is four times that."""
_WORD_BYTES = 3
"""Of the encoding, for each word."""


def run_metadata(settings: Mapping[str, Any], argv: list[str]) -> dict[str, Any]:
    """Return the contract's metadata fields: what was given, the tags, and the command line as a list of words."""
    metadata: dict[str, Any] = {name: _as_text(settings[name]) for name in METADATA_NAMES if settings[name]}
    if settings["tag"]:
        metadata["tags"] = {_as_text(key): _as_text(value) for key, value in settings["tag"].items()}
    if argv and settings["command_line"]:
        metadata["command"] = _truncate_command(argv)
    return metadata


def _as_text(word: str) -> str:
    """Arguments and variables may hold bytes that are no text (Python has them as surrogates); messages may not."""
    return word.encode("utf-8", "replace").decode("utf-8")


def _truncate_command(argv: list[str]) -> list[str]:
    """A command line may be megabytes long and hold bytes that are no text; a run's description may not."""
    words: list[str] = []
    left = _MAX_COMMAND_BYTES
    for word in argv:
        text = _as_text(word).encode()
        left -= len(text) + _WORD_BYTES
        if left < 0:
            return [*words, text[: max(0, left + len(text))].decode("utf-8", "ignore") + "…"]
        words.append(text.decode("utf-8"))
    return words
