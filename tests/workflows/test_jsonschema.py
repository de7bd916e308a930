"""The published JSON Schema, judged by the `jsonschema` library."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from tests.workflows.basis import BASE, TABLES, VALID
from workflows.jsonschema import workflow_schema
from workflows.loading import load_workflow, shipped_workflows
from workflows.source import parse_yaml

SHIPPED = jsonschema.Draft202012Validator(workflow_schema())
TEST = jsonschema.Draft202012Validator(workflow_schema(TABLES))


def test_the_schema_itself_is_valid_and_every_reference_leads_somewhere() -> None:
    schema = workflow_schema()
    jsonschema.Draft202012Validator.check_schema(schema)

    def references(part: Any) -> list[str]:
        if isinstance(part, dict):
            own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
            return own + [ref for value in part.values() for ref in references(value)]
        return (
            [ref for value in part for ref in references(value)] if isinstance(part, list) else []
        )

    names = {reference.removeprefix("#/$defs/") for reference in references(schema)}
    assert names
    assert names <= set(schema["$defs"])


@pytest.mark.parametrize("name", shipped_workflows())
def test_every_shipped_workflow_fits_the_schema(name: str) -> None:
    text = load_workflow(name).text
    assert list(SHIPPED.iter_errors(parse_yaml(text, name).value)) == []


@pytest.mark.parametrize("edges", ["", *VALID.values()])
def test_valid_test_workflows_fit_the_schema(edges: str) -> None:
    text = BASE
    if edges:
        text = BASE[: BASE.index("edges:")] + edges.lstrip() + BASE[BASE.index("outputs:") :]
    assert list(TEST.iter_errors(parse_yaml(text, "f").value)) == []


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("{use: search,", "{use: serch,", ["nodes", "find", "use"]),
        ('k: "${inputs.k}"', "k: 0", ["nodes", "find", "with", "k"]),
        ('k: "${inputs.k}"', "kk: 1", ["nodes", "find", "with"]),
        ('with: {prompt: "${state.hits}"}', "with: {}", ["nodes", "ask", "with"]),
        ("use: small", "use: smal", ["resources", "engine", "use"]),
        ("use: small", "use: small, threads: 0", ["resources", "engine", "threads"]),
        ("use: small", "use: small, thread: 1", ["resources", "engine"]),
        ("{from: start, to: find}", "{from: start}", ["edges", 0]),
        ("name: base", "nam: base", []),
        ("type: integer", "type: int", ["inputs", "k", "type"]),
    ],
)
def test_an_editor_sees_the_fault_at_its_path(old: str, new: str, path: list[Any]) -> None:
    assert BASE.count(old) == 1
    value = parse_yaml(BASE.replace(old, new), "f").value
    assert path in [list(error.absolute_path) for error in TEST.iter_errors(value)]


def test_a_list_option_may_hold_expressions() -> None:
    value = parse_yaml(BASE.replace('k: "${inputs.k}"', 'exclude: ["${state.hits}", a]'), "f").value
    assert TEST.is_valid(value)
    value = parse_yaml(BASE.replace('k: "${inputs.k}"', "exclude: [1]"), "f").value
    assert not TEST.is_valid(value)
