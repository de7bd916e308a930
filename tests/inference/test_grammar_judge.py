"""Texts that others generated, held against their grammar."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.errors import GrammarInputError, GrammarTooSlow
from inference.grammar import Grammar
from inference.grammar.judge import Judge, verdict
from tests.inference.grammars import TREE

JUDGE = Judge()
SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "integer", "minimum": 0, "maximum": 12},
        "b": {"type": "array", "items": {"enum": ["x", "é🙂"]}, "maxItems": 2},
    },
    "required": ["a"],
}


def complete(grammar: Grammar, text: str) -> bool:
    note = verdict(JUDGE.matcher(grammar), text)
    assert note["kind"] == grammar.kind
    return bool(note["complete"])


@settings(deadline=None)
@given(
    a=st.integers(-2, 14),
    b=st.none() | st.lists(st.sampled_from(["x", "é🙂", "y"]), max_size=3),
    indent=st.none() | st.integers(0, 4),
    plain=st.booleans(),
    around=st.sampled_from(["", " ", "\n", "\r\n\t"]),
)
def test_json_is_judged_as_by_a_validator(
    a: int, b: list[str] | None, indent: int | None, plain: bool, around: str
) -> None:
    value = {"a": a} | ({} if b is None else {"b": b})
    text = around + json.dumps(value, indent=indent, ensure_ascii=False) + around
    valid = jsonschema.Draft202012Validator(SCHEMA).is_valid(value)
    assert complete(Grammar.json_schema(SCHEMA), text) == valid
    assert not complete(Grammar.json_schema(SCHEMA), text.rstrip()[:-1])


@settings(deadline=None)
@given(st.text("ab-c", max_size=8))
def test_a_regex_is_judged_as_by_re(text: str) -> None:
    pattern = "[ab]{2,4}-(a|c+)"
    assert complete(Grammar.regex(pattern), text) == bool(re.fullmatch(pattern, text))


@pytest.mark.parametrize(
    "text",
    ["", "   ", "{", "null", '{"a": 1} {"a": 1}', '{"a": NaN}', '{"b": [], "a": 1}', "\ud800"],
)
def test_what_is_no_text_of_the_grammar_is_not_complete(text: str) -> None:
    assert not complete(Grammar.json_schema(SCHEMA), text)
    assert not complete(Grammar.json_schema(TREE), text)
    assert complete(Grammar.regex("(.|\\n)*"), text) == (text != "\ud800")


def test_a_grammar_is_compiled_once_or_refused_in_time() -> None:
    with pytest.raises(GrammarInputError, match="cannot be compiled"):
        JUDGE.matcher(Grammar.ebnf("root ::= nothing"))
    with pytest.raises(GrammarTooSlow, match="within 0 s"):
        Judge(seconds=0.0).matcher(Grammar.regex("[a-z]{1,2000}"))
