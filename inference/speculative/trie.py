"""Counted n-grams of texts: the tries of Lookahead, without the nodes nobody asks for.

The trie of Lookahead counts every window of a text: under root `t` lie the paths that followed `t`,
each node with how often. Counts come in three slots. *Input* (a request's prompt) and *reference*
(texts given along with it) are one request's own and leave with it; *output* (what was emitted) may
outlive it. A node of a slot counts the occurrences of its n-gram there, so that a finished text
needs no nodes at all: `Texts` keeps its tokens and where each stands, and counts when it is asked.
Only output, of which the rare is forgotten, is a forest of nodes (`Forest`). What a request is told
from all three is in `branches.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Protocol

BREAK = -1
"""Stands between texts, and in place of an end token: no n-gram reaches over it."""

Child = tuple[int, float, int, Any]
"""A token, its count, when it occurred last, and the place behind it."""


class Slot(Protocol):
    """Counted n-grams: where a query leads, and what follows a place."""

    def find(self, query: Sequence[int]) -> Any:
        """The place behind `query`, or None where it never occurred."""
        ...

    def below(self, place: Any) -> list[Child]:
        """What followed there."""
        ...


class Texts:
    """Whole texts by name; equal to the tries of all their windows.

    End tokens split a text. Only the latest `most` occurrences of a query are counted, which bounds
    the time of a look-up in a text that says the same thing over and over.
    """

    def __init__(self, ends: frozenset[int] = frozenset(), most: int = 1024) -> None:
        self._ends = ends
        self._most = most
        self._texts: dict[Hashable, Sequence[int]] = {}
        self._ids: list[int] = [BREAK]
        self._places: dict[int, list[int]] = {}

    def put(self, name: Hashable, tokens: Sequence[int]) -> None:
        """Add a text, in place of the one that had this name."""
        if name in self._texts:
            self.remove(name)
        self._texts[name] = tokens
        self._index(tokens)

    def remove(self, name: Hashable) -> None:
        """Take a text out, with everything that was known from it."""
        del self._texts[name]
        self._ids, self._places = [BREAK], {}
        for tokens in self._texts.values():
            self._index(tokens)

    def _index(self, tokens: Sequence[int]) -> None:
        ids, places, ends = self._ids, self._places, self._ends
        for at, token in enumerate(tokens, len(ids)):
            if token in ends:
                ids.append(BREAK)
                continue
            ids.append(token)
            if token in places:
                places[token].append(at)
            else:
                places[token] = [at]
        ids.append(BREAK)

    def find(self, query: Sequence[int]) -> list[int] | None:
        """Where the last token of `query` stands behind the others, in order."""
        places = self._places.get(query[-1])
        if places is None:
            return None
        if len(query) > 1:
            ids, near = self._ids, query[-2]
            places = [at for at in places if ids[at - 1] == near]
        if len(query) > 2:
            first, before = len(query) - 1, list(query[:-1])
            places = [at for at in places if ids[max(at - first, 0) : at] == before]
        return places[-self._most :] or None

    def below(self, place: list[int]) -> list[Child]:
        """The tokens behind these places."""
        ids = self._ids
        found: dict[int, list[int]] = {}
        for at in place:
            token = ids[at + 1]
            if token in found:
                found[token].append(at + 1)
            elif token != BREAK:
                found[token] = [at + 1]
        return [(token, len(places), places[-1], places) for token, places in found.items()]


class Node:
    """How often a path was emitted, when last, and what came behind it."""

    __slots__ = ("below", "count", "latest")

    def __init__(self) -> None:
        self.count = 0.0
        self.latest = -1
        self.below: dict[int, Node] = {}


class Tree(Node):
    """A root, with the number of nodes below it and whether it changed since the last sweep."""

    __slots__ = ("fresh", "nodes")

    def __init__(self) -> None:
        super().__init__()
        self.nodes = 0
        self.fresh = False


class Forest:
    """What was emitted: a tree per token, of windows of `depth` tokens behind it.

    Whenever `sweep` different trees have changed, those among them that hold more than `tree_nodes`
    nodes are pruned until they do not: a node that was counted more than once has its count halved,
    every other goes with what is below it. When all trees together come to hold more than `nodes`,
    all are pruned until no more than half as many remain. `stops` are never roots; at one of `ends`
    a text is over.
    """

    def __init__(
        self,
        depth: int,
        *,
        ends: frozenset[int] = frozenset(),
        stops: frozenset[int] = frozenset(),
        tree_nodes: int = 512,
        nodes: int = 65536,
        sweep: int = 1024,
    ) -> None:
        self.depth = depth
        self.ends = ends
        self.stops = stops
        self.tree_nodes = tree_nodes
        self.most = nodes
        self.sweep = sweep
        self.trees: dict[int, Tree] = {}
        self.nodes = 0
        self.clock = 0
        self.pruned = 0
        self._fresh = 0

    def find(self, query: Sequence[int]) -> Node | None:
        """The node of `query`."""
        node: Node | None = self.trees.get(query[0])
        for token in query[1:]:
            if node is None:
                return None
            node = node.below.get(token)
        return node

    def below(self, place: Node) -> list[Child]:
        """The children of a node."""
        return [(token, node.count, node.latest, node) for token, node in place.below.items()]

    def root(self, token: int) -> Tree | None:
        """The tree of a token that may be a root."""
        if token in self.stops:
            return None
        tree = self.trees.get(token)
        if tree is None:
            tree = self.trees[token] = Tree()
        return tree

    def grow(self, tree: Tree, node: Node, token: int) -> Node:
        """Count `token` behind a node of a tree."""
        child = node.below.get(token)
        if child is None:
            child = node.below[token] = Node()
            tree.nodes += 1
            self.nodes += 1
        child.count += 1
        child.latest = self.clock
        if not tree.fresh:
            tree.fresh = True
            self._fresh += 1
        return child

    def settle(self) -> None:
        """Prune where it is time to."""
        if self.nodes > self.most:
            while self.nodes > self.most // 2:
                self._prune(self.trees.values())
        elif self._fresh >= self.sweep:
            changed = [tree for tree in self.trees.values() if tree.fresh]
            while large := [tree for tree in changed if tree.nodes > self.tree_nodes]:
                self._prune(large)
        else:
            return
        for tree in self.trees.values():
            tree.fresh = False
        self._fresh = 0

    def _prune(self, trees: Iterable[Tree]) -> None:
        """One round: halve what was counted more than once, drop the rest."""
        self.pruned += 1
        for tree in trees:
            self.nodes -= tree.nodes
            tree.nodes = _halve(tree)
            self.nodes += tree.nodes
        self.trees = {token: tree for token, tree in self.trees.items() if tree.below}


def _halve(root: Node) -> int:
    """Prune below a node; how many nodes stay."""
    stay, stack = 0, [root]
    while stack:
        node = stack.pop()
        node.below = {token: child for token, child in node.below.items() if child.count > 1}
        for child in node.below.values():
            child.count /= 2
            stack.append(child)
        stay += len(node.below)
    return stay


class Stream:
    """One text on its way into a forest, token by token.

    Every open window grows by a node per token, so that the latest tokens can be found at once;
    the counts are always those of all windows of the text so far.
    """

    def __init__(self, forest: Forest) -> None:
        self._forest = forest
        self._open: deque[tuple[Tree, Node] | None] = deque(maxlen=forest.depth)
        self._pruned = forest.pruned

    def put(self, tokens: Iterable[int]) -> None:
        """Append tokens."""
        forest = self._forest
        for token in tokens:
            if token in forest.ends:
                self._open.clear()
                continue
            if self._pruned != forest.pruned:  # open windows may end in nodes that are gone
                self._open.clear()
                self._pruned = forest.pruned
            forest.clock += 1
            self._grow(token)
            forest.settle()

    def _grow(self, token: int) -> None:
        forest = self._forest
        # The deque drops the oldest window, which is complete, by its place: None holds the place
        # of one that no root begins.
        for at, window in enumerate(self._open):
            if window is not None:
                tree, node = window
                self._open[at] = tree, forest.grow(tree, node, token)
        root = forest.root(token)
        self._open.append(None if root is None else (root, root))
