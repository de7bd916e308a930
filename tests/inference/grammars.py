"""Random schemas of the supported profile, and random walks through a grammar."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import torch
from hypothesis import strategies as st

from inference import Grammar
from inference.grammar.compiler import Compiler
from inference.grammar.matcher import Matcher
from tests.inference.tiny import tokenizer

PADDING = 40
"""Logits beyond the tokenizer's ids, as in models with a padded vocabulary."""
WORDS = tokenizer()
STOP = WORDS.eos_token_id
CLOSING = {*WORDS.convert_tokens_to_ids(['"', "}", "]", ",", ":"]), STOP}


@cache
def compiler() -> Compiler:
    return Compiler(WORDS, len(WORDS) + PADDING, [STOP])


def matcher(grammar: Grammar) -> Matcher:
    return compiler().matcher(grammar)


def allowed(words: torch.Tensor, width: int = len(WORDS) + PADDING) -> set[int]:
    """Ids whose bit is set in one row of a mask."""
    row = words.reshape(-1).tolist()
    return {i for i in range(width) if row[i // 32] >> (i % 32) & 1}


def walk(start: Matcher, rng: random.Random, limit: int = 150) -> list[int] | None:
    """Ids of a random text of the grammar, the stop token included; None if it grew too long."""
    ids: list[int] = []
    while len(ids) < limit:
        choices = allowed(start.fill())
        closing = sorted(choices & CLOSING)
        token = rng.choice(closing if closing and rng.random() < 0.6 else sorted(choices))
        assert start.accept(token)
        ids.append(token)
        if token == STOP:
            return ids
    return None


def _bounds(values: Any, low: str, high: str) -> Any:
    return st.tuples(values, values).map(
        lambda pair: dict(zip((low, high), sorted(pair), strict=True))
    )


def _objects(children: Any) -> Any:
    keys = st.text('abé"\\ \n{', min_size=1, max_size=3)

    def build(properties: dict[str, Any], data: list[bool], counted: bool) -> dict[str, Any]:
        required = [key for key, needed in zip(properties, data, strict=False) if needed]
        schema: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
        if counted and properties:
            schema["minProperties"] = max(1, len(required))
            schema["maxProperties"] = len(properties)
        return schema

    closed = st.builds(
        build,
        st.dictionaries(keys, children, max_size=4),
        st.lists(st.booleans(), min_size=4, max_size=4),
        st.booleans(),
    )
    opened = children.map(lambda child: {"type": "object", "additionalProperties": child})
    return closed | opened


def _arrays(children: Any) -> Any:
    plain = st.builds(
        lambda items, counts: {"type": "array", "items": items, **counts},
        children,
        st.just({}) | _bounds(st.integers(0, 3), "minItems", "maxItems"),
    )
    prefixed = st.builds(
        lambda prefix, rest: {"type": "array", "prefixItems": prefix, "items": rest},
        st.lists(children, min_size=1, max_size=3),
        st.just(False) | children,
    )
    return plain | prefixed


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-999, 999) | st.text('aé"\\\n/', max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab", max_size=2), inner),
    max_leaves=3,
)
_decimals = st.integers(-5_000_000, 5_000_000).map(lambda n: n / 1000)
_exclusive = st.tuples(_decimals, st.integers(1, 10**6)).map(
    lambda p: {"exclusiveMinimum": p[0], "exclusiveMaximum": round(p[0] + p[1] / 1000, 3)}
)
_leaves = st.one_of(
    st.sampled_from(
        [
            {"type": "boolean"},
            {"type": "null"},
            {"type": "string"},
            {"type": "number"},
            {"type": "integer"},
            {"type": ["string", "null"], "maxLength": 2},
            {"type": "integer", "multipleOf": 7},
            {"type": "string", "pattern": "^[a-c]{2}(x|y)?$"},
            {"type": "string", "pattern": "[b-dé]."},
            {},
        ]
    ),
    _bounds(st.integers(0, 5), "minLength", "maxLength").map(lambda b: {"type": "string", **b}),
    _bounds(st.integers(-2000, 2000), "minimum", "maximum").map(lambda b: {"type": "integer", **b}),
    _bounds(_decimals, "minimum", "maximum").map(lambda b: {"type": "number", **b}),
    _exclusive.map(lambda b: {"type": "number", **b}),
    _decimals.map(lambda low: {"type": "number", "minimum": low}),
    _decimals.map(lambda high: {"type": "number", "exclusiveMaximum": high}),
    st.lists(_values, min_size=1, max_size=3).map(lambda values: {"enum": values}),
    _values.map(lambda value: {"const": value}),
)
SCHEMAS = st.recursive(
    _leaves,
    lambda children: (
        _objects(children)
        | _arrays(children)
        | st.lists(children, min_size=1, max_size=3).map(lambda branches: {"anyOf": branches})
        | children.map(lambda child: {"allOf": [child]})
    ),
    max_leaves=6,
)
"""JSON Schemas that the project accepts."""

TREE: dict[str, Any] = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}},
            "required": ["v"],
        }
    },
    "$ref": "#/$defs/node",
}
"""A schema that refers to itself."""
