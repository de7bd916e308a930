"""The tree of continuations that a request's slots hold for its last tokens.

Source: Lookahead (arXiv 2312.12728), hierarchical multi-branch retrieval, after its code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush, nlargest
from itertools import chain, islice
from math import inf
from operator import itemgetter
from typing import Any

from inference.native.sequence import Draft
from inference.speculative.trie import Slot


class Branch:
    """A node of the three slots together; `weight` orders, `counts` are input's to output's.

    Siblings of one weight stand in the order of their latest occurrence, latest first. `rank` is
    the way to a node by places among siblings, so that ranks compare as pre-order does. No more
    than `width` children that a single slot knows of are made: more could never be drafted.
    """

    __slots__ = (
        "_below",
        "_places",
        "_slots",
        "_width",
        "counts",
        "rank",
        "seen",
        "token",
        "weight",
    )

    def __init__(self, slots: Slots, token: int, width: int) -> None:
        self._slots = slots
        self._width = width
        self._places: list[Any] = [None] * len(slots)
        self._below: list[Branch] | None = None
        self.token = token
        self.weight = 0.0
        self.counts = [0.0] * len(slots)
        self.seen = [-1] * len(slots)
        self.rank: tuple[int, ...] = ()

    @property
    def emitted(self) -> float:
        """Its count in the output, which is the last slot."""
        return self.counts[-1]

    def add(self, slot: int, place: Any, count: float = 0, latest: int = -1) -> None:
        """What one slot knows of it."""
        self._places[slot] = place
        self.counts[slot] = count
        self.seen[slot] = latest
        self.weight += self._slots[slot][1] * count

    def below(self) -> Sequence[Branch]:
        """Its children, the likeliest first; made when they are first asked for."""
        if self._below is None:
            slots, width = self._slots, self._width
            found: dict[int, Branch] = {}
            known = [at for at, place in enumerate(self._places) if place is not None]
            for at in known:
                slot, weight = slots[at]
                children = slot.below(self._places[at])
                if len(known) == 1 and weight > 0 and len(children) > width:
                    # In one slot, whatever lets a child pass lets those before it pass too.
                    children = nlargest(width, children, key=itemgetter(1, 2))
                for token, count, latest, place in children:
                    child = found.get(token)
                    if child is None:
                        child = found[token] = Branch(slots, token, width)
                    child.add(at, place, count, latest)
            self._below = sorted(found.values(), key=_standing, reverse=True)
            for place, child in enumerate(self._below):
                child.rank = (*self.rank, place)
        return self._below


def _standing(branch: Branch) -> tuple[float, list[int]]:
    return branch.weight, branch.seen


Slots = Sequence[tuple[Slot, float]]
"""Slots and what a count in each weighs, the output last."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a retrieved tree may be.

    `ids` counts the sequence's last token too, as the paper's code does; `depth` is the longest
    branch. `emitted` nodes are taken for their output count alone, whatever they weigh.
    """

    ids: int
    depth: int
    emitted: int


class Trie:
    """What a request may copy from; `slots` are its texts and, last, the output with its weight.

    Retrieval looks the last `query` tokens up, then fewer, until a result is as long as a branch; a
    shorter query's result replaces that of a longer one unless it is empty. `stops` alone are no
    query.
    """

    def __init__(self, slots: Slots, query: int = 2, stops: frozenset[int] = frozenset()) -> None:
        self._slots = slots
        self._query = query
        self._stops = stops

    def hier(self, ids: Sequence[int], shape: Shape) -> Draft:
        """A tree in pre-order, siblings by weight: cut behind any node, the best chains remain."""
        return self._search(ids, shape, _tree)

    def par(self, ids: Sequence[int], shape: Shape) -> Draft:
        """The same tree as chains from root to leaf that share nothing."""
        tree = self.hier(ids, shape)
        inner = set(tree.parents)
        tokens: list[int] = []
        parents: list[int] = []
        for leaf, path in enumerate(tree.ancestors()):
            if leaf not in inner:
                parents += [-1, *range(len(tokens), len(tokens) + len(path) - 1)]
                tokens += [tree.ids[at] for at in path]
        return Draft(tuple(tokens), tuple(parents)).first(shape.ids - 1)

    def one(self, ids: Sequence[int], shape: Shape) -> Draft:
        """The chain of the heaviest child of each node."""
        return self._search(ids, shape, _chain)

    def _search(
        self, ids: Sequence[int], shape: Shape, build: Callable[[Branch, Shape], Draft]
    ) -> Draft:
        best = Draft((), ())
        for length in range(min(self._query, len(ids)), 0, -1):
            query = ids[len(ids) - length :]
            if length == 1 and query[0] in self._stops:
                continue
            found = build(self._root(query, shape), shape)
            if found.ids:
                best = found
            if len(best.ids) + 1 >= min(shape.depth, shape.ids):
                break
        return best

    def _root(self, query: Sequence[int], shape: Shape) -> Branch:
        root = Branch(self._slots, query[-1], shape.ids + 1)
        for at, (slot, _) in enumerate(self._slots):
            root.add(at, slot.find(query))
        return root


def _chain(root: Branch, shape: Shape) -> Draft:
    tokens: list[int] = []
    node = root
    while len(tokens) < min(shape.depth, shape.ids - 1) and node.below():
        node = node.below()[0]
        tokens.append(node.token)
    return Draft(tuple(tokens), tuple(range(-1, len(tokens) - 1)))


def _tree(root: Branch, shape: Shape) -> Draft:
    """The nodes over one of the thresholds, in pre-order, as many as fit."""
    weight, emitted = _thresholds(root, shape)
    tokens: list[int] = []
    parents: list[int] = []
    stack = [(child, -1) for child in reversed(root.below())] if shape.depth else []
    while stack and len(tokens) < shape.ids - 1:
        node, parent = stack.pop()
        if node.weight < weight and node.emitted < emitted:
            continue
        at = len(tokens)
        tokens.append(node.token)
        parents.append(parent)
        if len(node.rank) < shape.depth:
            stack += [(child, at) for child in reversed(node.below())]
    return Draft(tuple(tokens), tuple(parents))


def _thresholds(root: Branch, shape: Shape) -> tuple[float, float]:
    """The least weight, and the least output count, either of which a node needs.

    Weights and counts never grow along a branch, so the best nodes are found without the others.
    """
    heaviest = _best(root, shape.depth, lambda node: node.weight)
    first = list(islice(heaviest, shape.ids + 1))
    if len(first) <= shape.ids:
        return 0, inf
    often = list(islice(_best(root, shape.depth, lambda node: node.emitted), shape.emitted))
    taken = set(often)
    rest = (node for node in chain(first, heaviest) if node not in taken)
    least = list(islice(rest, shape.ids - len(often)))
    return least[-1].weight if least else inf, often[-1].emitted if often else inf


def _best(root: Branch, depth: int, value: Callable[[Branch], float]) -> Iterator[Branch]:
    """Nodes of a value over 0, the largest first, equal ones in pre-order."""
    heap: list[tuple[float, tuple[int, ...], Branch]] = []

    def open_(node: Branch) -> None:
        if len(node.rank) < depth:
            for child in node.below():
                if value(child) > 0:
                    heappush(heap, (-value(child), child.rank, child))

    open_(root)
    while heap:
        node = heappop(heap)[2]
        yield node
        open_(node)
