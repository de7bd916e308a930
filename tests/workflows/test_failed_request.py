"""A generation that fails in the engine fails its step and the run, with the engine's reason."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from inference.engine import NativeConfig
from inference.native.engine import NativeEngine
from tests.inference.tiny import POISON, checkpoint, tokenizer
from tests.workflows.conftest import Run
from workflows.runtime import RunStatus

TEXT = """\
name: w
inputs: {text: {type: string}}
resources: {engine: {use: native}}
nodes:
  ask: {use: generate, with: {prompt: "${inputs.text}", max_tokens: 3}}
edges: [{from: start, to: ask}, {from: ask, to: end}]
outputs: {answer: "${state.text}"}
"""


@pytest.mark.parametrize("streamed", [False, True])
def test_the_run_says_why_and_counts_what_was_spent(
    run: Run, tmp_path: Path, streamed: bool
) -> None:
    model = checkpoint(tmp_path / "model", poison=math.nan)
    engine: Any = NativeEngine.from_config(
        NativeConfig(model=str(model), dtype="float32", device="cpu")
    )
    fine = run(TEXT, {"text": "fox"}, engine=engine, stream_text=streamed)
    assert (fine.status, fine.error) == (RunStatus.COMPLETED, None)
    spelt = tokenizer().decode([POISON])
    failed = run(TEXT, {"text": f"x{spelt}"}, engine=engine, stream_text=streamed)
    engine.close()
    assert failed.status is RunStatus.FAILED and failed.error is not None
    assert failed.error["code"] == "broken_logits"
    assert "failed: the model computed logits of NaN for 320" in failed.error["message"]
    assert failed.usage["prompt_tokens"] > 0
