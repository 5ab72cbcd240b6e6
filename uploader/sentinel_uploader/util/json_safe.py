"""Replaces values in clients' metadata that JSON cannot represent."""

import math
from typing import Any

_MAX_DEPTH = 8


def to_json_safe(value: Any, *, depth: int = _MAX_DEPTH) -> Any:
    """Return the value with JSON types only. Numbers that are not finite, bytes and other types become `None`.

    So does what is nested deeper than eight levels. Keys become text.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        # A lone surrogate cannot be written as UTF-8.
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth and isinstance(value, dict):
        return {to_json_safe(str(key)): to_json_safe(item, depth=depth - 1) for key, item in value.items()}
    if depth and isinstance(value, list | tuple):
        return [to_json_safe(item, depth=depth - 1) for item in value]
    return None
