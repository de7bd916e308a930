"""Workflows of tenants: checked, kept, replaced, deleted."""

from __future__ import annotations

from pathlib import Path

import pytest

from api.library import Library, Quota
from api.library.errors import (
    QuotaExceeded,
    UnknownItem,
)
from workflows.errors import InvalidWorkflow, WorkflowInputError
from workflows.loading import load_workflow

FLOW = """name: NAME
inputs: {a: {type: string}}
nodes: {put: {use: set, with: {values: {text: "${inputs.a}"}}}}
edges: [{from: start, to: put}, {from: put, to: end}]
outputs: {answer: "${state.text}"}
"""
CALLS = """name: calls
nodes: {call: {use: workflow, with: {name: mine.yaml, inputs: {a: x}}}}
edges: [{from: start, to: call}, {from: call, to: end}]
outputs: {answer: "${state.outputs.answer}"}
"""


def test_workflows(library: Library) -> None:
    file = library.add_workflow("a", "mine", FLOW)
    assert (file.read_text(encoding="utf-8"), library.workflows("a")) == (FLOW, ["mine"])
    library.add_workflow("a", "mine", FLOW.replace("NAME", "other"))
    assert load_workflow(library.workflow("a", "mine")).spec.name == "other"
    caller = library.add_workflow("a", "calls", CALLS)
    assert load_workflow(caller).children["call"].spec.name == "other"
    assert library.workflows("b") == []
    with pytest.raises(UnknownItem, match="no workflow 'mine'"):
        library.workflow("b", "mine")
    with pytest.raises(InvalidWorkflow, match=r"mine\.yaml"):
        library.add_workflow("b", "calls", CALLS)
    library.remove_workflow("a", "mine")
    with pytest.raises(UnknownItem):
        library.remove_workflow("a", "mine")
    assert [path.name for path in file.parent.iterdir()] == ["calls.yaml"]


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("mine", "name: [", "workflow"),
        ("mine", FLOW + "# " + "x" * 2**20, "bytes, .* are allowed"),
        ("workflow", FLOW, "cannot be called"),
        (
            "mine",
            FLOW + "resources: {e: {use: openai, base_url: 'http://192.0.2.1'}}",
            "names a host",
        ),
        ("mine", CALLS.replace("mine.yaml", "../../other/workflow/x.yaml"), "outside the folder"),
        ("mine", CALLS.replace("mine.yaml", "/etc/x.yaml"), "outside the folder"),
    ],
)
def test_workflows_that_are_refused(library: Library, name: str, text: str, fault: str) -> None:
    with pytest.raises(WorkflowInputError, match=fault):
        library.add_workflow("a", name, text)
    assert library.workflows("a") == []


def test_only_so_many_workflows(tmp_path: Path) -> None:
    with Library(tmp_path, Quota(workflows=1)) as library:
        library.add_workflow("a", "one", FLOW)
        library.add_workflow("a", "one", FLOW)
        with pytest.raises(QuotaExceeded, match="1 workflows are kept already"):
            library.add_workflow("a", "two", FLOW)
