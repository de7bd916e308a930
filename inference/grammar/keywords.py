"""The keywords of JSON Schema that a grammar holds to, and remedies for some of the others."""

from __future__ import annotations

ABOUT = frozenset(
    {"title", "description", "default", "examples", "$schema", "$comment", "deprecated"}
    | {"readOnly", "writeOnly", "$defs", "definitions", "discriminator"}
)
"""Keywords that say something about a value without restricting it."""

BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
TYPES: dict[str, tuple[str, ...]] = {
    "object": (
        "properties",
        "required",
        "additionalProperties",
        "minProperties",
        "maxProperties",
    ),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": BOUNDS,
    "integer": (*BOUNDS, "multipleOf"),
    "boolean": (),
    "null": (),
}
"""Type -> keywords that restrict it."""

CHOICES = ("$ref", "const", "enum", "anyOf", "oneOf", "allOf")
"""Keywords that stand alone in a subschema."""

FORMATS = ("date", "time", "date-time", "duration", "email", "uuid", "ipv4", "ipv6", "hostname")

REMEDIES = {
    "not": "list what is allowed instead",
    "if": "write the cases as anyOf",
    "then": "write the cases as anyOf",
    "else": "write the cases as anyOf",
    "contains": "use items or prefixItems",
    "patternProperties": "declare the properties, or use additionalProperties alone",
    "propertyNames": "declare the properties",
    "dependentRequired": "write the cases as anyOf",
    "dependentSchemas": "write the cases as anyOf",
    "dependencies": "write the cases as anyOf",
    "unevaluatedProperties": "leave it out: objects write declared properties only",
    "additionalItems": "use prefixItems and items",
    "nullable": "use type: [..., null]",
}
"""Unsupported keyword -> what to do instead."""

KNOWN = {*ABOUT, *CHOICES, "type", *(word for words in TYPES.values() for word in words)}
