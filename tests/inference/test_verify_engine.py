"""Rejection through the whole engine: drafts that were drawn leave the outputs' distribution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch

from inference import Request, SamplingParams
from inference.native.engine import NativeEngine
from inference.native.model import Model
from inference.native.sampling import draw, uniform
from inference.native.sequence import Draft
from inference.speculative import Drafter, Proposal, Proposer, Start, Turn
from inference.speculative.verify import DRAFTING, Rejection, Rule, Typical
from tests.inference.chance import chi_square

RUNS = 1000


class Drawn(Drafter):
    """Two siblings without replacement and a child of the first, by what followed a token."""

    adaptive: bool = False
    typical: bool = False
    followed: ClassVar[dict[int, Counter[int]]] = {}

    @property
    def rule(self) -> Rule:
        """Accepted by rejection, or by the lossy rule."""
        return Typical() if self.typical else Rejection()

    def open(self, model: Model) -> Proposer:
        """Knows pairs of tokens only."""
        return Drawer(model.width)


class Drawer(Proposer):
    """Rows that depend on the last token."""

    def __init__(self, width: int) -> None:
        self._width = width

    def begin(self, start: Start) -> Any:
        """The seed."""
        return start.seed

    def propose(self, turns: Sequence[Turn]) -> Sequence[Proposal | None]:
        """A tree for each."""
        return [self._tree(turn) for turn in turns]

    def _tree(self, turn: Turn) -> Proposal:
        seed, place = turn.state, len(turn.ids)
        row = self._row(turn.ids[-1])
        first = draw(row, uniform(seed, place, DRAFTING))
        left = row.clone()
        left[first] = 0
        left /= left.sum()
        second = draw(left, uniform(seed, place, DRAFTING + 1))
        below = self._row(first)
        third = draw(below, uniform(seed, place + 1, DRAFTING))
        return Proposal(Draft((first, second, third), (-1, -1, 0)), torch.stack([row, left, below]))

    def _row(self, last: int) -> torch.Tensor:
        row = torch.zeros(self._width, dtype=torch.float64)
        row[:8] = 0.05  # tokens that the target hardly says
        row[list(Drawn.followed.get(last, ()))] += 1
        return row / row.sum()


def said(
    engine: NativeEngine, seeds: range, drafter: Drafter | None
) -> tuple[Counter[tuple[int, ...]], int]:
    """How often each output was given, and how many drafted tokens were accepted."""
    requests = [
        Request(
            prompt="the quick",
            sampling=SamplingParams(temperature=0.7, top_k=3, seed=seed, max_tokens=4),
            id=f"{seed}",
            drafter=drafter,
        )
        for seed in seeds
    ]
    outputs = engine.generate(requests)
    assert all(one.notes["drafter"]["rule"] == drafter.rule.name for one in outputs if drafter)
    assert all(
        one.notes["drafter"]["lossless"] == drafter.rule.lossless for one in outputs if drafter
    )
    return Counter(one.token_ids for one in outputs), sum(one.stats.accepted for one in outputs)


def test_outputs_by_rejection_are_distributed_as_plain_ones_and_typical_ones_are_not(
    tiny: Callable[..., NativeEngine],
) -> None:
    engine = tiny(endless=True)
    plain, _ = said(engine, range(2 * RUNS), None)
    for ids in plain:
        for last, token in pairwise(ids):
            Drawn.followed.setdefault(last, set()).add(token)
    for drafter, fine in ((Drawn(), True), (Drawn(typical=True), False)):
        found, accepted = said(engine, range(10**6, 10**6 + RUNS), drafter)
        assert accepted > RUNS // 2, "drafts are accepted"
        statistic, bound = two_samples(plain, found)
        assert (statistic < bound) == fine


def two_samples(a: Counter[tuple[int, ...]], b: Counter[tuple[int, ...]]) -> tuple[float, float]:
    """The statistic of homogeneity, and a bound that it passes once in a million times."""
    keys = sorted(a.keys() | b.keys())
    one, other = (np.array([count[key] for key in keys]) for count in (a, b))
    together = torch.from_numpy((one + other) / (one + other).sum())
    first, _ = chi_square(one, together)
    second, bound = chi_square(other, together)
    return first + second, bound
