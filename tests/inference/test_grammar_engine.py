"""Grammars through the native engine: every answer belongs to its grammar or says what cut it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable

import jsonschema
import pytest

from inference import (
    Capability,
    FinishReason,
    Grammar,
    InferenceInputError,
    Message,
    Output,
    Request,
    SamplingParams,
)
from inference.errors import GrammarInputError
from inference.native.engine import NativeEngine
from tests.inference.grammars import TREE

Tiny = Callable[..., NativeEngine]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "tags": {"type": "array", "items": {"enum": ["red", "blue"]}, "maxItems": 2},
        "score": {"type": "integer", "minimum": 0, "maximum": 10},
        "note": {"type": ["string", "null"], "maxLength": 3},
    },
    "required": ["name", "score"],
}


def _ask(engine: NativeEngine, grammar: Grammar | None, **sampling: object) -> Output:
    params = SamplingParams(**{"max_tokens": 150, **sampling})  # type: ignore[arg-type]
    return engine.generate([Request(prompt="the fox", grammar=grammar, sampling=params)])[0]


def _check(output: Output, text: Callable[[str], object]) -> bool:
    """Judge a finished answer; True if it was finished."""
    note = output.notes["grammar"]
    if output.finish_reason is FinishReason.LENGTH:
        return False
    assert output.finish_reason is FinishReason.STOP
    assert note["complete"] is True
    text(output.text)
    return True


@pytest.mark.parametrize("schema", [SCHEMA, TREE, {"type": "array", "items": {"type": "boolean"}}])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_every_answer_of_a_random_model_validates_or_is_cut(
    tiny: Tiny, kind: str, schema: dict[str, object]
) -> None:
    engine = tiny(kind)
    outputs = [_ask(engine, Grammar.json_schema(schema))]
    outputs += [
        _ask(engine, Grammar.json_schema(schema), temperature=temperature, seed=seed, **filters)
        for seed, temperature in enumerate((0.5, 1.0, 3.0, 3.0, 3.0, 3.0))
        for filters in ({}, {"top_k": 3, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.3})
    ]
    ended = [
        _check(output, lambda text: jsonschema.validate(json.loads(text), schema))
        for output in outputs
    ]
    assert sum(ended) >= 3


def test_regex_and_ebnf_answers_match(tiny: Tiny) -> None:
    pattern, rules = "[a-c]{2,4}-(north|south)", 'root ::= "(" root ")" | "x"{1,3}'
    for seed in range(4):
        sampling = {"temperature": 2.0, "seed": seed}
        one = _ask(tiny(), Grammar.regex(pattern), **sampling)
        assert _check(one, lambda text: _must(re.fullmatch(pattern, text)))
        two = _ask(tiny(), Grammar.ebnf(rules), **sampling)
        _check(two, lambda text: _must(re.fullmatch(r"\(*x{1,3}\)*", text)))


def _must(match: object) -> None:
    assert match is not None


def test_an_answer_that_is_cut_says_so(tiny: Tiny) -> None:
    output = _ask(tiny(), Grammar.regex("a{50}"), max_tokens=5)
    assert output.finish_reason is FinishReason.LENGTH
    assert output.notes["grammar"] == {"kind": "regex", "complete": False}
    whole = _ask(tiny(), Grammar.regex("a"), max_tokens=1)
    assert (whole.text, whole.finish_reason) == ("a", FinishReason.LENGTH)
    assert whole.notes["grammar"]["complete"] is True


def test_free_requests_beside_constrained_ones_are_unchanged(tiny: Tiny) -> None:
    engine = tiny()
    free = [
        Request(prompt=text, sampling=SamplingParams(max_tokens=20, temperature=1.0, seed=seed))
        for seed, text in enumerate(("the fox", "a river", "keys"))
    ]
    alone = [output.token_ids for output in engine.generate(free)]
    bound = [Request(prompt=request.prompt, grammar=Grammar.regex("[ab]{8}")) for request in free]
    mixed = [request for pair in zip(free, bound, strict=True) for request in pair]
    outputs = engine.generate(mixed)
    assert [output.token_ids for output in outputs[::2]] == alone
    assert all("grammar" not in output.notes for output in outputs[::2])
    assert all(re.fullmatch("[ab]{8}", output.text) for output in outputs[1::2])


def test_a_grammar_that_allows_all_changes_nothing_but_control_tokens(tiny: Tiny) -> None:
    engine = tiny(endless=True, ascii_only=True)
    anything = Grammar.regex("(.|\\n)*")
    assert _ask(engine, anything, max_tokens=15).text == _ask(engine, None, max_tokens=15).text


def test_a_stream_keeps_to_its_grammar(tiny: Tiny) -> None:
    request = Request(prompt="fox", grammar=Grammar.json_schema({"enum": ["left", "right"]}))

    async def collect() -> str:
        return "".join([chunk.text async for chunk in tiny().stream(request)])

    assert json.loads(asyncio.run(collect())) in ("left", "right")


def test_a_bad_grammar_refuses_its_call_and_the_engine_serves_on(tiny: Tiny) -> None:
    engine = tiny()
    bad = Request(prompt="fox", grammar=Grammar.ebnf("root ::= foo"))
    with pytest.raises(GrammarInputError, match='"foo" is not defined'):
        engine.generate([Request(prompt="fox"), bad])

    async def stream() -> None:
        async for _ in engine.stream(bad):
            pass

    with pytest.raises(GrammarInputError, match='"foo" is not defined'):
        asyncio.run(stream())
    assert _ask(engine, Grammar.regex("ab")).text == "ab"


def test_stop_strings_beside_a_grammar_are_refused() -> None:
    with pytest.raises(InferenceInputError, match=r"stop string '\\n'.*leave out stop"):
        Request(prompt="x", grammar=Grammar.regex("a"), sampling=SamplingParams(stop=("\n",)))


@pytest.mark.default_model
def test_the_default_model_fills_a_schema(default_engine: NativeEngine) -> None:
    assert Capability.GRAMMAR in default_engine.capabilities
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 30},
            "country": {"type": "string", "maxLength": 30},
            "capital": {"type": "boolean"},
        },
        "required": ["city", "country", "capital"],
    }
    question = "Is Paris the capital of France? Answer in JSON with city, country and capital."
    request = Request(
        messages=[Message("user", question)],
        grammar=Grammar.json_schema(schema),
        sampling=SamplingParams(max_tokens=60),
    )
    (output,) = default_engine.generate([request])
    assert output.finish_reason is FinishReason.STOP
    value = json.loads(output.text)
    jsonschema.validate(value, schema)
    assert "Paris" in value["city"]
