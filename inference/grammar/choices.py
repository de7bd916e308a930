"""Two questions about schemas: can two of them share a value, and do references ever end?"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any


def apart(first: Any, second: Any, resolve: Callable[[Any], Any], depth: int = 0) -> bool:
    """True if it is certain that no value validates against both."""
    first, second = resolve(first), resolve(second)
    if depth > 8 or not isinstance(first, dict) or not isinstance(second, dict):
        return False
    values, others = _values(first), _values(second)
    if values is not None and others is not None:
        return not values & others
    kinds, more = _kinds(first), _kinds(second)
    if kinds and more and not kinds & more:
        return True
    if kinds != {"object"} or more != {"object"}:
        return False
    shared = {*first.get("required", ())} & {*second.get("required", ())}
    mine, theirs = first.get("properties", {}), second.get("properties", {})
    return any(
        apart(mine[key], theirs[key], resolve, depth + 1)
        for key in shared
        if key in mine and key in theirs
    )


def finite(root: Mapping[str, Any], definitions: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of lowered definitions ('#' for the root) of which no finite value exists."""
    schemas = {"#": root, **definitions}
    ending: set[str] = set()
    while more := {n for n, s in schemas.items() if n not in ending and _ends(s, ending)}:
        ending |= more
    return sorted(set(schemas) - ending)


def _ends(schema: Any, ending: set[str]) -> bool:
    """True if a value exists whose references all lie in `ending`."""
    if not isinstance(schema, Mapping):
        return True
    if "$ref" in schema:
        return schema["$ref"].removeprefix("#/$defs/") in ending
    if "anyOf" in schema:
        return any(_ends(branch, ending) for branch in schema["anyOf"])
    parts = [schema["properties"][key] for key in schema.get("required", ())]
    parts += schema.get("prefixItems", ())
    if schema.get("minItems", 0) > len(schema.get("prefixItems", ())):
        parts.append(schema.get("items"))
    return all(_ends(part, ending) for part in parts)


def _values(schema: Mapping[str, Any]) -> set[str] | None:
    """The values of an enum or const in one spelling each; 1 and 1.0 are the same."""
    if "const" in schema:
        listed = [schema["const"]]
    elif isinstance(schema.get("enum"), list):
        listed = schema["enum"]
    else:
        return None
    return {json.dumps(_spelt(value), sort_keys=True) for value in listed}


def _spelt(value: Any) -> Any:
    if isinstance(value, list):
        return [_spelt(item) for item in value]
    if isinstance(value, dict):
        return {key: _spelt(item) for key, item in value.items()}
    return int(value) if isinstance(value, float) and value == int(value) else value


def _kinds(schema: Mapping[str, Any]) -> set[str]:
    """Types a schema names; a number may be an integer."""
    given = schema.get("type", [])
    kinds = set(given) if isinstance(given, list) else {given}
    return {"number" if kind == "integer" else kind for kind in kinds}
