"""Log-probabilities of produced tokens against transformers' own forward pass."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from inference import Capability, Grammar, InferenceInputError, Request, SamplingParams
from inference.native.engine import NativeEngine
from tests.inference.tiny import network

Tiny = Callable[..., NativeEngine]
SETTINGS = [
    SamplingParams(max_tokens=12),
    SamplingParams(max_tokens=12, temperature=1.7, top_k=40, seed=3, repetition_penalty=1.5),
]


def wanted(engine: NativeEngine, prompt: list[int], produced: list[int]) -> torch.Tensor:
    """Log-probabilities [produced, vocabulary] by transformers."""
    with torch.inference_mode():
        logits = network(engine.model)(torch.tensor([prompt + produced]), use_cache=False).logits
    return torch.log_softmax(logits[0].double(), dim=-1)[len(prompt) - 1 : -1]


@pytest.mark.parametrize("params", SETTINGS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral", "qwen3"])
def test_they_are_those_of_the_model_before_any_filter(
    tiny: Tiny, kind: str, params: SamplingParams
) -> None:
    engine = tiny(kind)
    assert Capability.LOGPROBS in engine.capabilities
    prompt = [5, 70, 90, 200]
    requests = [
        Request(token_ids=prompt, sampling=params, logprobs=n, id=str(n)) for n in (0, 1, 20)
    ]
    plain, *outputs = engine.generate([Request(token_ids=prompt, sampling=params), *requests])
    assert plain.logprobs == () and "logprobs" not in plain.to_dict()
    rows = wanted(engine, prompt, list(plain.token_ids))
    for request, output in zip(requests, outputs, strict=True):
        assert output.token_ids == plain.token_ids
        assert [entry.id for entry in output.logprobs] == list(output.token_ids)
        for entry, row in zip(output.logprobs, rows, strict=True):
            assert entry.logprob == pytest.approx(float(row[entry.id]), abs=1e-4)
            assert request.logprobs is not None and len(entry.top) == request.logprobs
            best = sorted(row.tolist(), reverse=True)[: request.logprobs]
            assert [p for _, p in entry.top] == pytest.approx(best, abs=1e-4)
            assert entry.text == engine._model().tokenizer.decode([entry.id])
    if params.temperature == 0:
        assert all(entry.top[0] == (entry.text, entry.logprob) for entry in outputs[2].logprobs)
    json.dumps(outputs[2].to_dict(), allow_nan=False)


def test_the_end_token_has_one_and_it_names_itself(tiny: Tiny) -> None:
    request = Request(
        prompt="fox",
        sampling=SamplingParams(max_tokens=3),
        grammar=Grammar.regex("a"),
        logprobs=1,
    )
    (output,) = tiny().generate([request])
    assert [entry.text for entry in output.logprobs] == ["a", "<|end|>"]
    rows = wanted(tiny(), tiny()._model().tokenizer.encode("fox"), list(output.token_ids))
    for entry, row in zip(output.logprobs, rows, strict=True):
        assert entry.logprob == pytest.approx(float(row[entry.id]), abs=1e-4)
        assert entry.logprob <= entry.top[0][1], "the grammar, not the model, chose it"


@pytest.mark.parametrize("count", [-1, 21, True, 1.0, "3", float("nan")])
def test_a_count_that_cannot_be_is_refused(count: object) -> None:
    with pytest.raises(InferenceInputError, match=r"logprobs=.*; give 0 to 20, or leave it out"):
        Request(prompt="x", logprobs=count)  # type: ignore[arg-type]
