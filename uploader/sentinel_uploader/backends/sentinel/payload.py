"""The bodies of `register` and `finish` as the Sentinel contract has them. Pure functions."""

import json
import shlex
from collections.abc import Iterable, Mapping
from typing import Any


def registration(
    metadata: Mapping[str, Any] | None, host: Mapping[str, Any] | None, cloud: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the flat object of `register`: the groups side by side, without the keys whose value is `None`."""
    body: dict[str, Any] = {}
    for group in (metadata, host, cloud):
        body.update((key, value) for key, value in (group or {}).items() if value is not None)
    if "command" in body:
        body["command"] = command_text(body["command"])
    if "tags" in body:
        body["tags"] = tags_object(body["tags"])
    return {key: _clean(value) for key, value in body.items()}


def command_text(command: str | Iterable[str]) -> str:
    """Return the command as a string that holds a JSON array of words.

    A shell string is split the way a shell splits words; one that cannot be split (an open quote) stays one word.
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
    """Return tags, given as a mapping or as `key=value` strings, as an object of strings."""
    pairs = tags.items() if isinstance(tags, Mapping) else (tag.partition("=")[::2] for tag in tags)
    return {_clean(str(key)): _clean(str(value)) for key, value in pairs if value is not None}


def tags_list(tags: Mapping[str, str]) -> list[str]:
    """Return tags as the list of `key=value` strings that some servers want."""
    return [f"{key}={value}" for key, value in tags.items()]


def _clean(value: Any) -> Any:
    # Arguments and names that are not UTF-8 reach us with lone surrogates, which JSON cannot carry.
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
