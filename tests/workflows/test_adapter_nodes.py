"""A generating node with adapters: checks at load time, and what reaches the engine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from inference.adapters.lora import Adapter
from inference.engine import NativeConfig
from inference.errors import AdapterInputError, Unsupported
from inference.native.engine import NativeEngine
from tests.inference.tiny import checkpoint
from tests.workflows.conftest import Run
from tests.workflows.replay import ReplayEngine
from workflows.errors import InvalidWorkflow
from workflows.loading import load_workflow
from workflows.resources import ResourcePool, Resources

TEXT = """\
name: w
resources: {engine: {use: native, model: MODEL, dtype: float32, adapters: {lamp: LAMP, oil: LAMP}}}
nodes:
  ask: {use: generate, with: {prompt: the fox, max_tokens: 12}, adapter: ADAPTER}
edges: [{from: start, to: ask}, {from: ask, to: end}]
outputs: {answer: "${state.text}"}
"""


def written(tmp_path: Path, text: str) -> str:
    file = tmp_path / "w.yaml"
    file.write_text(text, encoding="utf-8")
    return str(file)


@pytest.mark.parametrize(
    ("adapter", "names"), [("lamp", ("lamp",)), ("[oil, lamp]", ("oil", "lamp")), ("[]", ())]
)
def test_the_names_reach_the_engine(run: Run, adapter: str, names: tuple[str, ...]) -> None:
    engine = ReplayEngine(["x"])
    run(TEXT.replace("ADAPTER", adapter), engine=engine)
    assert engine.requests[0].adapters == names


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        (TEXT.replace("ADAPTER", "lmap"), "unknown_adapter", "did you mean 'lamp'"),
        (TEXT.replace("ADAPTER", "[lamp, lamp]"), "bad_adapter", "more than once"),
        (TEXT.replace("ADAPTER", "''"), "bad_value", "adapter"),
        (
            TEXT.replace("ADAPTER", "lamp").replace(", adapters: {lamp: LAMP, oil: LAMP}", ""),
            "unknown_adapter",
            "add `adapters: {lamp: FOLDER}`",
        ),
        (
            TEXT.replace("ADAPTER", "lamp").replace(
                "{use: native, model: MODEL, dtype: float32, adapters: {lamp: LAMP, oil: LAMP}}",
                "{use: openai}",
            ),
            "missing_capability",
            "needs the capability 'lora'.*engines that have it: native",
        ),
        (
            TEXT.replace("ADAPTER", "lamp").replace(
                "use: generate, with: {prompt: the fox, max_tokens: 12}",
                "use: set, with: {values: {text: x}}",
            ),
            "not_generating",
            "remove `adapter`",
        ),
    ],
)
def test_what_is_wrong_is_found_at_load_time(
    tmp_path: Path, text: str, code: str, says: str
) -> None:
    with pytest.raises(InvalidWorkflow, match=f"(?s){says}") as caught:
        load_workflow(written(tmp_path, text))
    assert code in {fault.code for fault in caught.value.faults}


@pytest.fixture
def real(tmp_path: Path) -> str:
    """The workflow over a tiny model and an adapter that changes what it writes."""
    model = checkpoint(tmp_path / "model", endless=True)
    engine = NativeEngine.from_config(NativeConfig(model=str(model), dtype="float32"))
    shape = engine.adapters.shape
    engine.close()
    torch.manual_seed(1)
    out, width = shape.sizes["down_proj"]
    pairs = {(n, "down_proj"): (torch.randn(2, width), torch.randn(out, 2)) for n in range(2)}
    Adapter.from_tensors("lamp", pairs, 0.5, shape).save_peft(tmp_path / "lamp")
    return TEXT.replace("MODEL", str(model)).replace("LAMP", str(tmp_path / "lamp"))


def test_a_real_model_writes_with_its_adapter(run: Run, real: str) -> None:
    plain = run(real.replace(", adapter: ADAPTER", "")).outputs["answer"]
    lamp = run(real.replace("ADAPTER", "lamp")).outputs["answer"]
    assert plain and lamp and plain != lamp


def test_an_engine_without_the_adapters_is_refused_before_the_run(
    tmp_path: Path, real: str
) -> None:
    def opened(text: str) -> None:
        workflow = load_workflow(written(tmp_path, text.replace("ADAPTER", "lamp")))
        pool = ResourcePool()
        try:
            asyncio.run(Resources(workflow.spec, pool).open())
        finally:
            pool.close()

    opened(real)
    with pytest.raises(Unsupported, match="of type 'llama' takes no adapters"):
        opened(real.replace("dtype: float32, adapters", "forward: transformers, adapters"))
    with pytest.raises(AdapterInputError, match="none"):
        opened(real.replace("oil: ", "oil: /none"))
