"""Scores equal the log-softmax of one full forward pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from inference import InferenceInputError, Message, Request
from inference.errors import PromptTooLong
from inference.native.engine import NativeEngine
from inference.native.prompts import encode
from tests.inference.tiny import network

Tiny = Callable[..., NativeEngine]
CONTINUATIONS = [" river", " lazy dog while the river runs", [7, 300, 9], [5]]


def full_forward(engine: NativeEngine, prompt: list[int], ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits = network(engine.model)(torch.tensor([prompt + ids]), use_cache=False).logits[0]
    rows = torch.log_softmax(logits.double(), dim=-1)[len(prompt) - 1 : -1]
    return rows.gather(1, torch.tensor(ids)[:, None])[:, 0]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral"])
def test_scores_equal_one_full_forward(tiny: Tiny, kind: str) -> None:
    engine = tiny(kind)
    engine.forget_prefixes()
    model = engine._model()
    for request in (
        Request(prompt="The quick brown fox"),
        Request(messages=[Message("user", "who runs north?")]),
    ):
        for _ in range(2):  # the second time the prompt comes from the prefix cache
            scores = engine.score(request, CONTINUATIONS)
            for given, score in zip(CONTINUATIONS, scores, strict=True):
                if isinstance(given, str):
                    assert model.decode(list(score.token_ids)) == given
                else:
                    assert list(score.token_ids) == given
                wanted = full_forward(engine, encode(model, request), list(score.token_ids))
                assert torch.allclose(torch.tensor(score.logprobs).double(), wanted, atol=1e-4)
                assert score.total == pytest.approx(float(wanted.sum()), abs=1e-3)


def test_a_continuation_longer_than_one_pass(tiny: Tiny) -> None:
    engine = tiny("llama", context=2048)
    ids = [4 + (7 * i * i) % 300 for i in range(1100)]
    (score,) = engine.score(Request(prompt="fox"), [ids])
    wanted = full_forward(engine, encode(engine._model(), Request(prompt="fox")), ids)
    assert torch.allclose(torch.tensor(score.logprobs).double(), wanted, atol=1e-3)


def test_what_cannot_be_scored_is_refused(tiny: Tiny) -> None:
    engine = tiny("llama", context=32)
    request = Request(token_ids=[5] * 20)
    assert engine.score(request, []) == []
    assert len(engine.score(request, [[5] * 12])[0].logprobs) == 12
    with pytest.raises(PromptTooLong, match=r"continuation 1 .* 13 tokens.* room for 12"):
        engine.score(request, [[5], [5] * 13])
    with pytest.raises(InferenceInputError, match=r"continuation 0 .* no tokens"):
        engine.score(request, [""])
    with pytest.raises(InferenceInputError, match=r"continuation 0 .* token id -1"):
        engine.score(request, [[-1]])
