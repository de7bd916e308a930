"""Schemas that a grammar cannot hold to are refused by keyword and place."""

from __future__ import annotations

from typing import Any

import pytest

from inference import Grammar
from inference.errors import GrammarInputError
from inference.grammar.keywords import FORMATS
from inference.grammar.schema import Refusal, lower
from tests.inference.grammars import WORDS, matcher

INTEGER = {"type": "integer"}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": sorted(properties)}


REFUSED: list[tuple[Any, str, str]] = [
    # keywords that the compiler ignores without a word
    ({"type": "array", "uniqueItems": True}, "uniqueItems", "leave it out"),
    ({"type": "array", "contains": INTEGER}, "contains", "prefixItems"),
    ({"not": INTEGER}, "not", "allowed instead"),
    ({"if": True, "then": True}, "if", "anyOf"),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired", "anyOf"),
    ({"type": "object", "patternProperties": {}}, "patternProperties", "declare"),
    ({"type": "object", "propertyNames": {}}, "propertyNames", "declare"),
    ({"type": "string", "nullable": True}, "nullable", "null"),
    ({"type": "number", "multipleOf": 0.5}, "multipleOf", "integers only"),
    ({"type": "integer", "multipleOf": 5000}, "multipleOf", "1 to 1024"),
    ({"type": "integer", "multipleOf": 3, "minimum": 1}, "multipleOf", "both bounds"),
    ({"type": "string", "pattern": "a", "maxLength": 3}, "root", "cannot be combined"),
    ({"allOf": [INTEGER, {"minimum": 1}]}, "allOf", "merge"),
    ({"oneOf": [INTEGER, {"type": "number"}]}, "oneOf/1", "overlap"),
    ({"oneOf": [_object(a=INTEGER), _object(b=INTEGER)]}, "oneOf/1", "const"),
    ({"$defs": {"n": True}, "$ref": "#/$defs/n", "minLength": 3}, "minLength", "beside"),
    ({"type": "object", "anyOf": [{"required": ["b"]}]}, "type", "beside"),
    ({"type": "string", "minLenght": 2}, "minLenght", "did you mean 'minLength'"),
    ({"type": "string", "format": "regex"}, "format", "not supported"),
    ({"$ref": "http://elsewhere/schema"}, "$ref", "#/$defs/NAME"),
    # what it would misread
    ({"type": "string", "pattern": 'a"b'}, "pattern", "enum"),
    ({"type": "string", "pattern": r"a\\b"}, "pattern", "enum"),
    ({"type": "string", "pattern": r"\n"}, "pattern", "enum"),
    ({"type": "string", "pattern": "[^a]"}, "pattern", "list what is allowed"),
    ({"type": "string", "pattern": r"\W"}, "pattern", "list what is allowed"),
    ({"type": "string", "pattern": "a^b"}, "pattern", "anchor"),
    ({"type": "object", "required": ["z"]}, "required", "not declared"),
    ({"additionalProperties": INTEGER, "minProperties": 1}, "minProperties", "repeat"),
    (
        {"properties": {"a": True}, "additionalProperties": INTEGER},
        "additionalProperties",
        "repeat",
    ),
    ({"minLength": 1, "minItems": 1}, "root", "several types"),
    # what allows nothing
    (False, "root", "allows nothing"),
    (_object(a=False), "properties/a", "allows nothing"),
    ({"type": "integer", "minimum": 5, "maximum": 3}, "root", "no integer"),
    ({"type": "integer", "multipleOf": 7, "minimum": 8, "maximum": 13}, "root", "multiple of 7"),
    ({"type": "number", "minimum": 1, "exclusiveMaximum": 1}, "root", "no number"),
    ({"type": "string", "minLength": 5, "maxLength": 3}, "minLength", "exceeds"),
    ({"enum": []}, "enum", "not empty"),
    ({"type": "integer", "enum": [1, "a"]}, "enum/1", "not of type"),
    ({"$ref": "#"}, "$ref", "forever"),
    (_object(k={"$ref": "#"}), "properties/k/$ref", "forever"),
    ({"$defs": {}, "$ref": "#/$defs/q"}, "$ref", "refers to nothing"),
    # what is no schema
    ({"type": "strin"}, "type", "did you mean 'string'"),
    ({"type": []}, "type", "empty"),
    (3, "root", "found: 3"),
    ({"type": "array", "items": [INTEGER]}, "items", "an object"),
    ({"properties": []}, "properties", "object of schemas"),
    ({"required": "a"}, "required", "list of property names"),
    ({"type": "string", "minLength": -1}, "minLength", "from 0"),
    ({"type": "string", "maxLength": 10**9}, "maxLength", "100000"),
    ({"type": "integer", "minimum": 2.5}, "minimum", "whole"),
    ({"type": "number", "maximum": "3"}, "maximum", "must be a number"),
    ({"type": "number", "maximum": 1e300}, "maximum", "must be a number"),
    ({"type": "number", "maximum": 0.12345678}, "maximum", "round it"),
    ({"const": "\ud800"}, "const", "whole characters"),
    ({"anyOf": []}, "anyOf", "not empty"),
]


@pytest.mark.parametrize(
    ("schema", "place", "says"), REFUSED, ids=[str(r[0])[:60] for r in REFUSED]
)
def test_a_schema_is_refused_by_keyword_and_place(schema: Any, place: str, says: str) -> None:
    with pytest.raises(Refusal) as caught:
        lower(schema)
    assert f"schema at {'the root' if place == 'root' else place}:" in str(caught.value)
    assert says in str(caught.value)


def test_the_place_leads_through_the_schema() -> None:
    schema = _object(a={"type": "array", "items": {"anyOf": [INTEGER, {"not": INTEGER}]}})
    with pytest.raises(GrammarInputError, match="properties/a/items/anyOf/1/not"):
        Grammar.json_schema(schema)


def test_too_many_and_too_deep_subschemas_are_refused() -> None:
    wide = {"anyOf": [{"const": f"v{i}"} for i in range(2100)]}
    deep: Any = INTEGER
    for _ in range(70):
        deep = {"type": "array", "items": deep}
    for schema in (wide, deep):
        with pytest.raises(Refusal, match="make it smaller"):
            lower(schema)


@pytest.mark.parametrize(
    ("schema", "fine", "wrong"),
    [
        ({"type": "string", "maxLength": 2}, ['""', '"éé"'], ['"abc"', '"\t"', '"a\\n"']),
        ({"type": "string", "pattern": "^a.b$"}, ['"axb"'], ['"a"b"', '"ab"', '"a\\b"']),
        ({"type": "integer", "minimum": -3, "maximum": 12}, ["-3", "0", "12"], ["-4", "13", "1.0"]),
        ({"type": "integer", "exclusiveMinimum": 3}, ["4", "99"], ["3", "-9"]),
        ({"type": "integer", "multipleOf": 5}, ["0", "5", "-10"], ["6"]),
        ({"type": "number", "minimum": 0.5, "maximum": 2}, ["0.5", "1", "2.0"], ["0.4", "2.1"]),
        ({"type": "number", "maximum": 0}, ["-1", "0", "-2.5"], ["0.1", "1"]),
        ({"type": "array"}, ["[]", '["a"]'], ["{}"]),
        ({"type": "array", "items": False}, ["[]"], ["[1]"]),
        (
            {"prefixItems": [INTEGER, {"type": "null"}], "minItems": 2, "items": INTEGER},
            ["[1,null]", "[1,null,2]"],
            ["[1]", "[null,1]", "[1,null,null]"],
        ),
        (
            {"type": "object", "properties": {"a": INTEGER, "b": INTEGER}, "required": ["b"]},
            ['{"b":1}', '{"a":1,"b":2}'],
            ["{}", '{"a":1}', '{"b":1,"c":1}', '{"b":1,"b":2}', '{"b": 1}', '{"b":2,"a":1}'],
        ),
        ({"type": "object"}, ["{}", '{"x":{"y":[]}}'], ["[]"]),
        ({"type": "object", "additionalProperties": False}, ["{}"], ['{"a":1}']),
        ({"type": ["integer", "null"], "minimum": 5}, ["5", "null"], ["4", '"a"']),
        ({"minLength": 2}, ['"ab"'], ['"a"']),
        ({"enum": ["a\n", 1.5, None]}, ['"a\\n"', "1.5", "null"], ['"a"', "1"]),
        ({"oneOf": [_object(k={"const": 1}), _object(k={"const": 2})]}, ['{"k":2}'], ['{"k":3}']),
        ({"title": "t", "examples": [1], "type": "boolean"}, ["true"], ["1"]),
    ],
)
def test_what_a_schema_allows(schema: Any, fine: list[str], wrong: list[str]) -> None:
    grammar = Grammar.json_schema(schema)
    for text in (*fine, *wrong):
        reader = matcher(grammar)
        read = all(reader.accept(token) for token in WORDS.encode(text))
        assert (read and reader.complete) == (text in fine), text


@pytest.mark.parametrize("name", FORMATS)
def test_every_supported_format_is_enforced(name: str) -> None:
    examples = {
        "date": ("2026-11-23", "2026-13-01"),
        "time": ("10:00:00Z", "25:00:00Z"),
        "date-time": ("2026-11-23T10:00:00Z", "2026-11-23"),
        "duration": ("P1D", "1D"),
        "email": ("a@b.co", "ab"),
        "uuid": ("123e4567-e89b-12d3-a456-426614174000", "123"),
        "ipv4": ("1.2.3.4", "1.2.3.400"),
        "ipv6": ("::1", ":::"),
        "hostname": ("a.b", "-"),
    }
    good, bad = examples[name]
    for text, fine in ((good, True), (bad, False)):
        reader = matcher(Grammar.json_schema({"type": "string", "format": name}))
        read = all(reader.accept(token) for token in WORDS.encode(f'"{text}"'))
        assert (read and reader.complete) is fine
