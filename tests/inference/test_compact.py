"""Private caches piece by piece: token trees, and the memory that is set apart for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.kv import KVPolicy, Moment, StreamingLLM
from inference.native.attention import Heads
from inference.native.blocks import BlockManager
from inference.native.compact import Compact, Head
from inference.native.lean import Rotary, rotate
from inference.native.scheduler import Scheduler
from inference.native.sequence import Sequence, Status
from inference.native.step import View
from tests.inference.policies import Loud, Uneven

PATH = [0, 2, 3]
"""Rows of the tree below that are accepted: 1 and 2 are siblings, 3 is below 2."""
TREE = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]], dtype=torch.bool)
DEPTHS = [0, 1, 1, 2]


def rotary() -> Rotary:
    from transformers import LlamaConfig

    config = LlamaConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=256)
    return Rotary(config, torch.device("cpu"))


def heads(raw: torch.Tensor, positions: list[int]) -> Heads:
    """Heads of rows [rows, 4 + 2 + 2, 16]: four of queries, two of keys, two of values."""
    cosine, sine = rotary()(torch.tensor(positions), torch.float32)
    query, key, value = raw[:, :4], raw[:, 4:6], raw[:, 6:]
    return Heads(rotate(query, cosine, sine), rotate(key, cosine, sine), value, (query, key))


@pytest.mark.parametrize(
    "policy", [StreamingLLM(sinks=1, recent=4), Uneven(budget=4), Loud(budget=5)]
)
def test_an_accepted_path_leaves_what_single_tokens_leave(policy: KVPolicy) -> None:
    draw = torch.Generator().manual_seed(0)
    prompt = torch.randn(12, 8, 16, generator=draw)
    rows = torch.randn(4, 8, 16, generator=draw)
    caches = []
    for _ in range(2):
        cache = Compact(1, 2, policy, rotary())
        cache.moment = Moment.PROMPT
        places = list(range(12))
        cache.attend(0, View(0, 0, 12, 0, positions=places), heads(prompt, places), None, None)
        caches.append(cache)
    single, tree = caches
    for cache in caches:
        cache.moment = Moment.TOKEN
    for n, row in enumerate(PATH):
        view = View(0, 0, 1, 12 + n, positions=[12 + n])
        single.attend(0, view, heads(rows[row : row + 1], [12 + n]), None, None)
    places = [12 + depth for depth in DEPTHS]
    view = View(0, 0, 4, 12, positions=places, tree=TREE)
    tree.attend(0, view, heads(rows, places), None, None)
    held = tree.entries[0]
    assert held == [n + 4 for n in _after_prompt(policy)], "nothing leaves inside a tree pass"
    tree.settle(view, PATH)
    for one, other in zip(single.heads[0], tree.heads[0], strict=True):
        assert one.positions.tolist() == other.positions.tolist()
        torch.testing.assert_close(one.keys, other.keys)
        torch.testing.assert_close(one.values, other.values)


def _after_prompt(policy: KVPolicy) -> list[int]:
    return [4, 6] if isinstance(policy, Uneven) else [5, 5]


def test_a_policy_that_mixes_up_entries_is_caught() -> None:
    head = Head()
    head.append(torch.zeros(3, 4), torch.zeros(3, 4), torch.arange(3))
    for keys, values, positions in (
        (torch.zeros(2, 4), torch.zeros(3, 4), torch.arange(2)),
        (torch.zeros(2, 4), torch.zeros(2, 4), torch.arange(3)),
        (torch.zeros(2, 5), torch.zeros(2, 5), torch.arange(2)),
    ):
        with pytest.raises(ValueError, match="keys"):
            head.replace(keys, values, positions)
    head.replace(head.keys[1:], head.values[1:], head.positions[1:])
    assert head.bytes == 2 * (2 * 4 * 4 + 8), "a slice keeps its whole source"


class Private(KVPolicy):
    """A policy for sequences that compute nothing."""


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40), st.integers(1, 6)), max_size=14))
@settings(max_examples=150, deadline=None)
def test_memory_set_apart_is_nobody_elses_and_comes_back(work: Any) -> None:
    blocks = BlockManager(12, 6, 4)
    scheduler = Scheduler(blocks, 16, 5)
    pending = [_sequence(at, *one) for at, one in enumerate(work)]
    left = dict.fromkeys(pending, 3)
    steps = 0
    while left:
        if pending:
            scheduler.add(pending.pop(0))
        picked = scheduler.schedule()
        assert blocks.used + blocks.free + blocks.reserved == blocks.capacity
        assert blocks.used + blocks.idle + blocks.reserved <= blocks.capacity
        running = [seq for seq in scheduler.running if seq.cache is not None]
        assert blocks.reserved == sum(seq.reserve for seq in running)
        assert all(not seq.blocks and not seq.preemptions for seq in running)
        scheduler.advance()
        for seq in picked:
            if seq.cached < len(seq.ids):
                continue
            seq.ids.append(7)
            left[seq] -= 1
            if not left[seq]:
                scheduler.finish(seq)
                assert seq.status is Status.FINISHED
                del left[seq]
        steps += 1
        assert steps < 500, "somebody waits for ever"
    assert (blocks.used, blocks.reserved) == (0, 0)


def _sequence(at: int, private: bool, tokens: int, reserve: int) -> Sequence:
    seq = Sequence([at % 3, *range(tokens)], tokens + 3, prompt=tokens + 1)
    if private:
        seq.cache = Compact(1, 1, Private(), rotary())
        seq.reserve = reserve
    return seq
