"""Tests on single JSON values."""

from __future__ import annotations

import math
from typing import Any

MAX_NESTING = 32
"""Deepest nesting of lists and objects inside a value."""


def unescape(key: str) -> str:
    """A step of a JSON pointer without its escapes."""
    return key.replace("~1", "/").replace("~0", "~")


def is_type(value: Any, name: str) -> bool:
    """JSON Schema's type test: 1.0 is an integer, true is no number."""
    if name == "null":
        return value is None
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer":
        return isinstance(value, int | float) and value == int(value)
    kinds: dict[str, Any] = {
        "string": str,
        "array": list,
        "object": dict,
        "number": (int, float),
    }
    return name in kinds and isinstance(value, kinds[name])


def is_plain(value: Any, depth: int = 0) -> bool:
    """True if a value is JSON with finite numbers and whole characters, not nested too deep."""
    if depth > MAX_NESTING:
        return False
    if isinstance(value, str):
        return not any("\ud800" <= c <= "\udfff" for c in value)
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list):
        return all(is_plain(item, depth + 1) for item in value)
    if isinstance(value, dict):
        return all(is_plain(k) and is_plain(v, depth + 1) for k, v in value.items())
    return value is None or isinstance(value, bool | int)
