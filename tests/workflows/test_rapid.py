"""The shipped workflow over real indexes: who reads what, when nothing is drafted, same answers."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from api import RAPID
from inference import Capability, Message, Request
from inference.engine import NativeConfig
from inference.native.engine import NativeEngine
from inference.speculative.rapid import Rapid
from retrieval import Hit
from retrieval.chunking import ChunkSettings
from retrieval.index import build_index
from tests.api.agents.words import Words
from tests.inference.tiny import checkpoint
from tests.workflows.conftest import Run
from tests.workflows.replay import ReplayEngine
from workflows.loading import load_workflow
from workflows.resources import Overrides, ResourcePool, Resources
from workflows.runtime import RunOptions, RunResult, RunStatus, execute

QUESTION = "Who founded the Orrin Mill?"
MILL = "The Orrin Mill is a water mill. It was founded by Petra Lund in 1803."
LAKES = [
    f"Lake number {number} is fed by {number + 2} streams and freezes every winter. Its shore is "
    f"{number + 20} kilometres long, and boats cross it on every day but one." * 4
    for number in range(8)
]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One long document, in the middle of which the mill is spoken of."""
    docs, out = tmp_path_factory.mktemp("docs"), tmp_path_factory.mktemp("built") / "index"
    text = "\n\n".join([*LAKES[:4], MILL, *LAKES[4:]])
    (docs / "long.txt").write_text(text, encoding="utf-8")
    build_index(docs, out, settings=ChunkSettings(tokens=64, overlap=8))
    return out


def speaking() -> ReplayEngine:
    return ReplayEngine(
        ["Petra Lund."], capabilities=ReplayEngine([]).capabilities | set(Capability)
    )


def said(request: Request, of: str = "messages") -> str:
    messages = getattr(request, of)
    assert isinstance(messages, list) and isinstance(messages[1], Message)
    return str(messages[1].content)


def test_the_target_reads_the_document_and_the_drafter_what_is_similar(
    run: Run, index: Path
) -> None:
    engine = speaking()
    result = run("rapid", {"question": QUESTION, "draft_tokens": 80}, engine=engine, index=index)
    assert result.status is RunStatus.COMPLETED, result.error
    request = engine.requests[-1]
    assert isinstance(request.drafter, Rapid) and request.drafter.mode == "lossless"
    whole, excerpt = said(request), said(request, "draft_prompt")
    assert MILL in whole and MILL in excerpt
    lakes = [f"Lake number {number} is" for number in range(8)]
    assert [whole.index(lake) for lake in lakes] == sorted(whole.index(lake) for lake in lakes)
    assert sum(lake in excerpt for lake in lakes) < 4
    assert result.outputs["answer"] == "Petra Lund."
    assert result.outputs["fallback"] is None
    text = "\n\n".join([*LAKES[:4], MILL, *LAKES[4:]])
    assert result.outputs["citations"]
    for citation in result.outputs["citations"]:
        assert text[citation["start"] : citation["end"]] == citation["text"]
        assert citation["text"][20:-20] in excerpt
    assert any("Petra Lund" in citation["text"] for citation in result.outputs["citations"])


@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        ({"plain": True}, None),
        ({"threshold": 1.0}, "the most similar passage has a similarity of"),
        ({"gate": 0.99}, "the most similar passage has a similarity of"),
        ({"passages": 1, "draft_tokens": 7000}, "is no longer than the draft context of"),
    ],
)
def test_where_nothing_is_to_be_drafted_it_decodes_plainly_and_says_why(
    run: Run, index: Path, inputs: dict[str, Any], why: str | None
) -> None:
    engine = speaking()
    given = {"question": QUESTION, "draft_tokens": 80, **inputs}
    result = run("rapid", given, engine=engine, index=index)
    request = engine.requests[-1]
    assert request.drafter is None and request.draft_prompt is None
    assert MILL in said(request)
    assert (result.outputs["answer"], result.outputs["decoding"]) == ("Petra Lund.", "plain")
    assert result.outputs["citations"]
    if why is None:
        assert result.outputs["fallback"] is None
    else:
        assert why in result.outputs["fallback"]


class Nothing(Words):
    """A search that finds no passage."""

    @staticmethod
    def _best(query: str, k: int, exclude: Collection[str]) -> list[Hit]:
        return []


def test_a_search_that_finds_nothing_is_told_in_the_result() -> None:
    engine = speaking()
    with RAPID(engine=engine, retriever=Nothing()) as agent:
        result = agent.run(QUESTION).raise_if_failed()
    [request] = engine.requests
    assert request.drafter is None and request.draft_prompt is None
    assert (result.outputs["decoding"], result.citations) == ("plain", ())
    assert result.outputs["fallback"] == "the search found no passage"


def decode(engine: NativeEngine, index: Path, inputs: dict[str, Any]) -> RunResult:
    workflow = load_workflow("rapid")
    resources = Resources(
        workflow.spec, ResourcePool(), index=index, overrides=Overrides(engine=engine)
    )
    given = workflow.check_inputs({"question": QUESTION, **inputs})
    return asyncio.run(execute(workflow, given, resources, RunOptions("test")))


def alike(engine: NativeEngine, index: Path, inputs: dict[str, Any]) -> dict[str, Any]:
    """Run with and without the drafter, compare, and give the step of the drafted answer."""
    drafted = decode(engine, index, inputs)
    plain = decode(engine, index, {**inputs, "plain": True})
    assert drafted.status is plain.status is RunStatus.COMPLETED, (drafted.error, plain.error)
    assert (drafted.outputs["decoding"], plain.outputs["decoding"]) == ("rapid", "plain")
    assert drafted.outputs["answer"] == plain.outputs["answer"]
    assert drafted.outputs["citations"] == plain.outputs["citations"]
    step: dict[str, Any] = next(
        one for one in drafted.to_dict()["steps"] if one["node"] == "answer"
    )
    return step


def test_the_answer_is_that_of_plain_decoding(index: Path, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, context=8192, endless=True)
    engine = NativeEngine.from_config(
        NativeConfig(model=str(folder), dtype="float32", device="cpu")
    )
    try:
        step = alike(engine, index, {"draft_tokens": 300, "max_tokens": 40})
    finally:
        engine.close()
    notes = step["notes"]["drafter"]
    assert notes["name"] == "rapid" and notes["lossless"] and "fallback" not in notes
    assert notes["draft_rounds"] > 0
    assert notes["draft_prompt_tokens"] < step["usage"]["prompt_tokens"] / 2


@pytest.mark.default_model
def test_the_default_model_answers_alike(index: Path) -> None:
    engine = NativeEngine.from_config(NativeConfig(dtype="float32", device="cpu"))
    try:
        step = alike(engine, index, {"draft_tokens": 120, "max_tokens": 16})
    finally:
        engine.close()
    assert step["notes"]["drafter"]["draft_tokens"] > 0
