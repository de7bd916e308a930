"""Shape: the keys and types of a file and of options, pydantic's findings said plainly."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from inference.suggest import nearest
from workflows.checks.draft import Draft
from workflows.operators import kind
from workflows.schema import (
    BudgetSpec,
    EdgeSpec,
    GrammarSpec,
    InputSpec,
    LimitsSpec,
    NodeSpec,
    RetrySpec,
    SamplingSpec,
    WorkflowSpec,
)
from workflows.source import Path

_MODELS: dict[tuple[str, ...], type[BaseModel]] = {
    (): WorkflowSpec,
    ("inputs", "*"): InputSpec,
    ("nodes", "*"): NodeSpec,
    ("nodes", "*", "sampling"): SamplingSpec,
    ("nodes", "*", "grammar"): GrammarSpec,
    ("nodes", "*", "retry"): RetrySpec,
    ("edges", "*"): EdgeSpec,
    ("budget",): BudgetSpec,
    ("limits",): LimitsSpec,
}

_TYPES = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dataclass_type": "a mapping",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "none_required": "null",
}

_LIMITS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


class Finding(NamedTuple):
    """One thing wrong with the shape of some data, at a path from its root."""

    path: Path
    key: bool
    code: str
    message: str


def check_shape(draft: Draft) -> None:
    """Keys and types of the whole file against the format."""
    root = draft.tree.value
    if not isinstance(root, dict):
        message = f"a workflow file is a mapping with name, nodes, edges, outputs; not {kind(root)}"
        draft.add((), "wrong_type", message)
        return
    try:
        WorkflowSpec.model_validate_json(json.dumps(root), strict=True)
    except ValidationError as error:
        for finding in findings(error, root, _known_keys):
            draft.add(finding.path, finding.code, finding.message, key=finding.key)


def _known_keys(path: Path) -> list[str]:
    """Keys that the format knows at a path."""
    for pattern, model in _MODELS.items():
        if len(pattern) == len(path) and all(
            p in ("*", step) for p, step in zip(pattern, path, strict=True)
        ):
            return field_names(model)
    return []


def field_names(model: type[BaseModel]) -> list[str]:
    """Names of a model's fields as they stand in a file."""
    return [field.alias or name for name, field in model.model_fields.items()]


def findings(error: ValidationError, data: Any, known: Any) -> Iterator[Finding]:
    """What a pydantic error says about `data`; `known(path)` lists the keys allowed at a path."""
    problems: list[dict[str, Any]] = [dict(p) for p in error.errors(include_url=False)]
    located = [(_path(problem, data), problem) for problem in problems]
    located.sort(key=lambda pair: [str(step) for step in pair[0]])
    for path, group in groupby(located, key=lambda pair: pair[0]):
        members = [problem for _, problem in group]
        types = [problem for problem in members if problem["type"] in _TYPES]
        others = [problem for problem in members if problem["type"] not in _TYPES]
        for problem in others:
            yield _finding(path, problem, known)
        if types and not others:
            expected = " or ".join(dict.fromkeys(_TYPES[str(problem["type"])] for problem in types))
            found = kind(_at(data, path))
            message = f"{where(path)} must be {expected} (found: {found})"
            yield Finding(path, False, "wrong_type", message)


def where(path: Path) -> str:
    """A path as people write it: nodes.ask.with.k, edges[2].to."""
    text = ""
    for step in path:
        if isinstance(step, int) or not step.isidentifier():
            text += f"[{step!r}]"
        else:
            text += f".{step}" if text else step
    return text or "the file"


def _path(problem: Mapping[str, Any], data: Any) -> Path:
    """The part of a location that exists in the data: pydantic adds names of union members."""
    path: list[str | int] = []
    for step in problem["loc"]:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            break
        path.append(step)
    return tuple(path)


def _at(data: Any, path: Path) -> Any:
    for step in path:
        data = data[step]
    return data


def _finding(path: Path, problem: Mapping[str, Any], known: Any) -> Finding:
    code, context = str(problem["type"]), problem.get("ctx", {})
    place, found = where(path), kind(problem.get("input"))
    if code == "missing":
        name = problem["loc"][len(path)] if len(path) < len(problem["loc"]) else "?"
        return Finding(path, True, "missing_key", f"{place} lacks the key {name!r}; add it")
    if code == "extra_forbidden":
        name = str(path[-1])
        hint = nearest(name, known(path[:-1]))
        message = f"unknown key {name!r} in {where(path[:-1])}; {hint}"
        return Finding(path, True, "unknown_key", message)
    bad_key = "[key]" in problem["loc"]
    if bad_key or "[A-Za-z_]" in str(context.get("pattern")):
        rule = "letters, digits and _, not starting with a digit, at most 64 characters"
        message = f"{place}: the name {problem['input']!r} must be made of {rule}"
        return Finding(path, bad_key, "bad_name", message)
    if code in _LIMITS:
        name, words = _LIMITS[code]
        message = f"{place} must be {words} {context[name]} (found: {found})"
    elif code in ("literal_error", "enum"):
        message = f"{place} must be {context['expected']} (found: {found})"
    elif code in ("too_short", "string_too_short"):
        message = f"{place} must not be empty"
        if context.get("min_length", 1) > 1:
            message = f"{place} must have at least {context['min_length']} parts (found: {found})"
    else:
        text = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
        message = f"{place}: {text[:1].lower()}{text[1:]} (found: {found})"
    return Finding(path, False, "bad_value", message)
