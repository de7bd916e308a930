"""JSON Schema of the workflow format, with the options of every node kind and resource."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from agents.triggers import TRIGGERS
from inference.kv import KV_POLICIES
from inference.speculative import DRAFTERS
from workflows.checks.draft import Tables
from workflows.schema import WorkflowSpec

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"

TEMPLATE: Schema = {
    "title": "Expression",
    "description": "A text with ${...}, evaluated when the node runs.",
    "type": "string",
    "pattern": r"\$\{",
}
"""What may stand wherever an option is resolved at run time."""

METHODS: tuple[tuple[str, str, Mapping[str, type[BaseModel]]], ...] = (
    ("kv", "KV policy", KV_POLICIES),
    ("drafter", "Drafter", DRAFTERS),
    ("trigger", "Trigger", TRIGGERS),
)
"""Keys of a node that name a method, what one is called, and their tables."""
_ALTERNATIVES = ("anyOf", "oneOf", "allOf")
_ABOUT = ("title", "description", "default")
_VALUES = ("items", "additionalProperties")


def workflow_schema(tables: Tables | None = None) -> Schema:
    """Schema (draft 2020-12) of a workflow file over the given tables, by default all rows."""
    tables = tables or Tables.default()
    schema = WorkflowSpec.model_json_schema(by_alias=True)
    definitions: Schema = schema["$defs"]
    definitions["Expression"] = TEMPLATE
    rows: dict[str, type[BaseModel]] = {**tables.engines, **tables.retrievers}
    _add_nodes(definitions, tables.nodes)
    _add_resources(definitions, rows)
    return {"$schema": DIALECT, **schema, "title": "Ragwright workflow"}


def _add_nodes(definitions: Schema, nodes: Mapping[str, type[BaseModel]]) -> None:
    spec = definitions["NodeSpec"]
    spec["properties"]["use"]["enum"] = list(nodes)
    for key, noun, table in METHODS:
        spec["properties"][key] = _methods(definitions, spec["properties"][key], key, noun, table)
    spec["allOf"] = []
    for use, row in nodes.items():
        name = f"options.{use}"
        options = _hoist(row, definitions, name, templates=True)
        definitions[name] = {**options, "title": f"Options of {use}"}
        then: Schema = {"properties": {"with": _ref(name)}}
        if options.get("required"):
            then["required"] = ["with"]
        spec["allOf"].append(_when(use, then))


def _add_resources(definitions: Schema, rows: Mapping[str, type[BaseModel]]) -> None:
    spec = definitions["ResourceSpec"]
    spec["properties"]["use"]["enum"] = list(rows)
    spec["allOf"] = []
    for use, row in rows.items():
        name = f"resource.{use}"
        options = _hoist(row, definitions, name, templates=False)
        properties = {"use": {"const": use}, **options.get("properties", {})}
        definitions[name] = {**options, "title": f"Resource {use}", "properties": properties}
        spec["allOf"].append(_when(use, _ref(name)))


def _methods(
    definitions: Schema, about: Schema, key: str, noun: str, table: Mapping[str, type[BaseModel]]
) -> Schema:
    """A method of a table: its name with options as a text, or a mapping."""
    forms: list[Schema] = [{"type": "null"}, {"type": "string", "pattern": "^[a-z_]+(:.+)?$"}]
    for use, row in table.items():
        name = f"{key}.{use}"
        options = _hoist(row, definitions, name, templates=False)
        properties = {"use": {"const": use}, **options.get("properties", {})}
        required = ["use", *options.get("required", ())]
        definitions[name] = {
            **options,
            "title": f"{noun} {use}",
            "properties": properties,
            "required": required,
        }
        forms.append(_ref(name))
    return {**{key: about[key] for key in _ABOUT if key in about}, "anyOf": forms}


def _when(use: str, then: Schema) -> Schema:
    return {"if": {"properties": {"use": {"const": use}}, "required": ["use"]}, "then": then}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _hoist(row: type[BaseModel], definitions: Schema, owner: str, *, templates: bool) -> Schema:
    """Schema of a row, with its own definitions moved to the root under the owner's name."""
    schema = row.model_json_schema(by_alias=True)
    own: Schema = schema.pop("$defs", {})
    names = {f"#/$defs/{name}": f"#/$defs/{owner}.{name}" for name in own}
    for name, body in own.items():
        definitions[f"{owner}.{name}"] = _rewrite(body, names, templates)
    return _rewrite(schema, names, templates)


def _rewrite(schema: Schema, names: Mapping[str, str], templates: bool) -> Schema:
    """Schema with renamed references, in which an expression may stand for any inner value."""
    result = dict(schema)
    if "$ref" in result:
        result["$ref"] = names[result["$ref"]]
    for key in _ALTERNATIVES:
        if key in result:
            result[key] = [_rewrite(part, names, templates) for part in result[key]]
    for key in _VALUES:
        if isinstance(result.get(key), dict):
            result[key] = _value(_rewrite(result[key], names, templates), templates)
    if "properties" in result:
        result["properties"] = {
            name: _value(_rewrite(part, names, templates), templates)
            for name, part in result["properties"].items()
        }
    return result


def _value(schema: Schema, templates: bool) -> Schema:
    if not templates:
        return schema
    about: Schema = {key: schema[key] for key in _ABOUT if key in schema}
    return {**about, "anyOf": [_ref("Expression"), schema]}
