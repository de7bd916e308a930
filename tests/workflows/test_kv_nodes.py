"""A generating node under a cache policy: checks at load time, and what reaches the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from inference import Capability
from inference.engine import NativeConfig
from inference.kv import Random, StreamingLLM
from inference.native.engine import NativeEngine
from tests.inference.tiny import checkpoint
from tests.workflows.basis import BASE, TABLES, Large, faults_of, with_key
from tests.workflows.conftest import Run
from tests.workflows.replay import ReplayEngine
from workflows.errors import Fault
from workflows.jsonschema import workflow_schema
from workflows.source import parse_yaml
from workflows.validate import Tables


class Shrinking(Large):
    """An engine that declares cache policies."""

    provides = frozenset({*Large.provides, Capability.KV_POLICY})


ALL = Tables(TABLES.nodes, {**TABLES.engines, "shrinking": Shrinking}, TABLES.retrievers)
FINE = BASE.replace("use: small", "use: shrinking")
TEXT = """\
name: w
resources: {engine: {use: native}}
nodes:
  ask: {use: generate, with: {prompt: the fox jumps over the lazy dog, max_tokens: 30}, kv: KV}
edges: [{from: start, to: ask}, {from: ask, to: end}]
outputs: {answer: "${state.text}"}
"""


def faults(text: str) -> list[Fault]:
    return faults_of(text, ALL)


def with_kv(kv: str, base: str = FINE) -> str:
    return with_key("kv", kv, base)


@pytest.mark.parametrize(
    ("kv", "wrong"),
    [
        ("{use: streaming_llm, sinks: 2}", "{use: streaming_llm, sink: 2}"),
        ("{use: full}", "{use: empty}"),
        ("'random:budget=8,seed=3'", "{budget: 8}"),
        ("streaming_llm", "3"),
    ],
)
def test_each_form_is_fine_and_fits_the_published_schema(kv: str, wrong: str) -> None:
    text = with_kv(kv)
    assert faults(text) == []
    published = jsonschema.Draft202012Validator(workflow_schema(ALL))
    assert list(published.iter_errors(parse_yaml(text, "f").value)) == []
    assert list(published.iter_errors(parse_yaml(with_kv(wrong), "f").value)) != []


@pytest.mark.parametrize(
    ("kv", "says"),
    [
        ("{use: ¶streming_llm}", "unknown KV policy 'streming_llm'; did you mean 'streaming_llm'?"),
        ("{use: streaming_llm, ¶sink: 2}", "no option 'sink'; did you mean 'sinks'?"),
        ("{use: random, budget: ¶1}", "option budget=1 should be greater than or equal to 2"),
        ("{use: random, budget: ¶'8'}", "option budget='8' should be a valid integer"),
        ("¶'random:budget=x'", "option budget='x' should be a valid integer"),
        ("¶randm", "did you mean 'random'?"),
        ("¶3", "kv must be a mapping {use: NAME, OPTION: VALUE} or a text (found: 3)"),
    ],
)
def test_a_bad_policy_is_found_at_its_place(kv: str, says: str) -> None:
    text = with_kv(kv)
    mark = text.index("¶")
    (fault,) = faults(text.replace("¶", ""))
    assert fault.code == "bad_kv_policy"
    assert says in fault.message
    place = (text.count("\n", 0, mark) + 1, mark - text.rfind("\n", 0, mark))
    assert (fault.line, fault.column) == place


def test_a_mapping_without_a_name_is_found() -> None:
    (fault,) = faults(with_kv("{budget: 8}"))
    assert "needs its name under 'use'" in fault.message


def test_an_engine_without_policies_is_refused_naming_those_with() -> None:
    text = with_kv("streaming_llm", BASE)
    (fault,) = faults(text)
    assert fault.message == (
        "node 'ask' (ask) needs the capability 'kv_policy', which the engine 'engine' lacks; "
        "engines that have it: shrinking"
    )
    at = text.index("kv:")
    assert fault.column == at - text.rfind("\n", 0, at)


def test_a_node_that_generates_nothing_takes_no_policy() -> None:
    text = FINE.replace("count: {use: set,", "count: {use: set, kv: full,")
    assert [fault.code for fault in faults(text)] == ["not_generating"]


def test_the_policy_reaches_the_engine(run: Run) -> None:
    engine = ReplayEngine(["x"])
    run(TEXT.replace("KV", "{use: streaming_llm, sinks: 2, recent: 9}"), engine=engine)
    run(TEXT.replace("KV", "random:budget=9"), engine=engine)
    run(TEXT.replace(", kv: KV", ""), engine=engine)
    assert [request.kv for request in engine.requests] == [
        StreamingLLM(sinks=2, recent=9),
        Random(budget=9),
        None,
    ]


def test_a_step_of_a_real_model_notes_its_policy(run: Run, tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model", endless=True)
    engine: Any = NativeEngine.from_config(
        NativeConfig(model=str(model), dtype="float32", device="cpu")
    )
    result = run(TEXT.replace("KV", "{use: streaming_llm, sinks: 2, recent: 9}"), engine=engine)
    engine.close()
    assert result.steps[0]["notes"]["kv"] == {
        "policy": "streaming_llm",
        "options": {"sinks": 2, "recent": 9},
        "lossless": False,
        "entries": 11.0,
    }
