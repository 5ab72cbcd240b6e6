"""Builds the bodies of `register` and `finish` by the Sentinel contract. Pure functions."""

import json
import shlex
from collections.abc import Iterable, Mapping
from typing import Any


def registration(
    metadata: Mapping[str, Any] | None, host: Mapping[str, Any] | None, cloud: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the flat body of `register`: all groups, without `None` values."""
    body: dict[str, Any] = {}
    for group in (metadata, host, cloud):
        body.update((key, value) for key, value in (group or {}).items() if value is not None)
    if "command" in body:
        body["command"] = command_text(body["command"])
    if "tags" in body:
        body["tags"] = tags_object(body["tags"])
    return {key: _clean(value) for key, value in body.items()}


def command_text(command: str | Iterable[str]) -> str:
    """Return the command as a JSON array of words, in a string.

    A string is split as a shell would. One that cannot be split (an open quote) stays one word.
    """
    if isinstance(command, str):
        try:
            words = shlex.split(command)
        except ValueError:
            words = [command]
    else:
        words = [str(word) for word in command]
    return json.dumps([_clean(word) for word in words])


def tags_object(tags: Mapping[str, Any] | Iterable[str]) -> dict[str, str]:
    """Return tags (a mapping, or `key=value` strings) as a mapping of strings."""
    pairs = tags.items() if isinstance(tags, Mapping) else (tag.partition("=")[::2] for tag in tags)
    return {_clean(str(key)): _clean(str(value)) for key, value in pairs if value is not None}


def tags_list(tags: Mapping[str, str]) -> list[str]:
    """Return tags as a list of `key=value` strings, as some servers want."""
    return [f"{key}={value}" for key, value in tags.items()]


def _clean(value: Any) -> Any:
    # Arguments that are not UTF-8 have lone surrogates, which JSON cannot encode.
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
