"""Prefix cache: longest common prefix, byte limit, and the same tokens as without it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest

from inference import Capability, Message, Request, SamplingParams
from inference.native.blocks import BLOCK
from inference.native.engine import NativeEngine

Tiny = Callable[..., NativeEngine]


def dialogue(engine: NativeEngine, turns: int = 3) -> list[Any]:
    """A dialogue in which each turn repeats all earlier ones."""
    messages: list[Message] = []
    outputs = []
    for turn in range(turns):
        messages.append(Message("user", f"turn {turn}: the river runs north"))
        request = Request(messages=tuple(messages), sampling=SamplingParams(max_tokens=20))
        outputs += engine.generate([request])
        messages.append(Message("assistant", outputs[-1].text))
    return outputs


@pytest.mark.parametrize(
    ("kind", "options"),
    [("llama", {}), ("qwen2", {}), ("mistral", {"sliding_window": 16})],
)
def test_a_dialogue_reuses_its_turns(tiny: Tiny, kind: str, options: dict[str, Any]) -> None:
    with_cache = tiny(kind, seed=3, context=512, **options)
    without = tiny(kind, prefix_cache_bytes=0, seed=3, context=512, **options)
    assert Capability.PREFIX_REUSE in with_cache.capabilities
    with_cache.forget_prefixes()
    reused, plain = dialogue(with_cache), dialogue(without)
    assert [o.token_ids for o in reused] == [o.token_ids for o in plain]
    assert [o.text for o in reused] == [o.text for o in plain]
    assert reused[0].usage.cached_tokens == 0
    for before, after in pairwise(reused):
        assert after.usage.cached_tokens >= before.usage.prompt_tokens // BLOCK * BLOCK > 0
        assert after.stats.peak_kv_bytes > before.stats.peak_kv_bytes
    assert all(o.usage.cached_tokens == 0 for o in plain)
    assert [o.usage.prompt_tokens for o in reused] == [o.usage.prompt_tokens for o in plain]


def test_peak_bytes_are_those_of_the_tensors(tiny: Tiny) -> None:
    engine = tiny("llama", endless=True)
    request = Request(prompt="the river", sampling=SamplingParams(max_tokens=10))
    (output,) = engine.generate([request])
    held = output.usage.prompt_tokens + 9  # the last token is never fed back
    assert output.stats.peak_kv_bytes == held * 2 * 2 * 2 * 16 * 4


def test_requests_at_the_same_time_do_not_disturb_each_other(tiny: Tiny) -> None:
    engine = tiny("llama", endless=True, seed=5)
    shared = "The quick brown fox jumps over the lazy dog while "
    requests = [
        Request(prompt=f"{shared}{n % 3}", sampling=SamplingParams(max_tokens=15))
        for n in range(12)
    ]
    alone = tiny("llama", prefix_cache_bytes=0, endless=True, seed=5).generate(requests)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda r: engine.generate([r])[0], requests))
    assert [o.token_ids for o in together] == [o.token_ids for o in alone]
    assert sum(o.usage.cached_tokens for o in together) > 0


def test_two_tenants_never_share(tiny: Tiny) -> None:
    engine = tiny("llama", endless=True, seed=6)
    engine.forget_prefixes()
    ids = list(range(20, 20 + 3 * BLOCK))
    params = SamplingParams(max_tokens=4)

    def cached(*tenants: str) -> list[int]:
        requests = [Request(token_ids=ids, sampling=params, tenant=name) for name in tenants]
        outputs = engine.generate(requests)
        assert len({output.token_ids for output in outputs}) == 1
        return [output.usage.cached_tokens for output in outputs]

    held = 2 * BLOCK  # the last block is computed again, for its logits
    assert [cached("a")[0], cached("b")[0], cached("")[0]] == [0, 0, 0]
    assert cached("a", "b", "", "c") == [held, held, held, 0]
    engine.forget_prefixes()
    assert cached("a", "b") == [0, 0]
    scored = Request(token_ids=ids, tenant="d")
    engine.score(scored, [[9]])
    assert [cached("d")[0], cached("e")[0]] == [held, 0], "scores keep to their tenant too"
