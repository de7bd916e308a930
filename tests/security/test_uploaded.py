"""Uploaded workflows are data: what they may not name is refused at line and column."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.checks.uploaded import MAX_FILES, check_uploaded
from workflows.errors import InvalidWorkflow, WorkflowInputError

PLAIN = """
name: up
inputs: {q: {type: string}}
resources:
  engine: {use: native}
  retriever: {use: hybrid}
nodes:
  look: {use: retrieve, with: {query: "${inputs.q}"}}
  say: {use: generate, with: {prompt: "${inputs.q} ${len(state.hits)}"}}
  part: {use: workflow, with: {name: parts/part.yaml, inputs: {q: "${inputs.q}"}}}
  closed: {use: workflow, with: {name: closed_book, inputs: {question: x}}, save: {outputs: c}}
edges:
  - {from: start, to: look}
  - {from: look, to: say}
  - {from: say, to: part}
  - {from: part, to: closed}
  - {from: closed, to: end}
outputs: {text: "${state.text}", part: "${state.outputs}", closed: "${state.c}"}
"""
PART = """
name: part
inputs: {q: {type: string}}
resources: {engine: {use: native, model: default}}
nodes: {say: {use: generate, with: {prompt: "${inputs.q}"}}}
edges: [{from: start, to: say}, {from: say, to: end}]
outputs: {text: "${state.text}"}
"""
FILES = {"parts/part.yaml": PART}


def test_a_plain_upload_with_its_parts_is_taken() -> None:
    workflow = check_uploaded(PLAIN, FILES)
    assert set(workflow.texts()) == {"workflow.yaml", "parts/part.yaml", "shipped:closed_book"}


@pytest.mark.parametrize(
    ("engine", "option", "code"),
    [
        ("native, model: /etc", "model", "model_not_allowed"),
        ("native, model: ../secrets", "model", "model_not_allowed"),
        ("native, model: some/hub-model", "model", "model_not_allowed"),
        ("native, adapters: {a: /etc}", "adapters", "not_allowed_in_upload"),
        ("openai, base_url: 'http://10.0.0.1/v1'", "base_url", "not_allowed_in_upload"),
        ("openai, api_key_env: RAGWRIGHT_SECRET", "api_key_env", "not_allowed_in_upload"),
        ("openai, model: any, tokenizer: ../x", "tokenizer", "model_not_allowed"),
        ("vllm", "use", "engine_not_allowed"),
    ],
)
def test_paths_hosts_variables_and_programs_are_refused(
    engine: str, option: str, code: str
) -> None:
    text = PLAIN.replace("engine: {use: native}", f"engine: {{use: {engine}}}")
    with pytest.raises(InvalidWorkflow) as caught:
        check_uploaded(text, FILES)
    [fault] = caught.value.faults
    line = text.splitlines()[fault.line - 1]
    assert (fault.code, fault.line) == (code, 5)
    if option == "use":
        assert line[fault.column - 1 :].startswith("vllm")
    elif code == "not_allowed_in_upload":
        assert line[fault.column - 1 :].startswith(option)


def test_what_the_operator_allows_is_taken() -> None:
    text = PLAIN.replace("engine: {use: native}", "engine: {use: vllm, model: org/large}")
    workflow = check_uploaded(text, FILES, engines={"vllm", "native"}, models={"org/large"})
    assert workflow.spec.resources["engine"].use == "vllm"


def test_all_faults_come_at_once() -> None:
    text = PLAIN.replace(
        "engine: {use: native}",
        "engine: {use: openai, base_url: 'http://x', api_key_env: RAGWRIGHT_X}",
    ).replace("from: say, to: part", "from: say, to: prt")
    with pytest.raises(InvalidWorkflow) as caught:
        check_uploaded(text, FILES)
    assert len([f for f in caught.value.faults if f.code == "not_allowed_in_upload"]) == 2
    assert any("prt" in fault.message for fault in caught.value.faults)


@pytest.mark.parametrize(
    "name", ["../leaf.yaml", "/etc/passwd.yaml", "parts/../../x.yaml", "missing.yaml", "sub"]
)
def test_a_sub_workflow_comes_from_the_bundle_or_the_library(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidWorkflow) as caught:
        check_uploaded(PLAIN.replace("parts/part.yaml", name), FILES)
    [fault] = caught.value.faults
    assert (fault.code, fault.line) == ("unknown_workflow", 10)


def test_a_fault_inside_a_part_is_told_at_its_call() -> None:
    bad = PART.replace("model: default", "model: /etc")
    with pytest.raises(InvalidWorkflow, match=r"parts/part\.yaml:4:\d+: model '/etc'"):
        check_uploaded(PLAIN, {"parts/part.yaml": bad})


@pytest.mark.parametrize(
    "name",
    [
        *("/a.yaml", "../a.yaml", "a/../b.yaml", "a//b.yaml", "./a.yaml", "a.txt", "", "a\0.yaml"),
        *("shipped:auto_rag.yaml", "C:\\a.yaml", ".hidden.yaml", "workflow.yaml"),
        "a" * 300 + ".yaml",
    ],
)
def test_bad_file_names_are_refused(name: str) -> None:
    with pytest.raises(WorkflowInputError, match="file name"):
        check_uploaded(PLAIN, {**FILES, name: PART})


def test_a_bundle_has_a_bound() -> None:
    with pytest.raises(WorkflowInputError, match="at most"):
        check_uploaded(PLAIN, {f"{n}.yaml": PART for n in range(MAX_FILES + 1)})


@given(st.text(max_size=300))
def test_any_text_is_taken_or_refused(text: str) -> None:
    with pytest.raises(InvalidWorkflow):
        check_uploaded(text)
    with pytest.raises((InvalidWorkflow, WorkflowInputError)):
        check_uploaded(PLAIN, {"parts/part.yaml": text})
