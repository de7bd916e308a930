"""Greedy decoding produces the tokens of transformers' own `generate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from inference import FinishReason, Message, Request, SamplingParams
from inference.native.engine import NativeEngine
from inference.native.prompts import encode
from tests.inference.tiny import network

Tiny = Callable[..., NativeEngine]

PROMPTS = [
    "The quick brown",
    "a",
    "🙂 東京",
    "A model reads tokens, keeps keys and values, and writes what comes next. " * 3,
    *(f"{word} {n}" for n, word in enumerate(["river", "fox", "dog", "keys"] * 4)),
]
VARIANTS = [
    ("llama", {}),
    ("qwen2", {}),
    ("mistral", {"sliding_window": None}),
    ("mistral", {"sliding_window": 16}),
]


def reference(engine: NativeEngine, request: Request, **options: Any) -> list[int]:
    """Ids that transformers generates for the request."""
    ids = torch.tensor([encode(engine._model(), request)])
    out = network(engine.model).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=request.sampling.max_tokens,
        do_sample=False,
        **options,
    )
    return out[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_greedy_equals_transformers(tiny: Tiny, kind: str, options: dict[str, Any]) -> None:
    engine = tiny(kind, **options)
    params = SamplingParams(max_tokens=40)
    requests = [Request(prompt=p, sampling=params) for p in PROMPTS]
    outputs = engine.generate(requests)
    assert [list(o.token_ids) for o in outputs] == [reference(engine, r) for r in requests]
    for output in outputs:
        ended = output.token_ids[-1] == 0
        assert output.finish_reason is (FinishReason.STOP if ended else FinishReason.LENGTH)
        assert output.stats.forwards == len(output.token_ids)
    assert len({o.token_ids for o in outputs}) > len(PROMPTS) // 2  # the models do vary


def test_repetition_penalty_equals_transformers(tiny: Tiny) -> None:
    engine = tiny("llama", endless=True)
    params = SamplingParams(max_tokens=30, repetition_penalty=1.7)
    plain = SamplingParams(max_tokens=30)
    changed = 0
    for prompt in PROMPTS[:6]:
        request = Request(prompt=prompt, sampling=params)
        ids = list(engine.generate([request])[0].token_ids)
        assert ids == reference(engine, request, repetition_penalty=1.7)
        changed += ids != reference(engine, Request(prompt=prompt, sampling=plain))
    assert changed


def test_messages_go_through_the_template(tiny: Tiny) -> None:
    engine = tiny("llama")
    dialogue = (Message("system", "be brief"), Message("user", "who?"))
    by_messages = Request(messages=dialogue, sampling=SamplingParams(max_tokens=8))
    text = "<|system|>be brief<|end|><|user|>who?<|end|><|assistant|>"
    by_text = Request(prompt=text, sampling=SamplingParams(max_tokens=8))
    assert encode(engine._model(), by_messages) == encode(engine._model(), by_text)
    first, second = engine.generate([by_messages, by_text])
    assert first.token_ids == second.token_ids
    assert engine.count_tokens(by_messages) == first.usage.prompt_tokens


def test_a_prompt_longer_than_one_prefill_pass(tiny: Tiny) -> None:
    engine = tiny("llama", context=2048)
    ids = tuple(4 + (7 * i * i) % 300 for i in range(1300))
    request = Request(token_ids=ids, sampling=SamplingParams(max_tokens=12))
    (output,) = engine.generate([request])
    assert list(output.token_ids) == reference(engine, request)
    assert output.stats.forwards == 3 + len(output.token_ids) - 1


@pytest.mark.default_model
def test_default_model_equals_transformers(default_engine: NativeEngine) -> None:
    params = SamplingParams(max_tokens=24)
    requests = [
        Request(messages=[Message("user", "What is the capital of France?")], sampling=params),
        Request(messages=[Message("user", "Write a haiku about the sea.")], sampling=params),
        Request(prompt="Water boils at", sampling=params),
    ]
    outputs = default_engine.generate(requests)
    for request, output in zip(requests, outputs, strict=True):
        assert list(output.token_ids) == reference(default_engine, request)
    assert "Paris" in outputs[0].text
