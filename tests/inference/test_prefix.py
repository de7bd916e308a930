"""Prefix cache: longest common prefix, byte limit, and the same tokens as without it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inference import Capability, Message, Request, SamplingParams
from inference.native.engine import NativeEngine
from inference.native.prefix import Layers, PrefixCache, layers_bytes

Tiny = Callable[..., NativeEngine]
IDS = st.lists(st.integers(0, 2), min_size=1, max_size=8)


def layers(ids: list[int]) -> Layers:
    """Tensors that spell the ids, so that a mix-up shows."""
    row = torch.tensor(ids, dtype=torch.float32)[None, None, :, None]
    return ((row, row + 100), (row + 200, row + 300))


PER_TOKEN = layers_bytes(layers([0]))


@given(st.lists(IDS, max_size=12), IDS, st.integers(0, 40))
def test_longest_prefix_within_the_limit(
    stored: list[list[int]], wanted: list[int], tokens: int
) -> None:
    cache = PrefixCache(tokens * PER_TOKEN)
    for ids in stored:
        cache.store(ids, layers(ids))
        assert cache.size_bytes <= tokens * PER_TOKEN
        if len(ids) <= tokens:
            assert cache.longest(ids)[0] == len(ids)
    n, found = cache.longest(wanted)
    if n:
        for got, want in zip(found, layers(wanted[:n]), strict=True):
            assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
    if sum(map(len, stored)) <= tokens:  # nothing was evicted
        best = max((common(ids, wanted) for ids in stored), default=0)
        assert n == best


def common(a: list[int], b: list[int]) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def test_the_least_recently_used_entry_goes_first() -> None:
    cache = PrefixCache(8 * PER_TOKEN)
    cache.store([1, 1, 1, 1], layers([1, 1, 1, 1]))
    cache.store([2, 2, 2, 2], layers([2, 2, 2, 2]))
    cache.longest([1, 1, 1, 1, 5])
    cache.store([3, 3, 3, 3], layers([3, 3, 3, 3]))
    assert [cache.longest([i] * 4)[0] for i in (1, 2, 3)] == [4, 0, 4]


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
    with_cache.prefixes.clear()
    reused, plain = dialogue(with_cache), dialogue(without)
    assert [o.token_ids for o in reused] == [o.token_ids for o in plain]
    assert [o.text for o in reused] == [o.text for o in plain]
    assert reused[0].usage.cached_tokens == 0
    for before, after in pairwise(reused):
        assert after.usage.cached_tokens >= before.usage.prompt_tokens
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
