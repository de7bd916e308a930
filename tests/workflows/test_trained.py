"""Shipped workflows take the adapter that was trained on their engine's model, and say so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from inference.adapters import shipped
from inference.adapters.folder import WEIGHTS
from inference.adapters.lora import Adapter
from inference.engine import NativeConfig
from inference.models.manifest import sha256
from inference.native.engine import NativeEngine
from retrieval.index import build_index
from tests.inference.tiny import checkpoint
from workflows.loading import load_workflow
from workflows.resources import Overrides, ResourcePool, Resources
from workflows.runtime import RunOptions, RunResult, execute

NAMES = ("auto-rag-default", "reader-default")
ASKED = {"question": "Who keeps the lamp?"}
GIVEN = [{"title": name, "text": f"The {name} is kept by Mara."} for name in ("lamp", "oil")]
SHORT = {"max_rounds": 2, "max_parametric_rounds": 1, "turn_tokens": 6}
SHORT |= {"parametric_turn_tokens": 6, "recall_tokens": 4, "closing_tokens": 4}

Ask = Callable[..., RunResult]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, an index, and adapters for the first model in a folder like `weights/`."""
    home = tmp_path_factory.mktemp("home")
    for seed, name in enumerate(("model", "other")):
        checkpoint(home / name, seed=seed, context=4096)
    engine = NativeEngine.from_config(NativeConfig(model=str(home / "model"), dtype="float32"))
    shape, base = engine.adapters.shape, engine._model().weights_digest
    engine.close()
    out, width = shape.sizes["o_proj"]
    draw = torch.Generator().manual_seed(1)
    pair = torch.randn(2, width, generator=draw), torch.randn(out, 2, generator=draw)
    for name in NAMES:
        folder = home / "weights" / name
        Adapter.from_tensors(name, {(0, "o_proj"): pair}, 1.0, shape).save_peft(folder)
        card = {"options": {shipped.BASE: base}, "files": {WEIGHTS: sha256(folder / WEIGHTS)}}
        (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")
    docs = home / "docs"
    docs.mkdir()
    for name in ("lamp", "oil"):
        (docs / f"{name}.txt").write_text(f"The {name} is kept by Mara.", encoding="utf-8")
    build_index(docs, home / "index")
    return home


@pytest.fixture
def ask(home: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    monkeypatch.setattr(shipped, "SHIPPED", home / "weights")

    def _ask(name: str, model: str = "model", **inputs: Any) -> RunResult:
        workflow, pool = load_workflow(name), ResourcePool()
        config = NativeConfig(model=str(home / model), dtype="float32")
        chosen = Overrides(engine=config)
        resources = Resources(workflow.spec, pool, index=home / "index", overrides=chosen)
        try:
            checked = workflow.check_inputs({**ASKED, **inputs})
            return asyncio.run(execute(workflow, checked, resources, RunOptions("test")))
        finally:
            pool.close()

    return _ask


def noted(result: RunResult, node: str) -> Mapping[str, Any]:
    """What a node first noted in the trace."""
    assert result.error is None
    return next(notes for name, notes in trace(result) if name == node)


def trace(result: RunResult) -> list[tuple[str, Mapping[str, Any]]]:
    """Node and notes of each step."""
    return [(step["node"], step["notes"]) for step in result.steps]


def test_auto_rag_takes_its_turns_with_the_adapter(ask: Ask) -> None:
    with_it, without = ask("auto_rag", **SHORT), ask("auto_rag", trained=False, **SHORT)
    for result, name, shown in ((with_it, NAMES[0], 0), (without, None, 2)):
        opened, turn = noted(result, "open"), noted(result, "turn")
        assert (opened["adapter"], opened["demonstrations"]) == (name, shown)
        assert turn.get("adapter") == name
    assert noted(with_it, "turn")["text"] != noted(without, "turn")["text"]


@pytest.mark.parametrize("name, given", [("naive_rag", {}), ("reader", {"passages": GIVEN})])
def test_the_reader_cites_the_passage_its_answer_names(
    ask: Ask, name: str, given: dict[str, Any]
) -> None:
    with_it, without = ask(name, **given), ask(name, trained=False, **given)
    assert noted(with_it, "answer")["adapter"] == NAMES[1]
    assert noted(without, "answer")["adapter"] is None
    assert all("cited" in one for one in with_it.outputs["citations"])
    assert not any("cited" in one for one in without.outputs["citations"])


@pytest.mark.parametrize("name", ["auto_rag", "naive_rag", "reader"])
def test_another_model_runs_without_it(ask: Ask, name: str) -> None:
    others: dict[str, dict[str, Any]] = {"auto_rag": SHORT, "reader": {"passages": GIVEN}}
    given = others.get(name, {})
    steps = trace(ask(name, "other", **given))
    assert steps and all(notes.get("adapter") is None for _, notes in steps)
    assert steps == trace(ask(name, "other", trained=False, **given))


def test_a_nodes_own_adapter_takes_the_place_of_the_shipped_one(
    ask: Ask, home: Path, tmp_path: Path
) -> None:
    file = tmp_path / "own.yaml"
    own = json.dumps({"mine": str(home / "weights" / NAMES[0])})
    file.write_text(
        f"""
name: own
inputs: {{question: {{type: string}}}}
resources:
  engine: {{use: native, model: {home / "model"}, adapters: {own}}}
nodes:
  answer: {{use: reader.answer, adapter: mine, with: {{question: "${{inputs.question}}", passages: [], trained: true}}}}
edges:
  - {{from: start, to: answer}}
  - {{from: answer, to: end}}
outputs: {{answer: "${{state.answer}}"}}
"""  # noqa: E501
    )
    workflow, pool = load_workflow(file), ResourcePool()
    resources = Resources(workflow.spec, pool)
    done = execute(workflow, workflow.check_inputs(ASKED), resources, RunOptions("test"))
    assert noted(asyncio.run(done), "answer")["adapter"] is None
    pool.close()
