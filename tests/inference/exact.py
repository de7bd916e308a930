"""Every outcome of a verification step with its exact probability, from the papers' equations.

A rule asks for numbers in [0, 1) one after the other, and what it does next is a step function of
each. An enumerator lists the cells of those functions: how likely a step ends in one, and in what
verdict. `drive` then runs the rule itself at both ends of all cells, so that what was enumerated is
what is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch

from inference.native.sequence import Draft
from inference.speculative.verify import Case, Rule, Verdict

NARROW = 1e-11
"""Cells are driven this far from their ends; the narrower ones, never likelier, are not."""
Prefix = tuple[int, ...]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


class World:
    """A target p and a drafter q of `size` tokens; each has `zeros` tokens it never says."""

    def __init__(self, seed: int, size: int = 8, zeros: int = 0) -> None:
        self.seed, self.size, self.zeros = seed, size, zeros
        self.p = lru_cache(None)(self._p)
        self.q = lru_cache(None)(self._q)
        self.joint = lru_cache(None)(self._joint)

    def _row(self, who: int, prefix: Prefix) -> np.ndarray:
        draw = np.random.default_rng([self.seed, who, *(token + 1 for token in prefix)])
        logits = draw.normal(0, 1.5, self.size)
        logits[draw.permutation(self.size)[: self.zeros]] = -np.inf
        return softmax(logits)

    def _p(self, prefix: Prefix) -> np.ndarray:
        return self._row(0, prefix)

    def _q(self, prefix: Prefix) -> np.ndarray:
        return self._row(1, prefix)

    def without(self, prefix: Prefix, drawn: Sequence[int]) -> np.ndarray:
        """q after the siblings `drawn` were taken out."""
        q = self.q(prefix).copy()
        q[list(drawn)] = 0
        return q / q.sum()

    def logits(self, prefix: Prefix) -> torch.Tensor:
        with np.errstate(divide="ignore"):
            return torch.from_numpy(np.log(self.p(prefix)) + 0.7)

    def _joint(self, prefix: Prefix, length: int) -> np.ndarray:
        """Probabilities [size] * length of what plain decoding says next."""
        if not length:
            return np.ones(())
        p = self.p(prefix)
        return np.stack([p[v] * self.joint((*prefix, v), length - 1) for v in range(self.size)])


@dataclass(frozen=True)
class Leaf:
    """A way through a step: nodes that were looked at, the cell of every number, and the verdict.

    `cells` are in the order in which the numbers are asked for. `token` is -1 while it goes on.
    """

    tokens: dict[int, int] = field(default_factory=dict)
    rows: dict[int, np.ndarray] = field(default_factory=dict)
    cells: tuple[tuple[float, float], ...] = ()
    path: tuple[int, ...] = ()
    token: int = -1
    mass: float = 1.0

    @property
    def said(self) -> Prefix:
        """The tokens of the path."""
        return tuple(self.tokens[node] for node in self.path)

    def drew(self, node: int, token: int, row: np.ndarray) -> Leaf:
        """The drafter drew a node."""
        tokens, rows = {**self.tokens, node: token}, {**self.rows, node: row}
        return replace(self, tokens=tokens, rows=rows, mass=self.mass * float(row[token]))

    def where(self, low: float, high: float) -> Leaf:
        """The next number lies in [low, high)."""
        return replace(self, cells=(*self.cells, (low, high)), mass=self.mass * (high - low))


def draws(leaf: Leaf, weights: np.ndarray) -> Iterator[Leaf]:
    """It ends with a draw."""
    ends = np.cumsum(weights) / weights.sum()
    for token, (low, high) in enumerate(zip((0.0, *ends), ends, strict=False)):
        if weights[token] > 0:
            yield replace(leaf.where(float(low), float(high)), token=token)


Tree = Sequence[int]
"""Parents."""


def below(tree: Tree, leaf: Leaf) -> list[int]:
    """Children of where a way has come to."""
    node = leaf.path[-1] if leaf.path else -1
    return [at for at, parent in enumerate(tree) if parent == node]


def matches(world: World, tree: Tree, leaf: Leaf, tokens: Sequence[int]) -> Iterator[Leaf]:
    """Exact match: the target's own draw, and on to the child that holds it."""
    for end in draws(leaf, world.p(leaf.said)):
        child = next((at for at in below(tree, leaf) if tokens[at] == end.token), None)
        if child is None:
            yield end
        else:
            row = np.full(world.size, 1.0)  # the tokens are given, not drawn
            more = replace(end, path=(*end.path, child), token=-1).drew(child, tokens[child], row)
            yield from matches(world, tree, more, tokens)


def rejections(world: World, tree: Tree, leaf: Leaf, *, again: bool) -> Iterator[Leaf]:
    """Recursive rejection; siblings are drawn with replacement if `again`."""
    children = below(tree, leaf)
    prefix = leaf.said

    def trials(leaf: Leaf, left: np.ndarray, place: int) -> Iterator[Leaf]:
        if place == len(children):
            yield from draws(leaf, left)
            return
        node = children[place]
        drawn = [leaf.tokens[at] for at in children[:place]]
        q = world.q(prefix) if again else world.without(prefix, drawn)
        for token in np.flatnonzero(q):
            tried = leaf.drew(node, int(token), q)
            chance = min(1.0, float(left[token] / q[token]))
            if chance > 0:
                passed = tried.where(0.0, chance)
                onward = replace(passed, path=(*passed.path, node))
                yield from rejections(world, tree, onward, again=again)
            rest = np.maximum(left - q, 0)
            if chance < 1 and rest.sum() > NARROW:
                yield from trials(tried.where(chance, 1.0), rest / rest.sum(), place + 1)

    yield from trials(leaf, world.p(prefix), 0)


def spread(world: World, leaves: Iterable[Leaf], length: int, start: Prefix = ()) -> np.ndarray:
    """Probabilities [size] * length of what a step says, and plain decoding behind it."""
    masses: dict[Prefix, float] = {}
    for leaf in leaves:
        said = (*leaf.said, leaf.token)
        masses[said] = masses.get(said, 0.0) + leaf.mass
    found = np.zeros((world.size,) * length)
    for said, mass in masses.items():
        found[said] += mass * world.joint((*start, *said), length - len(said))
    return found


@dataclass(frozen=True)
class Scripted(Case):
    """A case whose numbers are given; `asked` are the places they were asked for."""

    script: Sequence[float] = ()
    asked: list[tuple[int, int]] = field(default_factory=list)

    def number(self, depth: int, lane: int = 0) -> float:
        self.asked.append((depth, lane))
        return self.script[len(self.asked) - 1]


Says = Callable[[Prefix], torch.Tensor]


def drive(rule: Rule, says: Says, size: int, tree: Tree, leaf: Leaf, fill: int) -> None:
    """The rule does at both ends of the cells of a way what was enumerated.

    What was not drawn on that way is filled in at random: it must not matter.
    """
    draw = np.random.default_rng(fill)
    tokens = [leaf.tokens.get(at, int(draw.integers(size))) for at in range(len(tree))]
    rows = [leaf.rows.get(at, draw.dirichlet(np.ones(size))) for at in range(len(tree))]

    def logits(node: int, path: Sequence[int]) -> torch.Tensor:
        assert node == (path[-1] if path else -1)
        return says(tuple(tokens[at] for at in path))

    lows = [low + NARROW / 2 for low, _ in leaf.cells]
    highs = [high - NARROW / 2 for _, high in leaf.cells]
    if any(high < low for low, high in zip(lows, highs, strict=True)):
        return
    for script in (lows, highs):
        drawn = torch.from_numpy(np.stack(rows)) if rows else None
        draft = Draft(tuple(tokens), tuple(tree))
        case = Scripted(draft, logits, False, 0, 0, drawn, script=script)
        assert rule.verify(case) == Verdict(leaf.path, leaf.token)
        assert len(case.asked) == len(script)
        assert len(set(case.asked)) == len(script), "two decisions share a number"
