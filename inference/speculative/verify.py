"""The only place that accepts drafted tokens.

A rule walks from the last token of a sequence down its draft. At every node it compares what the
target would say there with the drafted children, and either goes on to one of them or ends with a
token of its own: a step gives the accepted path and one token more, never less than one.

Shapes: `logits` [vocabulary] are the target's at one node, after grammar, penalty, temperature and
filters (`inference.native.sampling.process`); `drawn` [tokens, vocabulary] as in `Proposal`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch

from inference.native.sampling import draw, most_probable, uniform
from inference.native.sequence import Draft


@dataclass(frozen=True, slots=True)
class Verdict:
    """The nodes of a draft that were accepted, parent to child, and the token that follows."""

    path: tuple[int, ...]
    token: int


@dataclass(frozen=True, slots=True)
class Case:
    """A draft and what the target says about it.

    `logits(node, path)` are the target's after a node (-1 is the sequence's last token), reached by
    the nodes `path`; asked for where they are needed only. `start` is the position that a child of
    the last token has in prompt plus completion; random numbers depend on seed and position only.
    """

    draft: Draft
    logits: Callable[[int, Sequence[int]], torch.Tensor]
    greedy: bool
    seed: int
    start: int
    drawn: torch.Tensor | None = None
    _below: dict[int, list[int]] = field(default_factory=dict)

    def children(self, node: int) -> Sequence[int]:
        """Drafted continuations of a node, in the order they were drafted."""
        if not self._below:
            for at, parent in enumerate(self.draft.parents):
                self._below.setdefault(parent, []).append(at)
        return self._below.get(node, ())

    def number(self, depth: int, lane: int = 0) -> float:
        """A number in [0, 1) for the token at `depth` (0: child of the last token).

        Lane 0 is what plain decoding draws that position's token with; other lanes are independent.
        """
        return uniform(self.seed, self.start + depth, lane)


class Rule(Protocol):
    """How a draft is accepted; `lossless` if the target's own distribution is kept."""

    name: ClassVar[str]

    @property
    def lossless(self) -> bool:
        """Whether outputs are distributed as without a draft."""
        ...

    def notes(self) -> Mapping[str, object]:
        """What a result says about it beyond its name."""
        ...

    def verify(self, case: Case) -> Verdict:
        """What of a draft is accepted, and the token behind it."""
        ...


@dataclass(frozen=True)
class Match:
    """Go on to the child that equals what the target draws itself; exact for greedy and sampling.

    The draw is the one plain decoding makes at that position, so that seeded outputs are the same,
    token by token. Source: Lookahead (arXiv 2312.12728), verification; SpecInfer's naive sampling.
    """

    name: ClassVar[str] = "match"
    lossless: ClassVar[bool] = True

    def notes(self) -> Mapping[str, object]:
        """Nothing more."""
        return {}

    def verify(self, case: Case) -> Verdict:
        """The longest path of the target's own tokens."""
        path: list[int] = []
        while True:
            node = path[-1] if path else -1
            logits = case.logits(node, path)
            if case.greedy:
                token = most_probable(logits)
            else:
                token = draw(torch.softmax(logits.double(), dim=0), case.number(len(path)))
            ids = case.draft.ids
            below = next((at for at in case.children(node) if ids[at] == token), None)
            if below is None:
                return Verdict(tuple(path), token)
            path.append(below)
