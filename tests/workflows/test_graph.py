"""A workflow that searches a graph: declared, checked, run, replayed, refused."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from retrieval.errors import RetrievalInputError
from workflows.errors import WorkflowInputError
from workflows.loading import load_workflow
from workflows.runs import RunOrder, prepare, start_run
from workflows.store import RunFolder

EXAMPLE = """
name: ask_graph
inputs:
  question: {type: string}
resources:
  graph: {use: graph, k: 2, hops: 2}
nodes:
  look: {use: retrieve, retriever: graph, with: {query: "${inputs.question}"}}
edges: [{from: start, to: look}, {from: look, to: end}]
outputs: {citations: "${state.hits}"}
budget: {seconds: 60, retrievals: 3}
"""
FACTS = "Ada\twrote\tNotes\nNotes\tdescribe\tEngine\nBabbage\tdesigned\tEngine\n"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """The workflow and the facts, under a home of their own."""
    monkeypatch.setenv("RAGWRIGHT_HOME", str(tmp_path / "home"))
    (tmp_path / "ask.yaml").write_text(EXAMPLE, encoding="utf-8")
    (tmp_path / "facts.tsv").write_text(FACTS, encoding="utf-8")
    return str(tmp_path / "ask.yaml"), tmp_path / "facts.tsv"


def test_a_run_cites_facts_and_records_the_graph(files: tuple[str, Path]) -> None:
    workflow, facts = files
    inputs = {"question": "What did Ada write?"}
    result = asyncio.run(start_run(RunOrder(workflow, inputs, graph=facts, run_id="g1")))
    first, second = result.outputs["citations"]
    assert (first["text"], first["title"]) == ("Ada wrote Notes", "Ada")
    assert first["source"] == f"{facts}:1" and second["text"] != first["text"]
    assert result.usage["retrievals"] == 1
    manifest = RunFolder.existing("g1").manifest()
    assert manifest.graph and manifest.graph_sha256 and manifest.index is None
    again = asyncio.run(start_run(RunOrder(workflow, inputs, graph=Path(manifest.graph))))
    assert again.outputs == result.outputs


def test_what_is_refused_before_a_run(files: tuple[str, Path], tmp_path: Path) -> None:
    workflow, facts = files
    inputs = {"question": "x"}
    with pytest.raises(WorkflowInputError, match="searches a graph; give --graph PATH"):
        prepare(RunOrder(workflow, inputs))
    with pytest.raises(WorkflowInputError, match="searches no documents; leave"):
        prepare(RunOrder(workflow, inputs, docs=facts, graph=facts))
    with pytest.raises(WorkflowInputError, match="uses no graph; leave --graph"):
        prepare(RunOrder("closed_book", inputs, graph=facts))
    facts.write_text("a\tb\n", encoding="utf-8")
    with pytest.raises(RetrievalInputError, match=r"facts\.tsv:1: 2 columns"):
        prepare(RunOrder(workflow, inputs, graph=facts))


def test_a_graph_that_changed_is_not_searched(files: tuple[str, Path]) -> None:
    from workflows.resources import ResourcePool
    from workflows.runs import _resources, workflow_of  # the step of `perform` that opens things

    workflow, facts = files
    manifest = prepare(RunOrder(workflow, {"question": "x"}, graph=facts))
    facts.write_text(FACTS + "Ada\tmet\tBabbage\n", encoding="utf-8")
    prepare(RunOrder(workflow, {"question": "x"}, graph=facts))
    with pytest.raises(WorkflowInputError, match="changed since run"):
        asyncio.run(_resources(workflow_of(manifest), manifest, ResourcePool()))


@pytest.mark.parametrize(
    ("old", "wrong", "fault"),
    [
        ("use: graph, k", "use: grahp, k", "unknown engine or retriever 'grahp'; did you mean"),
        ("hops: 2", "hops: 9", "option hops must be at most 4"),
        ("hops: 2", "depth: 1", "unknown option 'depth'"),
        ("retriever: graph,", "", "needs the retriever resource 'retriever'"),
    ],
)
def test_faults_of_the_file(files: tuple[str, Path], old: str, wrong: str, fault: str) -> None:
    workflow, _ = files
    file = Path(workflow)
    file.write_text(EXAMPLE.replace(old, wrong), encoding="utf-8")
    with pytest.raises(WorkflowInputError, match=fault):
        load_workflow(workflow)
