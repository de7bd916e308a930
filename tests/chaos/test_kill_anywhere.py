"""Every shipped workflow, killed at every node boundary and inside every node, ends the same.

The tokens in the journal of a killed run are exactly those that its successor does not decode:
what the engine of the second attempt counts is what was left to do.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agents.atlas_calibration import AtlasCalibration, save
from agents.atlas_calibration import place as kept_at
from inference.engine import NativeConfig
from inference.models import models_home
from inference.native.engine import NativeEngine
from tests.inference.tiny import checkpoint
from workflows.loading import load_workflow
from workflows.shelves import shipped_workflows

Reports = dict[str, dict[str, Any]]
ROOT = Path(__file__).parents[2]
DOCUMENTS = {
    "fox": "# Fox\n\nThe fox lives in Vessmark.\n",
    "owl": "# Owl\n\nThe owl lives in Dorn.\n",
    "elk": "# Elk\n\nThe elk lives beside the fox.\n",
}

# A loop, a parallel map, a fan-out and a sub-workflow, so that steps are cut off side by side.
WOVEN = """
name: woven
inputs: {question: {type: string}}
state: {round: 0}
resources: {engine: {use: native}}
nodes:
  each:
    use: generate
    with: {prompt: "${word} ${inputs.question} ${state.round}", max_tokens: 9}
    over: "${['a', 'b', 'c']}"
    item: word
    into: parts
    sampling: {temperature: 1.0}
  inner: {use: workflow, with: {name: closed_book, inputs: {question: "round ${state.round}"}}}
  count: {use: set, with: {values: {round: "${state.round + 1}"}}}
edges:
  - {from: start, to: [each, inner]}
  - {from: [each, inner], to: count}
  - {from: count, when: "state.round < 2", to: [each, inner]}
  - {from: count, to: end}
outputs: {texts: "${pluck(state.parts, 'text')}", inner: "${state.outputs.answer}"}
"""

AUTO = {
    "turn_tokens": 7,
    "parametric_turn_tokens": 7,
    "recall_tokens": 6,
    "closing_tokens": 5,
    "demonstrations": 0,
    "passages_per_round": 1,
    "max_parametric_rounds": 1,
}
ASKS = "auto_rag_asks.yaml"
"""Auto-RAG with turns that can only be queries, which the tiny model never writes by itself."""
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "closed_book": ("closed_book", {"max_tokens": 12}),
    "naive_rag": ("naive_rag", {"max_tokens": 12, "k": 2}),
    "auto_rag": ("auto_rag", {**AUTO, "max_rounds": 1}),
    "auto_rag.all_read": ("auto_rag", {**AUTO, "passages_per_round": 3, "max_rounds": 2}),
    "auto_rag.asks": (
        ASKS,
        {**AUTO, "turn_tokens": 14, "passages_per_round": 2, "max_rounds": 1},
    ),
    "reader": ("reader", {"max_tokens": 12, "passages": [{"title": "A", "text": "B."}]}),
    "rapid": ("rapid", {"max_tokens": 12, "draft_tokens": 40, "threshold": 0.0}),
    "drag": ("drag", {"max_tokens": 12, "k": 2, "demonstrations": 0}),
    "iter_drag": (
        "iter_drag",
        {"max_tokens": 32, "k": 1, "demonstrations": 0, "iterations": 1},
    ),
    "atlas": ("atlas", {"max_tokens": 12}),
    "woven": ("woven.yaml", {}),
}
ANEW = {"atlas"}
"""Whose answers may be taken back, so that they are not in the journal but decoded again."""
SEARCHES = {"rapid", "atlas"}
"""Workflows that are given documents, besides those with rag in their name."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage")
    checkpoint(folder / "model", context=4096, endless=True)
    (folder / "docs").mkdir()
    for name, text in DOCUMENTS.items():
        (folder / "docs" / f"{name}.md").write_text(text, encoding="utf-8")
    (folder / "woven.yaml").write_text(WOVEN, encoding="utf-8")
    (folder / ASKS).write_text(asking(), encoding="utf-8")
    return folder


def asking() -> str:
    """The shipped workflow, whose turns in the retrieval phase are held to a grammar."""
    text = (ROOT / "workflows" / "library" / "auto_rag.yaml").read_text(encoding="utf-8")
    turn = "  turn: {use: auto_rag.turn, "
    assert text.count(turn) == 1
    return text.replace(turn, turn + "grammar: {regex: 'Query: [a-z]+'}, ")


def calibrate(home: Path, model: Path) -> None:
    """Thresholds of ATLAS by which every content token of the model triggers."""
    engine = NativeConfig(model=str(model)).open()
    assert isinstance(engine, NativeEngine)
    digest = engine.weights_digest
    engine.close()
    known: dict[str, Any] = {"model": str(model), "base_digest": digest, "tokens": 1, "texts": 1}
    shape: dict[str, Any] = {"form": "lookahead", "window": 32, "rate": 0.05, "gate_rate": 0.5}
    eager = AtlasCalibration(**known, **shape, max_probability=1.0, threshold=0.0)
    save(eager, home / "calibrations" / "atlas" / kept_at(digest, "lookahead", 32).name)


@pytest.fixture(scope="module")
def reports(stage: Path) -> Reports:
    """What came of killing each case everywhere."""
    home = stage / "home"
    home.mkdir()
    (home / "models").symlink_to(models_home(), target_is_directory=True)
    calibrate(home, stage / "model")
    orders = {
        name: {
            "workflow": str(stage / workflow) if workflow.endswith(".yaml") else workflow,
            "inputs": {"question": "Where?", **inputs},
            "docs": str(stage / "docs") if "rag" in workflow or workflow in SEARCHES else "",
            "seed": 3,
        }
        for name, (workflow, inputs) in CASES.items()
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.forks", str(stage / "model"), json.dumps(orders)],
        cwd=ROOT,
        env={
            **os.environ,
            "RAGWRIGHT_HOME": str(home),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stderr, file=sys.stderr)
    assert done.returncode == 0
    found: Reports = json.loads(done.stdout)
    return found


def test_every_shipped_workflow_is_killed_here() -> None:
    assert {workflow for workflow, _ in CASES.values()} >= set(shipped_workflows())


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_is_killed_anywhere_ends_as_if_it_were_not(case: str, reports: Reports) -> None:
    report = reports[case]
    whole = report["whole"]
    assert whole["result"]["status"] == "completed", whole["result"]["error"]
    assert whole["decoded"] == whole["result"]["usage"]["completion_tokens"] > 0
    for kill in report["kills"]:
        place, resumed = kill["place"], kill["resumed"]
        assert kill["status"] == -signal.SIGKILL, place
        assert kill["again"] == 0, place
        assert resumed["state"] == whole["state"], place
        result = resumed["result"]
        assert result["status"] == "completed", (place, result["error"])
        assert result["outputs"] == whole["result"]["outputs"], place
        effective = [step for step in result["steps"] if not step.get("superseded")]
        expected = [step["task"] for step in whole["result"]["steps"]]
        assert sorted(step["task"] for step in effective) == sorted(expected), place
        assert kill["journalled"] + resumed["decoded"] == whole["decoded"], place
        lost = [step for step in result["steps"] if step.get("superseded") and case in ANEW]
        spent = whole["decoded"] + sum(step["usage"]["completion_tokens"] for step in lost)
        assert result["usage"]["completion_tokens"] == spent, place
        assert result["ledger"]["run"]["completion_tokens"] == spent, place
    places = {kill["place"] for kill in report["kills"]}
    for node in {step["node"] for step in whole["result"]["steps"]}:
        assert {f"step_started {node}", f"step_finished {node}"} <= places
    generating = {e["node"] for e in whole["events"] if e["type"] == "tokens_produced"}
    assert {
        place.split()[1] for place in places if place.startswith("tokens_produced")
    } <= generating
    taken = any(kill["resumed"]["resumed"] for kill in report["kills"])
    assert taken != (case in ANEW), "nothing was taken over, or what may be taken back was"


def test_every_node_of_auto_rag_was_killed(reports: Reports) -> None:
    wholes = [report["whole"] for case, report in reports.items() if case.startswith("auto_rag")]
    nodes = {step["node"] for whole in wholes for step in whole["result"]["steps"]}
    assert nodes == set(load_workflow("auto_rag").spec.nodes)
