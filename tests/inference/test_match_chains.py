"""Chains of one draft that begin alike are followed together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import given
from hypothesis import strategies as st

from inference.native.sequence import Draft
from inference.speculative.verify import Case, Match, Verdict

TOKENS = 4
CHAINS = st.lists(
    st.lists(st.integers(0, TOKENS - 1), min_size=1, max_size=5), min_size=1, max_size=5
)


@given(CHAINS, st.lists(st.integers(0, TOKENS - 1), min_size=6, max_size=6))
def test_the_chain_that_agrees_longest_is_taken(chains: list[list[int]], own: list[int]) -> None:
    ids = [token for chain in chains for token in chain]
    parents: list[int] = []
    for chain in chains:
        parents += [-1, *range(len(parents), len(parents) + len(chain) - 1)]
    asked: set[int] = set()

    def logits(node: int, path: Sequence[int]) -> torch.Tensor:
        asked.add(node)
        assert [ids[at] for at in path] == own[: len(path)]
        assert node == (path[-1] if path else -1)
        return torch.eye(TOKENS)[own[len(path)]]

    verdict = Match().verify(Case(Draft(tuple(ids), tuple(parents)), logits, True, 0, 0))
    agree = [
        next((n for n, (a, b) in enumerate(zip(chain, own, strict=False)) if a != b), len(chain))
        for chain in chains
    ]
    best = agree.index(max(agree))
    begin = sum(map(len, chains[:best]))
    assert verdict == Verdict(tuple(range(begin, begin + agree[best])), own[agree[best]])
    assert {-1, *verdict.path} <= asked, "a caller could not read what an accepted token was"
