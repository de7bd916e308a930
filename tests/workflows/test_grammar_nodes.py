"""A generating node under a grammar: checks at load time, and what reaches the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from inference import Capability, Grammar
from inference.engine import NativeConfig
from inference.native.engine import NativeEngine
from tests.inference.tiny import checkpoint
from tests.workflows.basis import BASE, TABLES, Large, faults_of, with_key
from tests.workflows.conftest import Run
from tests.workflows.replay import ReplayEngine
from workflows.errors import Fault, InvalidWorkflow
from workflows.jsonschema import workflow_schema
from workflows.source import parse_yaml
from workflows.validate import Tables


class Exact(Large):
    """An engine that declares grammars."""

    provides = frozenset({*Large.provides, Capability.GRAMMAR})


ALL = Tables(TABLES.nodes, {**TABLES.engines, "exact": Exact}, TABLES.retrievers)
FINE = BASE.replace("use: small", "use: exact")
TEXT = """\
name: w
resources: {engine: {use: native}}
nodes:
  ask: {use: generate, with: {prompt: the fox, max_tokens: 200}, grammar: GRAMMAR}
edges: [{from: start, to: ask}, {from: ask, to: end}]
outputs: {answer: "${state.text}"}
"""


def faults(text: str) -> list[Fault]:
    return faults_of(text, ALL)


def with_grammar(grammar: str, base: str = FINE) -> str:
    return with_key("grammar", grammar, base)


@pytest.mark.parametrize(
    "grammar",
    ["{schema: {type: object}}", "{schema: true}", "{regex: '[ab]+$'}", "{ebnf: 'root ::= \"x\"'}"],
)
def test_each_kind_is_fine_and_fits_the_published_schema(grammar: str) -> None:
    text = with_grammar(grammar)
    assert faults(text) == []
    published = jsonschema.Draft202012Validator(workflow_schema(ALL))
    assert list(published.iter_errors(parse_yaml(text, "f").value)) == []
    wrong = parse_yaml(with_grammar("{regexp: a}"), "f").value
    assert list(published.iter_errors(wrong)) != []
    assert list(published.iter_errors(parse_yaml(with_grammar("{}"), "f").value)) != []


@pytest.mark.parametrize(
    ("grammar", "code", "says"),
    [
        ("{schema: {type: array, ¶uniqueItems: true}}", "bad_grammar", "leave it out"),
        (
            "{schema: {properties: {a: {anyOf: [{type: integer, ¶minimum: 2.5}]}}}}",
            "bad_grammar",
            "whole number",
        ),
        ("{schema: {¶type: strin}}", "bad_grammar", "did you mean 'string'"),
        ("{schema: {¶properteis: {}}}", "bad_grammar", "did you mean 'properties'"),
        ("{regex: ¶'a{9999999}'}", "bad_grammar", "at most 100000"),
        ("{regex: ¶''}", "bad_grammar", "empty"),
        ("{ebnf: ¶' '}", "bad_grammar", "empty"),
        ("{¶regexp: a}", "unknown_key", "did you mean 'regex'"),
        ("{regex: ¶3}", "wrong_type", "a string"),
    ],
)
def test_a_bad_grammar_is_found_at_its_place(grammar: str, code: str, says: str) -> None:
    text = with_grammar(grammar)
    mark = text.index("¶")
    (fault,) = [fault for fault in faults(text.replace("¶", "")) if fault.code == code]
    assert says in fault.message
    place = (text.count("\n", 0, mark) + 1, mark - text.rfind("\n", 0, mark))
    assert (fault.line, fault.column) == place


@pytest.mark.parametrize("grammar", ["{}", "{regex: a, schema: true}"])
def test_exactly_one_kind_is_given(grammar: str) -> None:
    (fault,) = faults(with_grammar(grammar))
    assert fault.code == "bad_grammar"
    assert "exactly one of schema, regex, ebnf" in fault.message


def test_an_engine_without_grammars_is_refused_naming_those_with() -> None:
    text = with_grammar("{regex: a}", BASE)
    (fault,) = faults(text)
    assert fault.code == "missing_capability"
    assert fault.message == (
        "node 'ask' (ask) needs the capability 'grammar', which the engine 'engine' lacks; "
        "engines that have it: exact"
    )
    at = text.index("grammar:")
    assert fault.column == at - text.rfind("\n", 0, at)


def test_a_node_that_generates_nothing_takes_no_grammar() -> None:
    text = FINE.replace("count: {use: set,", "count: {use: set, grammar: {regex: a},")
    assert [fault.code for fault in faults(text)] == ["not_generating"]


def test_stop_strings_beside_a_grammar_are_refused() -> None:
    text = with_grammar("{regex: a}").replace("temperature: 0.5", 'temperature: 0.5, stop: ["x"]')
    assert [fault.code for fault in faults(text)] == ["stop_beside_grammar"]


def test_the_grammar_reaches_the_engine_as_it_stands(run: Run) -> None:
    engine = ReplayEngine(["{}"])
    run(TEXT.replace("GRAMMAR", "{regex: 'a|\\${state.x}'}"), engine=engine)
    assert engine.requests[0].grammar == Grammar.regex("a|\\${state.x}")
    run(TEXT.replace(", grammar: GRAMMAR", ""), engine=engine)
    assert engine.requests[1].grammar is None


def test_stop_strings_of_a_node_give_way_to_its_grammar_and_the_trace_says_so(run: Run) -> None:
    engine = ReplayEngine(["yes"])
    text = TEXT.replace("max_tokens: 200", 'max_tokens: 200, stop: "${inputs.stop}"')
    text = text.replace("name: w", "name: w\ninputs: {stop: {type: list}}")
    result = run(text.replace("GRAMMAR", "{regex: a}"), {"stop": ["x"]}, engine=engine)
    assert engine.requests[0].sampling.stop == ()
    assert result.steps[0]["notes"]["stop_replaced_by_grammar"] == ["x"]
    literal = TEXT.replace("max_tokens: 200", "max_tokens: 200, stop: [x]")
    with pytest.raises(InvalidWorkflow, match="stop strings could cut"):
        run(literal.replace("GRAMMAR", "{regex: a}"), engine=engine)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_node_of_a_real_model_writes_what_its_schema_says(
    run: Run, tmp_path: Path, seed: int
) -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"verdict": {"enum": ["yes", "no"]}, "sure": {"type": "boolean"}},
        "required": ["verdict", "sure"],
    }
    model = checkpoint(tmp_path / "model", seed=seed)
    engine: Any = NativeEngine.from_config(
        NativeConfig(model=str(model), dtype="float32", device="cpu")
    )
    text = TEXT.replace("GRAMMAR", json.dumps({"schema": schema}))
    result = run(text, engine=engine)
    engine.close()
    jsonschema.validate(json.loads(result.outputs["answer"]), schema)
