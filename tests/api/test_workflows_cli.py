"""`ragwright workflows` and `ragwright schema` as a user meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from api.cli.workflows import schema, workflows
from workflows.jsonschema import workflow_schema
from workflows.loading import shipped_workflows

VALID = """\
name: small
inputs: {question: {type: string}}
nodes: {put: {use: set, with: {values: {answer: "${inputs.question}"}}}}
edges: [{from: start, to: put}, {from: put, to: end}]
outputs: {answer: "${state.answer}"}
"""
INVALID = VALID.replace("use: set", "use: sett").replace("inputs.question", "inputs.questoin")


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Paths of a valid and an invalid file."""
    (tmp_path / "good.yaml").write_text(VALID, encoding="utf-8")
    (tmp_path / "bad.yaml").write_text(INVALID, encoding="utf-8")
    yield str(tmp_path / "good.yaml"), str(tmp_path / "bad.yaml")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(workflows, arguments)


def test_list_names_every_shipped_workflow_with_its_description() -> None:
    rows = json.loads(call("list", "--json").stdout)["workflows"]
    assert [row["name"] for row in rows] == shipped_workflows()
    text = call("list").stdout
    for row in rows:
        assert row["description"]
        assert f"{row['name']} " in text
        assert row["description"] in text


def test_show_prints_a_flowchart() -> None:
    text = call("show", "naive_rag").stdout
    assert text.startswith("flowchart TD\n")
    shown = json.loads(call("show", "naive_rag", "--json").stdout)
    assert shown["mermaid"] == text
    assert "question" in shown["inputs"]


def test_validate_prints_one_line_for_each_fault(files: tuple[str, str]) -> None:
    good, bad = files
    result = call("validate", good, bad)
    assert result.exit_code == 2
    assert result.stdout == f"{good}: valid\n"
    lines = result.stderr.splitlines()
    row = INVALID.splitlines()[2]
    places = [row.index("sett") + 1, row.index("inputs.questoin") + 1]
    assert [line.split(": ")[0] for line in lines] == [f"{bad}:3:{place}" for place in places]
    assert lines[0].endswith("unknown node kind 'sett'; did you mean 'set'? [unknown_node_kind]")
    assert lines[1].endswith("[unknown_input]")


def test_validate_json_is_one_object_with_all_files(files: tuple[str, str]) -> None:
    good, bad = files
    result = call("validate", "--json", good, bad, f"{good}.none")
    assert result.exit_code == 2
    assert result.stderr == ""
    reports = json.loads(result.stdout)["files"]
    assert [report["valid"] for report in reports] == [True, False, False]
    assert [len(report["faults"]) for report in reports] == [0, 2, 1]
    assert set(reports[1]["faults"][0]) == {"line", "column", "code", "message"}


def test_validate_succeeds_where_all_files_are_valid(files: tuple[str, str]) -> None:
    assert call("validate", files[0], "auto_rag").exit_code == 0


def test_schema_prints_the_schema() -> None:
    assert json.loads(CliRunner().invoke(schema).stdout) == workflow_schema()


@pytest.mark.parametrize("name", ["nothing_like_it", "auto_rga"])
def test_an_unknown_name_is_one_line_and_status_2(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ragwright", "workflows", "show", name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith(f"ragwright: unknown workflow {name!r}")


def test_validating_imports_no_heavy_library(files: tuple[str, str]) -> None:
    script = (
        "import sys; from click.testing import CliRunner; from api.cli.workflows import workflows;"
        f"result = CliRunner().invoke(workflows, ['validate', {files[0]!r}]);"
        "assert result.exit_code == 0, result.output;"
        "heavy = {'torch', 'transformers', 'langgraph', 'faiss', 'bm25s', 'trafilatura'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
