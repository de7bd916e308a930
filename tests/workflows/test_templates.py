"""Templates: values keep their type, text is written as text, braces are told apart."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.expressions import ExpressionError, Template


@pytest.mark.parametrize("value", [1, True, None, "x", [1, {"a": None}], {"a": [1.5]}])
def test_a_whole_template_keeps_the_type(value: Any) -> None:
    template = Template.compile("${state.v}")
    found = template.resolve({"state": {"v": value}})
    assert found == value
    assert type(found) is type(value)
    assert template.is_whole
    assert not template.is_constant


def test_a_template_inside_text_writes_values_as_text() -> None:
    scope = {"state": {"s": "é", "n": None, "b": False, "i": 3, "f": 0.5, "l": ["é", 1]}}
    text = "${state.s}|${state.n}|${state.b}|${state.i}|${state.f}|${state.l}"
    assert Template.compile(text).resolve(scope) == 'é||false|3|0.5|["é", 1]'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$${x}", "${x}"),
        ("a $${b} ${1}", "a ${b} 1"),
        ("${'}'}", "}"),
        ('${"{" + "}"}!', "{}!"),
        ("${ {'a': {'b': 2}}.a.b }", 2),
        ("${'\\'}'}", "'}"),
        ("${1}${2}", "12"),
        ("cost: $5 {x}", "cost: $5 {x}"),
        ("", ""),
    ],
)
def test_braces_and_escapes(text: str, expected: Any) -> None:
    assert Template.compile(text).resolve({}) == expected


@given(st.text())
def test_text_without_an_expression_stays_as_it_is(text: str) -> None:
    if "${" in text:
        return
    template = Template.compile(text)
    assert template.is_constant
    assert template.resolve({}) == text


@given(st.text())
def test_escaping_every_opening_gives_the_text_back(text: str) -> None:
    assert Template.compile(text.replace("${", "$${")).resolve({}) == text


def test_templates_reach_into_lists_and_objects() -> None:
    template = Template.compile({"a": ["${state.x}", {"b": "q ${inputs.k}"}], "c": 1})
    scope = {"state": {"x": [1]}, "inputs": {"k": 2}}
    assert template.resolve(scope) == {"a": [[1], {"b": "q 2"}], "c": 1}
    assert template.references == {("state", "x"), ("inputs", "k")}


def test_a_constant_template_gives_a_fresh_container_each_time() -> None:
    template = Template.compile({"a": []})
    template.resolve({})["a"].append(1)
    assert template.resolve({}) == {"a": []}


@pytest.mark.parametrize(("text", "offset"), [("ab ${1 $ 2}", 7), ("ab ${lambda: 1}", 5)])
def test_a_template_error_says_where_in_the_text(text: str, offset: int) -> None:
    with pytest.raises(ExpressionError) as caught:
        Template.compile(text)
    assert caught.value.offset == offset
