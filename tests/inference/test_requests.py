"""Requests and sampling parameters that cannot be meant are refused, naming value and remedy."""

from __future__ import annotations

import math
from dataclasses import fields
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference import InferenceInputError, Request, SamplingParams

NO_NUMBER = st.one_of(
    st.booleans(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.lists(st.integers(), max_size=2),
    st.complex_numbers(),
    st.decimals(),
    st.just({}),
    st.just(object()),
)
NO_INTEGER = NO_NUMBER | st.floats()
NOT_FINITE = st.sampled_from([math.nan, math.inf, -math.inf])

BAD: dict[str, tuple[st.SearchStrategy[Any], str]] = {
    "max_tokens": (NO_INTEGER | st.none() | st.integers(max_value=0), "at least 1"),
    "temperature": (
        NO_NUMBER | st.none() | NOT_FINITE | st.floats(max_value=0, exclude_max=True),
        "finite and >= 0",
    ),
    "top_k": (NO_INTEGER | st.integers(max_value=0), "at least 1, or left out"),
    "top_p": (
        NO_NUMBER
        | st.none()
        | NOT_FINITE
        | st.floats(max_value=0)
        | st.floats(min_value=1, exclude_min=True),
        "in (0, 1]",
    ),
    "min_p": (
        NO_NUMBER
        | st.none()
        | NOT_FINITE
        | st.floats(max_value=0, exclude_max=True)
        | st.floats(min_value=1, exclude_min=True),
        "in [0, 1]",
    ),
    "repetition_penalty": (
        NO_NUMBER | st.none() | NOT_FINITE | st.floats(max_value=0),
        "finite and > 0",
    ),
    "seed": (
        NO_INTEGER | st.integers(max_value=-1) | st.integers(min_value=2**64),
        "in [0, 2**64)",
    ),
    "stop": (
        st.sampled_from([("",), "word", ("a", ""), ("a", 3), None, 5, {"a"}, b"a", (b"a",)]),
        "non-empty strings",
    ),
}


def test_every_parameter_is_tried_here() -> None:
    assert set(BAD) == {field.name for field in fields(SamplingParams)}


@settings(deadline=None)
@given(st.sampled_from(sorted(BAD)), st.data())
def test_what_cannot_be_is_refused_naming_value_and_remedy(name: str, data: st.DataObject) -> None:
    values, rule = BAD[name]
    value = data.draw(values)
    with pytest.raises(InferenceInputError) as caught:
        SamplingParams(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"sampling parameter {name}={value!r} must be ")
    assert rule in message
    assert caught.value.code == "bad_input"


@settings(deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "max_tokens": st.integers(1),
            "temperature": st.floats(0, allow_infinity=False) | st.integers(0, 10),
            "top_k": st.none() | st.integers(1),
            "top_p": st.floats(0, 1, exclude_min=True) | st.just(1),
            "min_p": st.floats(0, 1) | st.integers(0, 1),
            "repetition_penalty": st.floats(0, exclude_min=True, allow_infinity=False),
            "seed": st.none() | st.integers(0, 2**64 - 1),
            "stop": st.lists(st.text(min_size=1)).map(tuple),
        },
    )
)
def test_what_can_be_is_taken_as_it_is(given_values: dict[str, Any]) -> None:
    params = SamplingParams(**given_values)
    assert {name: getattr(params, name) for name in given_values} == given_values


def test_numbers_of_numpy_are_numbers() -> None:
    SamplingParams(max_tokens=np.int64(3), temperature=np.float32(0.5), top_k=np.int32(2))  # type: ignore[arg-type]
    with pytest.raises(InferenceInputError, match="an integer, at least 1"):
        SamplingParams(max_tokens=np.float64(3.0))  # type: ignore[arg-type]


@settings(deadline=None)
@given(NO_NUMBER | st.floats(max_value=0) | st.just(math.nan))
def test_a_deadline_that_cannot_be_is_refused(seconds: Any) -> None:
    with pytest.raises(InferenceInputError, match=r"seconds=.*; give a number above 0") as caught:
        Request(prompt="x", id="r", seconds=seconds)
    assert "request 'r'" in str(caught.value)


@pytest.mark.parametrize("tenant", [None, 3, b"a", Decimal(1)])
def test_a_tenant_is_a_text(tenant: Any) -> None:
    with pytest.raises(InferenceInputError, match=r"tenant=.*; give a text, or leave it out"):
        Request(prompt="x", tenant=tenant)
