"""Names, paths, sub-workflows and inputs of workflows."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.errors import InvalidWorkflow, WorkflowInputError
from workflows.inputs import check_inputs, parse_input, type_problem
from workflows.loading import load_workflow, shipped_workflows
from workflows.schema import InputSpec

LEAF = """\
name: leaf
inputs: {question: {type: string}, k: {type: integer, default: 2, maximum: 5}}
nodes: {put: {use: set, with: {values: {answer: "${inputs.question}"}}}}
edges: [{from: start, to: put}, {from: put, to: end}]
outputs: {answer: "${state.answer}"}
"""


def caller(name: str, inputs: str = '{question: "${inputs.q}"}') -> str:
    return f"""\
name: caller
inputs: {{q: {{type: string}}}}
nodes: {{call: {{use: workflow, with: {{name: {name}, inputs: {inputs}}}}}}}
edges: [{{from: start, to: call}}, {{from: call, to: end}}]
outputs: {{answer: "${{state.outputs.answer}}"}}
"""


def write(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", shipped_workflows())
def test_a_shipped_workflow_is_valid_and_knows_its_text(name: str) -> None:
    workflow = load_workflow(name)
    assert workflow.spec.name == name
    raw = Path(workflow.file).read_bytes()
    assert workflow.sha256 == hashlib.sha256(raw).hexdigest()
    assert len(workflow.conditions) == len(workflow.spec.edges)
    assert set(workflow.options) == set(workflow.sampling) == set(workflow.spec.nodes)
    for edge, condition in zip(workflow.spec.edges, workflow.conditions, strict=True):
        assert (condition.text if condition else None) == edge.when


def test_an_unknown_name_gives_the_nearest_and_the_command() -> None:
    with pytest.raises(WorkflowInputError, match=r"did you mean 'auto_rag'.*workflows list"):
        load_workflow("auto_rg")


def test_a_path_works_as_text_or_path_and_a_missing_one_is_named(tmp_path: Path) -> None:
    write(tmp_path, leaf=LEAF)
    for path in (tmp_path / "leaf.yaml", str(tmp_path / "leaf.yaml")):
        assert load_workflow(path).spec.name == "leaf"
    with pytest.raises(WorkflowInputError, match=r"none\.yaml"):
        load_workflow(tmp_path / "none.yaml")


def test_a_sub_workflow_is_found_beside_its_caller(tmp_path: Path) -> None:
    write(tmp_path, leaf=LEAF, caller=caller("leaf.yaml"))
    workflow = load_workflow(tmp_path / "caller.yaml")
    assert workflow.children["call"].spec.name == "leaf"


def test_a_sub_workflow_may_be_a_shipped_one(tmp_path: Path) -> None:
    write(tmp_path, caller=caller("closed_book"))
    assert load_workflow(tmp_path / "caller.yaml").children["call"].spec.name == "closed_book"


@pytest.mark.parametrize(
    ("name", "inputs", "code", "remedy"),
    [
        ("leef.yaml", "{}", "unknown_workflow", "leef.yaml"),
        ("closed_bok", "{}", "unknown_workflow", "did you mean 'closed_book'"),
        ("../leaf.yaml", "{}", "unknown_workflow", "outside the folder"),
        ("/etc/hostname", "{}", "unknown_workflow", "outside the folder"),
        ("caller.yaml", "{}", "unknown_workflow", "circle: caller -> caller"),
        ('"${inputs.q}"', "{}", "expression_not_allowed", "write it out"),
        ("broken.yaml", "{}", "invalid_child", "broken.yaml:1:1: "),
        ("leaf.yaml", "{}", "missing_input", "needs the input 'question'"),
        ("leaf.yaml", "{questoin: a}", "unknown_input", "did you mean 'question'"),
        ("leaf.yaml", "{question: a, k: 9}", "bad_input", "at most 5"),
        ("leaf.yaml", "{question: 1}", "bad_input", "must be a string"),
    ],
)
def test_a_bad_call_is_a_fault_of_the_caller(
    tmp_path: Path, name: str, inputs: str, code: str, remedy: str
) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    write(tmp_path, leaf=LEAF)
    write(folder, leaf=LEAF, broken=LEAF.replace("name: leaf\n", ""), caller=caller(name, inputs))
    with pytest.raises(InvalidWorkflow) as caught:
        load_workflow(folder / "caller.yaml")
    found = {fault.code: fault for fault in caught.value.faults}
    assert code in found
    assert remedy in found[code].message
    assert found[code].line == 3


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    write(tmp_path, leaf=LEAF)
    (folder / "link.yaml").symlink_to(tmp_path / "leaf.yaml")
    write(folder, caller=caller("link.yaml"))
    with pytest.raises(InvalidWorkflow, match="outside the folder"):
        load_workflow(folder / "caller.yaml")


def test_calls_may_nest_but_not_without_end(tmp_path: Path) -> None:
    texts = {f"w{i}": caller(f"w{i + 1}.yaml", '{q: "${inputs.q}"}') for i in range(7)}
    last = caller("leaf.yaml")
    write(tmp_path, **texts, w7=last, leaf=LEAF)
    assert load_workflow(tmp_path / "w4.yaml").children["call"].children
    with pytest.raises(InvalidWorkflow, match="more than 5 deep"):
        load_workflow(tmp_path / "w1.yaml")


SPECS = {
    "question": InputSpec(type="string"),
    "k": InputSpec(type="integer", default=3, minimum=1, maximum=9),
    "mode": InputSpec(type="string", default="fast", choices=["fast", "slow"]),
    "tags": InputSpec(type="list", default=[]),
    "engine": InputSpec(type="string", default=None),
}


def test_defaults_are_filled_in_and_fresh() -> None:
    first = check_inputs("w", SPECS, {"question": "Who?"})
    assert first == {"question": "Who?", "k": 3, "mode": "fast", "tags": [], "engine": None}
    first["tags"].append(1)
    assert check_inputs("w", SPECS, {"question": "Who?"})["tags"] == []


def test_all_problems_of_the_inputs_are_told_at_once() -> None:
    given_inputs = {"kk": 1, "k": 10, "mode": "fats", "tags": "x", "engine": 1}
    with pytest.raises(WorkflowInputError) as caught:
        check_inputs("w", SPECS, given_inputs)
    message = str(caught.value)
    for part in (
        "unknown input 'kk'; did you mean 'k'?",
        "missing input 'question'",
        "'k' must be at most 9",
        "'mode' must be one of",
        "'tags' must be a list (found: string 'x')",
        "'engine' must be a string",
    ):
        assert part in message


@pytest.mark.parametrize("blank", ["", " ", "\n\t"])
def test_a_required_text_must_not_be_blank(blank: str) -> None:
    with pytest.raises(WorkflowInputError, match="must not be blank"):
        check_inputs("w", SPECS, {"question": blank})


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("string", "3", "3"),
        ("string", "", ""),
        ("integer", "3", 3),
        ("integer", "3.0", 3),
        ("number", "3", 3),
        ("number", "1e-3", 0.001),
        ("boolean", "true", True),
        ("boolean", "False", False),
        ("list", '["a", 1]', ["a", 1]),
        ("object", '{"a": null}', {"a": None}),
    ],
)
def test_a_command_line_text_becomes_the_declared_type(kind: Any, text: str, value: Any) -> None:
    found = parse_input(InputSpec(type=kind), text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("integer", "three"),
        ("integer", "3.5"),
        ("integer", "true"),
        ("integer", ""),
        ("number", "NaN"),
        ("number", "Infinity"),
        ("boolean", "yes"),
        ("boolean", "1"),
        ("list", "a,b"),
        ("object", "[1]"),
        ("list", "[" * 100_000),
    ],
)
def test_a_text_of_another_type_is_refused(kind: Any, text: str) -> None:
    with pytest.raises(WorkflowInputError, match="must be"):
        parse_input(InputSpec(type=kind), text)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)  # JSON has neither
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=3,
)


@given(st.sampled_from(["string", "integer", "number", "boolean", "list", "object"]), json_values)
def test_types_agree_with_json_schema(kind: Any, value: Any) -> None:
    import jsonschema

    if isinstance(value, float) and value.is_integer():
        return  # JSON Schema counts 1.0 as an integer
    schema_type = "array" if kind == "list" else kind
    valid = jsonschema.Draft202012Validator({"type": schema_type}).is_valid(value)
    assert (type_problem(InputSpec(type=kind), value) is None) == valid


@given(st.sampled_from(["integer", "number", "boolean", "list", "object"]), json_values)
def test_every_value_of_the_type_survives_the_command_line(kind: Any, value: Any) -> None:
    spec = InputSpec(type=kind)
    if type_problem(spec, value) is None:
        assert parse_input(spec, json.dumps(value)) == value
