"""Lookahead's trie written down plainly: a count for every path of every window."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

Path = tuple[int, ...]


def pieces(tokens: Sequence[int], ends: Collection[int]) -> Iterator[tuple[int, Path]]:
    """What lies between end tokens, with where it begins."""
    begin = 0
    for at, token in enumerate([*tokens, None]):
        if token is None or token in ends:
            yield begin, tuple(tokens[begin:at])
            begin = at + 1


@dataclass
class NaiveSlot:
    """Counts of paths, root first; `latest` is when a path was counted last."""

    depth: int
    ends: Collection[int] = ()
    stops: Collection[int] = ()
    counts: Counter[Path] = field(default_factory=Counter)
    latest: dict[Path, int] = field(default_factory=dict)
    clock: int = 0

    def put(self, tokens: Sequence[int]) -> None:
        """Every window of a text: a root and up to `depth` tokens behind it."""
        for begin, piece in pieces(tokens, self.ends):
            for at, root in enumerate(piece):
                for length in range(1, len(piece[at + 1 : at + 1 + self.depth]) + 1):
                    path = piece[at : at + 1 + length]
                    if root not in self.stops:
                        self.counts[path] += 1
                        now = self.clock + begin + at + length
                        self.latest[path] = max(self.latest.get(path, -1), now)
        self.clock += len(tokens) + 1

    def nodes(self, root: int) -> list[Path]:
        """The nodes of a tree."""
        return [path for path in self.counts if path[0] == root]

    def prune(self, root: int) -> None:
        """Halve what was counted more than once, drop the rest with what is below it."""
        for path in sorted(self.nodes(root), key=len):
            known = len(path) == 2 or path[:-1] in self.counts
            if known and self.counts[path] > 1:
                self.counts[path] /= 2  # type: ignore[assignment]  # halves count as well
            else:
                del self.counts[path]


@dataclass
class NaiveForest(NaiveSlot):
    """A slot that takes one text token by token and is pruned as it grows."""

    tree_nodes: int = 512
    most: int = 65536
    sweep: int = 1024
    text: list[int] = field(default_factory=list)
    first: int = 0
    changed: set[int] = field(default_factory=set)

    def append(self, token: int) -> None:
        """One token more for every window that began `depth` tokens ago or later."""
        if token in self.ends:
            self.text, self.first = [], 0
            return
        self.clock += 1
        self.text.append(token)
        at = len(self.text) - 1
        for begin in range(max(self.first, at - self.depth), at):
            path = tuple(self.text[begin:])
            if path[0] not in self.stops:
                self.counts[path] += 1
                self.latest[path] = self.clock
                self.changed.add(path[0])
        if self._settle():
            self.first = at + 1

    def _settle(self) -> bool:
        before = sum(self.counts.values())
        if len(self.counts) > self.most:
            while len(self.counts) > self.most // 2:
                for root in {path[0] for path in self.counts}:
                    self.prune(root)
            self.changed = set()
        elif len(self.changed) >= self.sweep:
            for root in self.changed:
                while len(self.nodes(root)) > self.tree_nodes:
                    self.prune(root)
            self.changed = set()
        return sum(self.counts.values()) != before


@dataclass
class NaiveTrie:
    """Retrieval over slots and what their counts weigh, by looking at every node."""

    slots: Sequence[tuple[NaiveSlot, float]]
    query: int
    stops: Collection[int] = ()

    def hier(self, ids: Sequence[int], most: int, depth: int, emitted: int) -> list[Path]:
        """Paths below the last token in pre-order, without it."""
        best: list[Path] = []
        for length in range(min(self.query, len(ids)), 0, -1):
            query = tuple(ids[len(ids) - length :])
            if length == 1 and query[0] in self.stops:
                continue
            best = self._tree(query, most, depth, emitted) or best
            if len(best) + 1 >= min(depth, most):
                break
        return best

    def one(self, ids: Sequence[int], most: int, depth: int) -> list[Path]:
        """The chain of the heaviest children."""
        best: list[Path] = []
        for length in range(min(self.query, len(ids)), 0, -1):
            query = tuple(ids[len(ids) - length :])
            if length == 1 and query[0] in self.stops:
                continue
            found = self._below(query, depth)
            line: list[Path] = []
            for path in found:  # in pre-order, so that the first of each depth is the heaviest
                if path[:-1] == (line[-1] if line else ()) and len(line) < most - 1:
                    line.append(path)
            best = line or best
            if len(best) + 1 >= min(depth, most):
                break
        return best

    def _weight(self, path: Path) -> float:
        return sum(weight * slot.counts[path] for slot, weight in self.slots)

    def _below(self, query: Path, depth: int) -> list[Path]:
        """All descendants of a query up to a depth, in pre-order."""

        def standing(path: Path) -> tuple[float, list[int]]:
            seen = [
                slot.latest[path] if slot.counts[path] > 0 else -1 for slot, _weight in self.slots
            ]
            return self._weight(path), seen

        size = len(query)
        known = {
            path
            for slot, _ in self.slots
            for path in slot.counts
            if path[:size] == query and size < len(path) <= size + depth
        }

        def walk(path: Path) -> Iterator[Path]:
            children = [one for one in known if one[:-1] == path]
            for child in sorted(children, key=standing, reverse=True):
                yield child[size:]
                yield from walk(child)

        return list(walk(query))

    def _tree(self, query: Path, most: int, depth: int, emitted: int) -> list[Path]:
        found = self._below(query, depth)
        weight = {path: self._weight(query + path) for path in found}
        output = {path: self.slots[-1][0].counts[query + path] for path in found}
        least_weight, least_output = 0.0, float("inf")
        if len(found) > most:
            often = sorted((p for p in found if output[p] > 0), key=lambda p: -output[p])[:emitted]
            rest = sorted((p for p in found if p not in often), key=lambda p: -weight[p])
            rest = rest[: most - len(often)]
            least_weight = weight[rest[-1]] if rest else float("inf")
            least_output = output[often[-1]] if often else float("inf")
        passing = [p for p in found if weight[p] >= least_weight or output[p] >= least_output]
        return passing[: most - 1]
