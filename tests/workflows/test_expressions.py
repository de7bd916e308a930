"""The expression language against Python's own operators, and what it refuses."""

from __future__ import annotations

import json
import math
import operator
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.expressions import Expression, ExpressionError, Template
from workflows.operators import FUNCTIONS, MAX_INTEGER

SCOPE = {
    "state": {"action": "retrieve", "round": 2, "hits": [{"id": "a"}, {"id": "b"}], "none": None},
    "inputs": {"k": 3, "question": "Who?"},
    "item": "x",
}


def value_of(text: str, scope: dict[str, Any] = SCOPE) -> Any:
    return Expression.parse(text).evaluate(scope)


# Expression and value grow together, so that no parser is needed to know the right answer.

Pair = tuple[str, Any]
numbers: st.SearchStrategy[Pair] = st.one_of(
    st.integers(0, 1000).map(lambda n: (str(n), n)),
    st.floats(0, 1000, allow_nan=False).map(lambda x: (repr(x), x)),
    st.sampled_from([("inputs.k", 3), ("state.round", 2), ('state["round"]', 2)]),
)
texts: st.SearchStrategy[Pair] = st.one_of(
    st.text(max_size=5).map(lambda t: (json.dumps(t), t)).filter(lambda p: "\\u" not in p[0]),
    st.sampled_from([("state.action", "retrieve"), ("inputs.question", "Who?")]),
)
truths: st.SearchStrategy[Pair] = st.sampled_from(
    [("true", True), ("False", False), ("null", None), ("state.missing", None)]
)


def arithmetic(inner: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    signs = {"+": operator.add, "-": operator.sub, "*": operator.mul}

    def join(left: Pair, sign: str, right: Pair) -> Pair:
        return f"({left[0]} {sign} {right[0]})", signs[sign](left[1], right[1])

    def divide(left: Pair, sign: str, right: Pair) -> Pair:
        apply = {"/": operator.truediv, "//": operator.floordiv, "%": operator.mod}[sign]
        return f"({left[0]} {sign} ({right[0]} + 1001))", apply(left[1], right[1] + 1001)

    positive = numbers
    return st.one_of(
        st.builds(join, inner, st.sampled_from(list(signs)), inner),
        st.builds(divide, inner, st.sampled_from(["/", "//", "%"]), positive),
        inner.map(lambda p: (f"(-{p[0]})", -p[1])),
    )


sums = st.recursive(numbers, arithmetic, max_leaves=6).filter(lambda p: abs(p[1]) < 2**62)

COMPARE = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def compare(left: Pair, sign: str, right: Pair) -> Pair:
    return f"{left[0]} {sign} {right[0]}", COMPARE[sign](left[1], right[1])


def chain(a: Pair, first: str, b: Pair, second: str, c: Pair) -> Pair:
    value = COMPARE[first](a[1], b[1]) and COMPARE[second](b[1], c[1])
    return f"{a[0]} {first} {b[0]} {second} {c[0]}", value


signs = st.sampled_from(list(COMPARE))
comparisons = st.one_of(
    st.builds(compare, sums, signs, sums),
    st.builds(compare, texts, signs, texts),
    st.builds(chain, sums, signs, sums, signs, sums),
    st.builds(lambda a, b: (f"{a[0]} in {b[0]}", a[1] in b[1]), texts, texts),
    st.builds(lambda a, b: (f"{a[0]} not in [{b[0]}]", a[1] not in [b[1]]), sums, sums),
)


def logic(inner: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    return st.one_of(
        st.builds(lambda a, b: (f"({a[0]} and {b[0]})", a[1] and b[1]), inner, inner),
        st.builds(lambda a, b: (f"({a[0]} or {b[0]})", a[1] or b[1]), inner, inner),
        inner.map(lambda p: (f"(not {p[0]})", not p[1])),
        st.builds(
            lambda a, b, c: (f"({a[0]} if {b[0]} else {c[0]})", a[1] if b[1] else c[1]),
            inner,
            inner,
            inner,
        ),
        st.lists(inner, max_size=3).map(
            lambda ps: (f"[{', '.join(p[0] for p in ps)}]", [p[1] for p in ps])
        ),
        st.builds(lambda k, v: (f"{{{k[0]}: {v[0]}}}", {k[1]: v[1]}), texts_quoted, inner),
    )


texts_quoted = texts.filter(lambda p: p[0].startswith('"'))
anything = st.recursive(st.one_of(comparisons, truths, texts, sums), logic, max_leaves=6)


@given(anything)
def test_expressions_mean_what_python_means(pair: Pair) -> None:
    text, expected = pair
    found = value_of(text)
    assert found == expected
    assert type(found) is type(expected)


@given(st.text(max_size=60))
def test_any_text_is_an_expression_or_an_expression_error(text: str) -> None:
    try:
        value_of(text, {})
    except ExpressionError as error:
        assert 0 <= error.offset <= len(text)


@given(
    st.text(alphabet="ab()[]{}.,:'\"+-*/%<>=!&|^~@#$ \n\\0123_", max_size=40)
    | st.lists(
        st.sampled_from(
            ["state", ".", "a", "(", ")", "[", "]", "lambda", ":", "for", "in", "if", "else", "1"]
        ),
        max_size=15,
    ).map(" ".join)
)
def test_what_is_accepted_gives_json_or_an_expression_error(text: str) -> None:
    try:
        value = value_of(text, {"state": {"a": [1, {"b": "c"}]}, "a": 1, "b": "x"})
    except ExpressionError:
        return
    json.dumps(value, allow_nan=False)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("lambda: 1", "lambda"),
        ("(lambda x: x)(1)", "call"),
        ("[x for x in state.hits]", "comprehension"),
        ("f'{1}'", "f-string"),
        ("(x := 1)", ":="),
        ("[*state.hits]", "starred"),
        ("{**state}", "**"),
        ("2 ** 9", "**"),
        ("1 << 9", "<<"),
        ("~1", "~"),
        ("{1, 2}", "set"),
        ("state.none is null", "write =="),
        ("state.__class__", "__class__"),
        ("__builtins__", "__builtins__"),
        ("__import__('os')", "__import__"),
        ("open('x')", "open"),
        ("getattr(state, 'x')", "getattr"),
        ("state.action.lower()", "lower(text)"),
        ("lenn(state.hits)", "did you mean len()"),
        ("await state", "await"),
        ("b'x'", "bytes"),
        ("1j", "complex"),
        ("...", "ellipsis"),
        ("state.hits[0:1, 1]", "Slice"),
    ],
)
def test_a_forbidden_construct_is_named_with_what_is_allowed(text: str, named: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        Expression.parse(text)
    assert named in caught.value.problem
    assert "allowed are" in caught.value.problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("1 +", "not an expression"),
        ("a; b", "not an expression"),
        ("'open", "not closed"),
        ("state.a # note", "comment"),
        ("'\\d'", "invalid escape"),
        ("len", "is a function"),
        ("len(1, 2)", "2 arguments"),
        ("join(state.hits, separator=',')", "named arguments"),
        ("9223372036854775808", "64-bit"),
        ("1e999", "not finite"),
        ("x" * 2001, "2001 characters"),
        ("[" * 300 + "]" * 300, "nested"),
        ("not " * 100 + "true", "deeper"),
        ("1" + " + 1" * 400, "deeper"),
        ("[" + "1, " * 500 + "]", "parts"),
    ],
)
def test_a_malformed_expression_is_refused_when_it_is_read(text: str, problem: str) -> None:
    with pytest.raises(ExpressionError, match=problem.replace("(", r"\(")):
        Expression.parse(text)


def test_reading_leaves_the_warning_filters_alone() -> None:
    before = list(warnings.filters)
    Expression.parse("1 == 1")
    assert list(warnings.filters) == before


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1 / 0", "divides by zero"),
        ("inputs.k % 0", "divides by zero"),
        ("state.action + 1", "string 'retrieve' \\+ number 1"),
        ("state.none < 1", "null < number 1"),
        ("state.none.x", "null has no key 'x'"),
        ("state.hits.id", "list of 2 has no key"),
        ("state.hits[2]", "position 2"),
        ("state.hits['a']", "must be an integer"),
        ("state.hits[::0]", "step"),
        ("'a' * 10", "cannot compute"),
        ("'%s' % 1", "cannot compute"),
        ("9223372036854775807 + 1", "64-bit"),
        ("9223372036854775807 * 9223372036854775807", "64-bit"),
        ("1e308 * 10", "not finite"),
        ("int('x')", "cannot read"),
        ("int('9' + '9999999999999999999')", "64-bit"),
        ("float('nan')", "not finite"),
        ("min([])", "empty list"),
        ("sorted([1, 'a'])", "cannot order"),
        ("sum(['a'])", "cannot compute"),
        ("1 in 2", "contains nothing"),
        ("1 in 'abc'", "cannot contain"),
        ("nobody", "nothing is called 'nobody'"),
        ("lower(1)", "takes a string"),
        ("len(1)", "takes a string, list or object"),
        ("-state.action", "cannot negate"),
    ],
)
def test_a_failing_evaluation_names_expression_and_types(text: str, problem: str) -> None:
    with pytest.raises(ExpressionError, match=problem) as caught:
        value_of(text)
    assert caught.value.text == text


def test_texts_and_lists_cannot_grow_without_bound() -> None:
    scope = {"state": {"t": "x" * 6_000_000, "l": [0] * 600_000}}
    for text in ("state.t + state.t", "state.l + state.l", "join([state.t, state.t])"):
        with pytest.raises(ExpressionError, match="at most"):
            value_of(text, scope)
    with pytest.raises(ExpressionError, match="at most"):
        Template.compile("${state.t} ${state.t}").resolve(scope)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("len(state.hits)", 2),
        ("min(3, 1, 2)", 1),
        ("max([1, 5, 2])", 5),
        ("sum([1, 2.5])", 3.5),
        ("abs(-3)", 3),
        ("round(2.567, 1)", 2.6),
        ("int('12')", 12),
        ("float('1.5')", 1.5),
        ("str(true)", "true"),
        ("str(state.hits[0])", '{"id": "a"}'),
        ("lower('AB')", "ab"),
        ("upper('ab')", "AB"),
        ("strip(' a ')", "a"),
        ("join(pluck(state.hits, 'id'))", "a, b"),
        ("join([1, null, 'x'], '-')", "1--x"),
        ("contains(inputs.question, 'ho')", True),
        ("startswith(inputs.question, 'Wh')", True),
        ("endswith(inputs.question, '?')", True),
        ("any([0, 1])", True),
        ("all([0, 1])", False),
        ("sorted([3, 1, 2])", [1, 2, 3]),
        ("unique([1, true, 1, 'a', 'a'])", [1, True, "a"]),
        ("default(state.missing, 'd')", "d"),
        ("default(0, 'd')", 0),
        ("state.hits[-1].id", "b"),
        ("state.action[1:3]", "et"),
        ("state.action in ('retrieve', 'answer')", True),
        ("item", "x"),
        ("state.round\n  < 3", True),
    ],
)
def test_functions_and_access(text: str, expected: Any) -> None:
    found = value_of(text)
    assert found == expected
    assert type(found) is type(expected)


def test_every_function_is_called_by_a_test_above() -> None:
    marks = test_functions_and_access.pytestmark  # type: ignore[attr-defined]
    tried = " ".join(text for text, _ in marks[0].args[1])
    assert [name for name in FUNCTIONS if f"{name}(" not in tried] == []


def test_references_name_root_and_first_key() -> None:
    text = "state.a.b == inputs['k'] and item.x and state[inputs.n] and item and len(state)"
    assert Expression.parse(text).references == {
        ("state", "a"),
        ("inputs", "k"),
        ("item", "x"),
        ("state", ""),
        ("inputs", "n"),
        ("item", ""),
    }


def test_both_sides_of_and_are_not_evaluated_needlessly() -> None:
    assert value_of("state.none and state.none.x") is None
    assert value_of("true or 1 / 0") is True


@given(st.integers(-MAX_INTEGER, MAX_INTEGER), st.integers(-MAX_INTEGER, MAX_INTEGER))
def test_integers_are_exact_or_refused(a: int, b: int) -> None:
    scope = {"a": a, "b": b}
    for text, exact in (("a + b", a + b), ("a * b", a * b), ("a - b", a - b)):
        try:
            assert value_of(text, scope) == exact
        except ExpressionError:
            assert abs(exact) > MAX_INTEGER


def test_no_float_that_is_not_finite_comes_out() -> None:
    with pytest.raises(ExpressionError, match="finite"):
        value_of("state.x + 1", {"state": {"x": math.inf}})
