"""The workflow `reader`: the given passages are what the model reads and what is cited."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from api import NaiveRAG, Reader
from tests.api.agents.words import Words
from tests.workflows.conftest import Run
from tests.workflows.replay import ReplayEngine
from workflows.errors import InvalidWorkflow, WorkflowInputError
from workflows.loading import load_workflow
from workflows.runtime import RunStatus

LAMP = {"title": "Lamp", "text": "The lamp is kept by Mara."}


def test_the_same_passages_are_read_as_after_a_search() -> None:
    """The prompt of `naive_rag` is that of `reader` over what `naive_rag` found."""
    engine = ReplayEngine(["Ruben Sorley"])
    with NaiveRAG(engine=engine, retriever=Words()) as searching:
        found = searching.run("who designed the Harrow Bridge ?", k=2)
    with Reader(engine=engine) as reading:
        passages = [{**one, "round": 1} for one in found.outputs["citations"]]
        read = reading.run("who designed the Harrow Bridge ?", passages=passages)
    first, second = engine.requests
    assert first.messages == second.messages and first.sampling.max_tokens == 64
    assert read.answer == found.answer == "Ruben Sorley"
    assert [one.id for one in read.citations] == [one.id for one in found.citations]
    assert [one.more for one in read.citations] == [{"round": 1}] * 2
    assert (read.usage.retrievals, read.usage.model_calls) == (0, 1)


def test_a_passage_of_ones_own_is_a_source_of_its_own() -> None:
    with Reader(engine=ReplayEngine(["Mara"])) as agent:
        result = agent.run("Who?", passages=[LAMP, {**LAMP, "id": "a"}]).raise_if_failed()
    first, second = result.citations
    assert (first.id, first.source, first.score) == ("given#1", "given", 0.0)
    assert first.text[first.start : first.end] == LAMP["text"]
    assert second.id == "a"


def test_no_passage_is_an_answer_without_citations(run: Run) -> None:
    result = run("reader", {"question": "Who?", "passages": []}, engine=ReplayEngine(["x"]))
    assert result.outputs == {"answer": "x", "citations": []}


@pytest.mark.parametrize(
    ("passage", "said"),
    [
        ({"title": "Lamp"}, "'text' is missing"),
        ({"text": "A lamp."}, "'title' is missing"),
        ({**LAMP, "text": 3}, "'text' is number 3"),
        ({**LAMP, "title": None}, "'title' is null"),
        ({**LAMP, "start": "0"}, "'start' is string '0'"),
        ({**LAMP, "end": True}, "'end' is boolean true"),
        ("A lamp.", "it is string 'A lamp.'"),
    ],
)
def test_what_is_no_passage_is_refused_before_anything_is_asked(
    run: Run, passage: Any, said: str
) -> None:
    engine = ReplayEngine(["never"])
    result = run("reader", {"question": "Who?", "passages": [LAMP, passage]}, engine=engine)
    assert result.status is RunStatus.FAILED and result.error is not None
    assert result.error["code"] == "node_failed" and engine.requests == []
    message = result.error["message"]
    assert "node 'answer' (reader.answer): option 'passages.1'" in message
    assert said in message and "give an object with the texts 'title' and 'text'" in message
    assert "Mara" not in message, "a message does not quote the passages"


def test_passages_are_a_list() -> None:
    with pytest.raises(WorkflowInputError, match="'passages' must be a list"):
        load_workflow("reader").check_inputs({"question": "Who?", "passages": "Mara"})


def test_a_bad_passage_in_a_file_is_found_when_it_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "fixed.yaml"
    file.write_text(
        """
name: fixed
resources: {engine: {use: native}}
nodes:
  answer: {use: reader.answer, with: {question: Who?, passages: [{title: Lamp}]}}
edges:
  - {from: start, to: answer}
  - {from: answer, to: end}
outputs: {answer: "${state.answer}"}
""",
        encoding="utf-8",
    )
    with pytest.raises(InvalidWorkflow, match="'text' is missing"):
        load_workflow(file)
