"""Masks and matchers: what is allowed, what rolls back, and trees of drafts."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference import Grammar, InferenceError, InferenceInputError, SamplingParams
from inference.errors import GrammarDeadEnd, GrammarInputError
from inference.native.sampling import choose, distribution
from tests.inference.chance import chi_square, counts
from tests.inference.grammars import (
    PADDING,
    SCHEMAS,
    STOP,
    TREE,
    WORDS,
    allowed,
    compiler,
    matcher,
    walk,
)
from tests.inference.test_sampling import expected

LIST = Grammar.regex("a(,[ab]+)*")
GRAMMARS = [
    LIST,
    Grammar.json_schema({"type": "array", "items": {"enum": ["a", "ab", 1]}}),
    Grammar.json_schema(TREE),
    Grammar.ebnf('root ::= "(" root ")" | "x"'),
]


@settings(max_examples=60, deadline=None)
@given(SCHEMAS, st.randoms(use_true_random=False))
def test_every_text_of_a_schema_validates(schema: Any, rng: random.Random) -> None:
    validator = jsonschema.Draft202012Validator(schema)
    start = matcher(Grammar.json_schema(schema))
    for _ in range(2):
        ids = walk(start.fork(), rng)
        if ids is not None:
            text = WORDS.decode(ids[:-1])
            validator.validate(json.loads(text))


def test_texts_of_a_recursive_schema_validate() -> None:
    rng, ended = random.Random(3), 0
    for _ in range(40):
        ids = walk(matcher(Grammar.json_schema(TREE)), rng)
        if ids is not None:
            jsonschema.validate(json.loads(WORDS.decode(ids[:-1])), TREE)
            ended += 1
    assert ended > 20


VALID = [
    ({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}, {"a": "é\n"}),
    ({"type": "array", "items": {"type": "number"}}, [1, -2.5, 0]),
    (TREE, {"v": 1, "next": {"v": 2}}),
    ({"type": "string", "format": "date"}, "2026-11-23"),
    ({"enum": ["x", None, {"k": [1]}]}, {"k": [1]}),
    ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, 5),
    ({"type": "object", "additionalProperties": {"type": "boolean"}}, {"yes": True, "no": False}),
]


@pytest.mark.parametrize(("schema", "value"), VALID)
def test_the_true_next_token_is_allowed_and_then_only_the_end(schema: Any, value: Any) -> None:
    jsonschema.validate(value, schema)
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    reader = matcher(Grammar.json_schema(schema))
    ids = WORDS.encode(text)
    for token in ids:
        assert token in allowed(reader.fill())
        assert not reader.terminated
        assert reader.accept(token)
    assert reader.complete
    if not text[-1].isdigit():
        assert allowed(reader.fill()) == {STOP}
    assert reader.accept(STOP)
    assert reader.terminated and reader.complete
    assert allowed(reader.fill()) == set()
    assert not reader.accept(ids[0])
    assert reader.note() == {"kind": "json_schema", "complete": True}


def test_control_tokens_and_padding_are_never_allowed() -> None:
    anything = matcher(Grammar.regex("(.|\\n)*"))
    control = {i for i in WORDS.added_tokens_decoder if i != STOP}
    found = allowed(anything.fill())
    assert control
    assert not found & (control | set(range(len(WORDS), len(WORDS) + PADDING)))
    assert STOP in found
    assert len(found) > 200
    assert not any(anything.accept(token) for token in control)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(GRAMMARS), st.integers(0, 30), st.integers(0, 30), st.randoms())
def test_rollback_and_fork_equal_a_fresh_matcher(
    grammar: Grammar, length: int, back: int, rng: random.Random
) -> None:
    reader = matcher(grammar)
    ids = (walk(reader, rng, limit=length) or []) if length else []
    if not ids:  # it grew longer than the limit: read again what fits
        reader, ids = _prefix(grammar, rng, length)
    back = min(back, len(ids))
    twin = reader.fork()
    twin.rollback(back)
    fresh = _replay(grammar, ids[: len(ids) - back])
    assert torch.equal(twin.fill(), fresh.fill())
    assert (twin.tokens, twin.complete) == (fresh.tokens, fresh.complete)
    whole = _replay(grammar, ids)
    assert torch.equal(reader.fill(), whole.fill()), "a fork changed its origin"
    for token in ids[len(ids) - back :]:
        assert twin.accept(token)
    assert torch.equal(twin.fill(), whole.fill())


def _prefix(grammar: Grammar, rng: random.Random, length: int) -> tuple[Any, list[int]]:
    reader, ids = matcher(grammar), []
    for _ in range(length):
        choices = sorted(allowed(reader.fill()) - {STOP})
        if not choices:
            break
        ids.append(rng.choice(choices))
        assert reader.accept(ids[-1])
    return reader, ids


def _replay(grammar: Grammar, ids: list[int]) -> Any:
    reader = matcher(grammar)
    assert all(reader.accept(token) for token in ids)
    return reader


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(GRAMMARS), st.integers(0, 6), st.data())
def test_tree_masks_equal_fresh_matchers_along_each_path(
    grammar: Grammar, length: int, data: st.DataObject
) -> None:
    rng = data.draw(st.randoms(use_true_random=False))
    reader, read = _prefix(grammar, rng, length)
    size = data.draw(st.integers(1, 14))
    parents = [-1, *(data.draw(st.integers(0, node - 1)) for node in range(1, size))]
    tokens, paths = [0], [list(read)]
    for node in range(1, size):
        path = paths[parents[node]]
        ahead = matcher(grammar)
        fine = all(ahead.accept(token) for token in path)
        good = sorted(allowed(ahead.fill())) if fine else []
        # Drafts that the grammar refuses, and stop tokens with drafts after them, are in there.
        bad = rng.randrange(len(WORDS))
        tokens.append(rng.choice(good) if good and rng.random() < 0.7 else bad)
        paths.append([*path, tokens[-1]])
    before = reader.fill().clone()
    masks = reader.tree_masks(parents, tokens)
    for node, path in enumerate(paths):
        fresh = matcher(grammar)
        reached = all(fresh.accept(token) for token in path)
        wanted = allowed(fresh.fill()) if reached else set()
        assert allowed(masks.words[node]) == wanted, (node, path)
        assert masks.alive[node] == bool(wanted)
    assert torch.equal(reader.fill(), before), "the tree changed its matcher"
    masked = masks.apply(torch.zeros(size, compiler().width))
    assert not masked.isnan().any()
    for node, alive in enumerate(masks.alive):
        finite = set(masked[node].isfinite().nonzero()[:, 0].tolist())
        assert finite == (allowed(masks.words[node]) if alive else set(range(compiler().width)))


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=1.0, top_k=4),
        SamplingParams(temperature=1.0, top_p=0.8),
        SamplingParams(temperature=2.0, min_p=0.1),
    ],
    ids=repr,
)
@pytest.mark.parametrize("read", ["a", "a,a"])
def test_sampling_under_a_mask_follows_the_renormalised_distribution(
    read: str, params: SamplingParams
) -> None:
    reader = _replay(LIST, WORDS.encode(read))
    torch.manual_seed(0)
    logits = torch.randn(compiler().width) * 2
    masked = reader.mask(logits)
    keep = sorted(allowed(reader.fill()))
    exact = np.zeros(compiler().width)
    # The allowed tokens alone, as if the vocabulary held no others.
    exact[keep] = expected(logits[keep].double().numpy(), params)
    found = counts(distribution(masked, params))
    if (exact > 0).sum() > 1:
        statistic, bound = chi_square(found, exact)
        assert statistic < bound
        unmasked = expected(logits.double().numpy(), params)
        with pytest.raises(AssertionError, match="no probability"):
            chi_square(counts(torch.tensor(unmasked)), exact)
    assert choose(masked, SamplingParams(), 0, 5, []) == keep[int(logits[keep].argmax())]


@pytest.mark.parametrize(
    ("kind", "source", "says"),
    [
        ("regex", "(ab", "parenthesis is not closed"),
        ("regex", "(?=a)b", "Lookahead"),
        ("regex", r"(a)\1", "Backreference"),
        ("regex", r"\bfoo", "Word boundary"),
        ("ebnf", "root ::= foo", '"foo" is not defined'),
        ("ebnf", 'top ::= "a"', '"root" is not found'),
        ("ebnf", 'root ::= "a', "Expect"),
        ("ebnf", 'root ::= a\na ::= a "x"', "no text belongs to it"),
    ],
)
def test_what_cannot_be_compiled_is_refused_with_its_reason(
    kind: Any, source: str, says: str
) -> None:
    with pytest.raises(GrammarInputError, match="correct it") as caught:
        matcher(Grammar(kind, source))
    assert says in str(caught.value)
    assert repr(source)[1:-1] in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "source", "says"),
    [
        ("regex", "", "empty"),
        ("regex", "a^b", "anchor"),
        ("regex", "a$b", "anchor"),
        ("regex", "a{9999999}", "at most 100000"),
        ("regex", "(a|b){1,99999999999999999999}", "at most 100000"),
        ("regex", "a{3,1}", "smaller number first"),
        ("regex", "(" * 200 + "a" + ")" * 200, "64 deep"),
        ("regex", "a" * 40_000, "more than 32768"),
        ("ebnf", "root ::= " + "(" * 200 + '"a"' + ")" * 200, "64 deep"),
        ("ebnf", 'root ::= "a"{1,1000000}', "at most 100000"),
        ("lark", "start: a", "json_schema, regex or ebnf"),
        ("json_schema", "{", "not JSON"),
        ("json_schema", '{"type":"string","type":"null"}', "twice"),
        ("json_schema", '{"maximum":NaN}', "NaN"),
        ("json_schema", "[" * 30_000, "nested too deeply"),
        ("regex", "\ud800", "surrogate"),
    ],
)
def test_bad_texts_are_refused_before_any_model(kind: Any, source: str, says: str) -> None:
    with pytest.raises(GrammarInputError) as caught:
        Grammar(kind, source)
    assert isinstance(caught.value, InferenceInputError)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_brackets_and_counts_inside_literals_are_no_structure() -> None:
    Grammar.regex(r"\(" * 100 + "[({]{2}" + r"\{9999999\}")
    Grammar.ebnf('root ::= "' + "(" * 100 + '{9999999}" [(]')


def test_a_dead_end_is_an_error_that_says_so() -> None:
    reader = _replay(Grammar.ebnf('root ::= "a" b | "c"\nb ::= "b" b'), WORDS.encode("ab"))
    logits = torch.zeros(compiler().width)
    reader.mask(logits)  # b can go on for ever; it is the length that ends such an answer
    reader = _replay(Grammar.regex("a+"), [*WORDS.encode("a"), STOP])
    with pytest.raises(GrammarDeadEnd, match="allows nothing after 2 tokens") as caught:
        reader.mask(logits)
    assert isinstance(caught.value, InferenceError)
