"""Inputs of a workflow: their declared types, their defaults, and the values a caller gives."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from inference.suggest import nearest
from workflows.errors import WorkflowInputError
from workflows.operators import kind
from workflows.schema import InputSpec

_ARTICLE = {"integer": "an integer", "object": "an object", "boolean": "true or false"}


def type_problem(spec: InputSpec, value: Any) -> str | None:
    """Why a value does not have the declared type, or None."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        "string": isinstance(value, str),
        "integer": number and isinstance(value, int),
        "number": number and math.isfinite(value),
        "boolean": isinstance(value, bool),
        "list": isinstance(value, list),
        "object": isinstance(value, Mapping),
    }[spec.type]
    if fits:
        return None
    return f"must be {_ARTICLE.get(spec.type, f'a {spec.type}')} (found: {kind(value)})"


def value_problem(spec: InputSpec, value: Any) -> str | None:
    """Why a value is not allowed for this input, or None."""
    if value is None and not spec.required and spec.default is None:
        return None
    if problem := type_problem(spec, value):
        return problem
    if spec.type == "string" and spec.required and not value.strip():
        return "must not be blank"
    if spec.choices is not None and value not in spec.choices:
        return f"must be one of {json.dumps(spec.choices)} (found: {kind(value)})"
    if spec.minimum is not None and spec.type in ("integer", "number") and value < spec.minimum:
        return f"must be at least {spec.minimum:g} (found: {value})"
    if spec.maximum is not None and spec.type in ("integer", "number") and value > spec.maximum:
        return f"must be at most {spec.maximum:g} (found: {value})"
    return None


def check_inputs(
    workflow: str, specs: Mapping[str, InputSpec], given: Mapping[str, Any]
) -> dict[str, Any]:
    """All inputs with defaults filled in; raises WorkflowInputError naming every problem."""
    problems = [
        f"unknown input {name!r}; {nearest(name, specs)}" for name in given if name not in specs
    ]
    values: dict[str, Any] = {}
    for name, spec in specs.items():
        if name not in given:
            if spec.required:
                problems.append(f"missing input {name!r} ({spec.type}); give {name}=VALUE")
            values[name] = json.loads(json.dumps(spec.default))
            continue
        values[name] = given[name]
        if problem := value_problem(spec, given[name]):
            problems.append(f"input {name!r} {problem}")
    if problems:
        raise WorkflowInputError(f"workflow {workflow!r}: " + "; ".join(problems))
    return values


def parse_input(spec: InputSpec, text: str) -> Any:
    """The value that a command-line text means for an input of this type.

    A string is taken as it stands; every other type is read as JSON. Raises WorkflowInputError
    where the text is no such value.
    """
    if spec.type == "string":
        return text
    if not text.strip() and not spec.required and spec.default is None:
        return None
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        value = text
    if spec.type == "boolean" and text.strip().lower() in ("true", "false"):
        value = text.strip().lower() == "true"
    if spec.type == "integer" and isinstance(value, float) and value.is_integer():
        value = int(value)
    if problem := type_problem(spec, value):
        raise WorkflowInputError(f"the value {text!r} {problem}")
    return value


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is not a JSON number")
