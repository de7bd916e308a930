"""A generating node with a trigger: checks at load time, and answers that go back to search."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.ralm import last_words
from agents.triggers import METHODS
from inference import Capability, Message, Request, SamplingParams
from inference.engine import NativeConfig
from inference.native.engine import NativeEngine
from retrieval.index import build_index
from tests.inference.tiny import checkpoint
from tests.workflows.basis import BASE, TABLES, Large, faults_of, with_key
from workflows.checks.uploaded import check_uploaded
from workflows.events import TextDelta
from workflows.jsonschema import workflow_schema
from workflows.loading import load_workflow
from workflows.resources import Overrides, ResourcePool, Resources
from workflows.runtime import RunOptions, RunResult, RunStatus, execute
from workflows.source import parse_yaml
from workflows.validate import Tables


class Watching(Large):
    """An engine that shows attention."""

    provides = frozenset({*Large.provides, Capability.ATTENTION_WEIGHTS})


ALL = Tables(TABLES.nodes, {**TABLES.engines, "watching": Watching}, TABLES.retrievers)
FINE = BASE.replace("use: small", "use: watching")
TEXT = """\
name: w
resources: {engine: {use: native}, retriever: {use: bm25}}
nodes:
  ask:
    use: generate
    with: {prompt: the fox jumps over the lazy dog, max_tokens: 24, stop: STOP}
    trigger: TRIGGER
edges: [{from: start, to: ask}, {from: ask, to: end}]
outputs: {answer: "${state.text}", found: "${state.found}"}
"""
EAGER = "{use: atlas, max_probability: 1.0, threshold: 0.0, window: 8, k: 1, most: 3}"
NEVER = "{use: atlas, max_probability: 1.0, threshold: 1000000.0, window: 8}"


@pytest.mark.parametrize("trigger", ["{use: atlas}", "'atlas:window=16,form=outgoing'"])
def test_each_form_is_fine_and_fits_the_published_schema(trigger: str) -> None:
    text = with_key("trigger", trigger, FINE)
    assert faults_of(text, ALL) == []
    published = jsonschema.Draft202012Validator(workflow_schema(ALL))
    assert list(published.iter_errors(parse_yaml(text, "f").value)) == []
    bad = with_key("trigger", "{use: atlass}", FINE)
    assert list(published.iter_errors(parse_yaml(bad, "f").value)) != []


@pytest.mark.parametrize(
    ("trigger", "says"),
    [
        ("{use: ¶atlass}", "unknown trigger 'atlass'; did you mean 'atlas'?"),
        ("{use: atlas, ¶windw: 4}", "no option 'windw'; did you mean 'window'?"),
        ("{use: atlas, window: ¶1}", "option window=1"),
        ("{use: ralm, ¶query_tokens: 4}", "no option 'query_tokens'"),
    ],
)
def test_a_bad_trigger_is_found_at_its_place(trigger: str, says: str) -> None:
    text = with_key("trigger", trigger, FINE)
    mark = text.index("¶")
    (fault,) = faults_of(text.replace("¶", ""), ALL)
    assert fault.code == "bad_trigger" and says in fault.message
    assert fault.line == text.count("\n", 0, mark) + 1


def test_an_engine_that_shows_no_attention_is_refused() -> None:
    (fault,) = faults_of(with_key("trigger", "atlas", BASE), ALL)
    assert "needs the capability 'attention_weights'" in fault.message


def test_what_holds_for_whole_answers_goes_with_no_trigger() -> None:
    text = with_key("trigger", "atlas, grammar: {regex: a}", FINE)
    assert "trigger_with_grammar" in [fault.code for fault in faults_of(text, ALL)]


def test_an_upload_may_name_a_trigger() -> None:
    check_uploaded(TEXT.replace("TRIGGER", EAGER).replace("STOP", "[]"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("triggered"), endless=True, context=512)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    docs, out = tmp_path_factory.mktemp("docs"), tmp_path_factory.mktemp("built") / "index"
    for number, name in enumerate(["fox", "dog", "cat", "owl", "hen", "the", "jumps", "over"]):
        (docs / f"{name}.txt").write_text(f"The {name} of house {number} is {name}.", "utf-8")
    build_index(docs, out)
    return out


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[NativeEngine]:
    engine = NativeEngine.from_config(NativeConfig(model=str(folder), dtype="float32"))
    yield engine
    engine.close()


def answered(
    tmp_path: Path,
    folder: Path,
    index: Path,
    trigger: str,
    stop: str = "[]",
    *,
    budget: str = "{}",
    **options: Any,
) -> tuple[RunResult, dict[str, Any]]:
    file = tmp_path / "w.yaml"
    text = TEXT.replace("TRIGGER", trigger).replace("STOP", stop) + f"budget: {budget}\n"
    if trigger == "null":
        text = text.replace(', found: "${state.found}"', "")
    file.write_text(text, encoding="utf-8")
    workflow, pool = load_workflow(str(file)), ResourcePool()
    config = NativeConfig(model=str(folder), dtype="float32")
    resources = Resources(workflow.spec, pool, index=index, overrides=Overrides(engine=config))
    result = asyncio.run(execute(workflow, {}, resources, RunOptions("t", **options)))
    pool.close()
    assert result.status is RunStatus.COMPLETED, result.error
    return result, result.steps[0]["notes"]


def test_without_a_search_the_answer_is_that_of_plain_decoding(
    tmp_path: Path, folder: Path, index: Path
) -> None:
    """Segments of eight tokens, each going on behind the last, the tail of some written again."""
    watched, step = answered(tmp_path, folder, index, NEVER)
    plain, _ = answered(tmp_path, folder, index, "null")
    assert watched.outputs["answer"] == plain.outputs["answer"] != ""
    assert watched.outputs["found"] == [] and step["trigger"] == {"searches": []}


def test_a_trigger_goes_back_searches_and_goes_on(
    tmp_path: Path, folder: Path, index: Path, engine: NativeEngine
) -> None:
    plain, _ = answered(tmp_path, folder, index, "null")
    result, step = answered(tmp_path, folder, index, EAGER)
    searches = step["trigger"]["searches"]
    assert len(searches) == 3
    ats = [one["at"] for one in searches]
    assert ats == sorted(set(ats)), "a token is judged once"
    ids = [name for one in searches for name in one["passages"]]
    assert ids == [hit["id"] for hit in result.outputs["found"]] and len(set(ids)) == len(ids)
    assert result.usage["retrievals"] == 3
    assert result.usage["model_calls"] >= 7, "segments, and a query for each search"
    assert all(one["words"] and one["query"] and 0 < one["probability"] < 1 for one in searches)
    request = Request(
        messages=[Message("user", "the fox jumps over the lazy dog")],
        sampling=SamplingParams(max_tokens=24, temperature=0.0),
    )
    kept = engine.decode(engine.generate([request])[0].token_ids[: ats[0]]).strip()
    assert result.outputs["answer"].startswith(kept), "what stood before the token is kept"
    assert result.outputs["answer"] != plain.outputs["answer"], "and goes on over the passages"


def test_ralm_searches_behind_every_stride_for_the_last_words(
    tmp_path: Path, folder: Path, index: Path
) -> None:
    plain, _ = answered(tmp_path, folder, index, "null")
    result, step = answered(tmp_path, folder, index, "{use: ralm, stride: 8, k: 1, tokens: 24}")
    searches = step["trigger"]["searches"]
    assert [one["at"] for one in searches] == [8, 16]
    assert all(one["mlag"] is None and one["query"] == " ".join(one["words"]) for one in searches)
    ids = [name for one in searches for name in one["passages"]]
    assert ids == [hit["id"] for hit in result.outputs["found"]] and len(set(ids)) == 2
    assert result.usage["retrievals"] == 2 and result.outputs["answer"] != plain.outputs["answer"]
    first = searches[0]["words"]
    assert "lazy" in first, "the question is there while the answer is short"
    never, step = answered(tmp_path, folder, index, "{use: ralm, stride: 200}")
    assert never.outputs["answer"] == plain.outputs["answer"] and not step["trigger"]["searches"]


@given(st.lists(st.sampled_from([" the", " fox", "es", "", "\n", ".", " 19", "20"]), max_size=12))
def test_last_words_are_whole_and_in_order(pieces: list[str]) -> None:
    text = "".join(one or " " for one in pieces)
    for end in range(len(pieces) + 1):
        for count in range(1, 5):
            before = "".join(one or " " for one in pieces[:end]).split()
            words = last_words(pieces, end, count)
            assert words == before[len(before) - len(words) :]
    assert last_words(pieces, len(pieces), 99) == text.split()


def test_a_stop_string_ends_a_watched_answer(tmp_path: Path, folder: Path, index: Path) -> None:
    whole, _ = answered(tmp_path, folder, index, NEVER)
    letter = next(one for one in whole.outputs["answer"][4:] if one.isalpha())
    cut, step = answered(tmp_path, folder, index, NEVER, f'["{letter}"]')
    plain, _ = answered(tmp_path, folder, index, "null", f'["{letter}"]')
    assert cut.outputs["answer"] == plain.outputs["answer"]
    assert step["finish_reason"] == "stop_string"


def test_the_shipped_workflow_needs_thresholds_of_its_model(folder: Path, index: Path) -> None:
    workflow, pool = load_workflow("atlas"), ResourcePool()
    config = NativeConfig(model=str(folder), dtype="float32")
    resources = Resources(workflow.spec, pool, index=index, overrides=Overrides(engine=config))
    inputs = workflow.check_inputs({"question": "Who?"})
    result = asyncio.run(execute(workflow, inputs, resources, RunOptions("t")))
    pool.close()
    assert result.status is RunStatus.FAILED and result.error is not None
    assert "ragwright models calibrate" in result.error["message"]


def test_a_budget_that_runs_out_ends_an_answer_as_it_ends_a_plain_one(
    tmp_path: Path, folder: Path, index: Path
) -> None:
    """Forty tokens pay for the prompt and a part of the answer, and for no query."""
    for budget, searches in (("{tokens: 60}", 0), ("{retrievals: 1}", 1)):
        result, notes = answered(tmp_path, folder, index, EAGER, budget=budget)
        assert result.outputs["answer"]
        assert len(notes["trigger"]["searches"]) == searches
        assert "budget" in notes["trigger"]["short"]


def test_a_context_that_is_full_takes_no_more_passages(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, index: Path
) -> None:
    small = checkpoint(tmp_path_factory.mktemp("small"), endless=True, context=96)
    result, notes = answered(tmp_path, small, index, EAGER.replace("k: 1", "k: 5"))
    assert "context of 96 tokens" in notes["trigger"]["short"]
    assert len(notes["trigger"]["searches"]) < 3 and result.outputs["answer"]


def test_what_is_streamed_is_the_answer(tmp_path: Path, folder: Path, index: Path) -> None:
    said: list[str] = []
    sinks = [lambda event: said.append(event.text) if isinstance(event, TextDelta) else None]
    result, _ = answered(tmp_path, folder, index, EAGER, sinks=sinks, stream_text=True)
    assert "".join(said).strip() == result.outputs["answer"]


def test_found_is_written_only_where_something_searches() -> None:
    (fault,) = faults_of(
        TEXT.replace("    trigger: TRIGGER\n", "").replace("STOP", "[]"), Tables.default()
    )
    assert "no node writes state.found" in fault.message
    assert faults_of(TEXT.replace("TRIGGER", EAGER).replace("STOP", "[]"), Tables.default()) == []


@pytest.mark.parametrize("options", ["threshold=0.5", "max_probability=0.5"])
def test_thresholds_go_together(options: str) -> None:
    from agents.errors import TriggerInputError

    with pytest.raises(TriggerInputError, match="give both or neither"):
        METHODS.parse(f"atlas:{options}")
