"""`ragwright run`: the JSON object, the account, the trace, and bad input on one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.api.conftest import Ragwright
from tests.inference.tiny import checkpoint

GREET = """
name: greet
inputs:
  name: {type: string}
  times: {type: integer, default: 2, minimum: 1}
nodes: {put: {use: set, with: {values: {text: "${inputs.name} x${inputs.times}"}}}}
edges: [{from: start, to: put}, {from: put, to: end}]
outputs: {answer: "${state.text}"}
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs and indexes of a test lie in its own folder; models stay where they are cached."""
    from inference.models import models_home

    models = models_home()
    models.mkdir(parents=True, exist_ok=True)
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "models").symlink_to(models, target_is_directory=True)
    monkeypatch.setenv("RAGWRIGHT_HOME", str(folder))
    return folder


@pytest.fixture
def greet(tmp_path: Path) -> Path:
    file = tmp_path / "greet.yaml"
    file.write_text(GREET, encoding="utf-8")
    return file


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "fox.md").write_text("# Fox\n\nThe fox lives in Vessmark.\n", encoding="utf-8")
    (folder / "owl.md").write_text("# Owl\n\nThe owl lives in Dorn.\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(checkpoint(tmp_path_factory.mktemp("model"), context=8192, endless=True))


def _run(ragwright: Ragwright, *arguments: object) -> dict[str, Any]:
    status, out, errors = ragwright("run", *arguments, "--json")
    assert status == 0, errors
    result: dict[str, Any] = json.loads(out)
    return result


def test_the_json_object_has_the_keys_scripts_rely_on(ragwright: Ragwright, greet: Path) -> None:
    result = _run(ragwright, greet, "--input", "name=Ada", "--input", "times=3")
    assert list(result) == [
        "run_id",
        "workflow",
        "status",
        "outputs",
        "steps",
        "usage",
        "error",
        "ledger",
    ]
    assert (result["status"], result["error"]) == ("completed", None)
    assert result["outputs"] == {"answer": "Ada x3"}
    assert set(result["usage"]) == {
        "prompt_tokens",
        "cached_tokens",
        "completion_tokens",
        "model_calls",
        "retrievals",
        "seconds",
    }
    (step,) = result["steps"]
    assert {"node", "started_at", "seconds", "usage"} <= set(step)


@pytest.mark.parametrize("workflow", ["naive_rag", "auto_rag"])
def test_shipped_workflows_read_documents_with_any_model(
    ragwright: Ragwright, docs: Path, tiny: str, workflow: str
) -> None:
    limits = ["--input", "max_tokens=4"] if workflow == "naive_rag" else [
        "--input", "turn_tokens=4", "--input", "parametric_turn_tokens=4",
        "--input", "closing_tokens=4", "--input", "demonstrations=0",
        "--input", "passages_per_round=1", "--input", "max_rounds=2",
    ]  # fmt: skip
    question = ("--question", "fox", "--docs", docs, "--model", tiny)
    result = _run(ragwright, workflow, *question, *limits)
    again = _run(ragwright, workflow, *question, *limits)
    assert result["outputs"] == again["outputs"]
    assert result["outputs"]["citations"]
    for citation in result["outputs"]["citations"]:
        assert {"id", "title", "source", "start", "end", "text", "score"} <= set(citation)
        text = Path(citation["source"]).read_text(encoding="utf-8")
        assert text[citation["start"] : citation["end"]] == citation["text"]
    for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "model_calls"):
        assert result["usage"][name] == sum(step["usage"][name] for step in result["steps"])


def test_the_account_tells_steps_answer_sources_and_cost(
    ragwright: Ragwright, docs: Path, tiny: str
) -> None:
    status, out, _ = ragwright(
        "run", "naive_rag", "--question", "fox", "--docs", docs, "--model", tiny,
        "--input", "max_tokens=4", "--input", "k=1",
    )  # fmt: skip
    assert status == 0
    for part in (
        "1. retrieve",
        "2. answer",
        "Answer: ",
        "Sources",
        "fox.md, characters",
        "1 model",
    ):
        assert part in out


def test_the_trace_holds_every_event_and_ends_with_the_result(
    ragwright: Ragwright, greet: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.jsonl"
    result = _run(ragwright, greet, "--input", "name=Ada", "--trace", trace)
    events = [json.loads(line) for line in trace.read_text(encoding="utf-8").splitlines()]
    kinds = [event["type"] for event in events]
    assert kinds == ["run_started", "step_started", "step_finished", "run_finished"]
    assert events[-1]["result"] == result


def test_a_spent_budget_leaves_a_partial_result_that_can_be_resumed(
    ragwright: Ragwright, docs: Path, tiny: str
) -> None:
    status, out, errors = ragwright(
        "run", "naive_rag", "--question", "fox", "--docs", docs, "--model", tiny, "--json",
        "--run-id", "short", "--budget", "tokens=5", "--input", "max_tokens=4",
    )  # fmt: skip
    result = json.loads(out)
    assert status == 1 and result["status"] == "interrupted"
    assert result["error"]["code"] == "budget_exhausted"
    assert result["outputs"]["answer"] is None
    status, out, errors = ragwright("run", "--resume", "short", "--json", "--budget", "tokens=5000")
    resumed = json.loads(out)
    assert status == 0, errors
    assert resumed["outputs"]["answer"] is not None
    retrieved = [step for step in resumed["steps"] if step["node"] == "retrieve"]
    assert len(retrieved) == 1, "what was finished is not done again"


BAD: dict[str, tuple[list[str], str]] = {
    "unknown workflow": (["auto_rga", "--question", "x"], "auto_rag"),
    "missing file": (["nowhere.yaml", "--question", "x"], "nowhere.yaml"),
    "missing input": (["GREET"], "name"),
    "wrong type": (["GREET", "--input", "name=a", "--input", "times=two"], "times"),
    "out of range": (["GREET", "--input", "name=a", "--input", "times=0"], "at least 1"),
    "unknown input": (["GREET", "--input", "name=a", "--input", "tmies=2"], "times"),
    "no equals sign": (["GREET", "--input", "name"], "KEY=VALUE"),
    "given twice": (["GREET", "--input", "name=a", "--input", "name=b"], "twice"),
    "empty question": (["closed_book", "--question", " "], "question"),
    "no documents": (["auto_rag", "--question", "x"], "--docs"),
    "needless documents": (["GREET", "--input", "name=a", "--docs", "."], "no documents"),
    "missing documents": (["auto_rag", "--question", "x", "--docs", "nowhere"], "nowhere"),
    "two sources": (["auto_rag", "--question", "x", "--docs", ".", "--index", "."], "--index"),
    "no index": (["auto_rag", "--question", "x", "--index", "nowhere"], "nowhere"),
    "needless graph": (["GREET", "--input", "name=a", "--graph", "g.tsv"], "g.tsv"),
    "unknown engine": (["closed_book", "--question", "x", "--engine", "nativ"], "native"),
    "unknown model": (["closed_book", "--question", "x", "--model", "defualt"], "default"),
    "unknown budget": (["GREET", "--input", "name=a", "--budget", "token=3"], "tokens"),
    "negative budget": (["GREET", "--input", "name=a", "--budget", "tokens=-3"], "positive"),
    "bad budget": (["GREET", "--input", "name=a", "--budget", "tokens=x"], "number"),
    "bad run id": (["GREET", "--input", "name=a", "--run-id", "../x"], "../x"),
    "unwritable trace": (["GREET", "--input", "name=a", "--trace", "no/such/t"], "no/such/t"),
    "nothing": ([], "WORKFLOW"),
    "both": (["GREET", "--resume", "x"], "--resume"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_status_2(
    ragwright: Ragwright, greet: Path, home: Path, case: str
) -> None:
    arguments, named = BAD[case]
    status, out, errors = ragwright("run", *(str(greet) if a == "GREET" else a for a in arguments))
    assert status == 2, errors
    assert out == ""
    assert errors.startswith("ragwright: ") and errors.count("\n") == 1, errors
    assert named in errors
    assert not list(home.glob("runs/*")), "a bad order leaves no run behind"


def test_a_run_id_is_taken_once(ragwright: Ragwright, greet: Path) -> None:
    order = ("run", greet, "--input", "name=a", "--run-id", "one")
    assert ragwright(*order)[0] == 0
    status, _, errors = ragwright(*order)
    assert status == 2 and "'one' exists already" in errors


def test_an_engine_without_an_address_says_what_to_set(
    ragwright: Ragwright, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAGWRIGHT_OPENAI_BASE_URL", raising=False)
    status, out, err = ragwright("run", "closed_book", "--question", "Why?", "--engine", "openai")
    assert (status, out) == (2, "")
    assert err.startswith("ragwright: ")
    assert "RAGWRIGHT_OPENAI_BASE_URL" in err
    assert len(err.splitlines()) == 1
