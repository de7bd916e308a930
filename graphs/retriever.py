"""Graph search as retrieval: facts around the entities that a query mentions.

The score of a fact is its nearness plus `words` times its share of words. Nearness: a fact of a
linked entity has the strength of that link (1 where the query holds its name), each further hop
halves it, and a fact on a shortest path between two linked entities counts as one of theirs. Share
of words: BM25 of the fact's text, as a part of the best fact's. A fact that is neither near nor
shares a word is no hit, however large k is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graphs.errors import GraphInputError
from graphs.names import Match
from graphs.store import GraphStore, metadata
from graphs.walk import Near
from inference.suggest import nearest
from retrieval.errors import UnknownName
from retrieval.ranking import Mask, Ranked
from retrieval.retriever import Hit

AROUND = 20_000
"""Facts taken around one linked entity, the nearest."""
PAIRS = 6
"""Pairs of linked entities between which paths are sought."""
PATHS = 20

Scores = npt.NDArray[np.float64]


class GraphRetriever:
    """Facts around the entities linked in a query; safe to call from several threads."""

    def __init__(
        self, store: GraphStore, *, hops: int = 2, links: int = 5, words: float = 0.5
    ) -> None:
        self.store = store
        self.hops, self.links, self.words = hops, links, words

    @classmethod
    def open(
        cls, path: Path, *, hops: int = 2, links: int = 5, words: float = 0.5
    ) -> GraphRetriever:
        """Open over a graph folder."""
        return cls(GraphStore.open(path), hops=hops, links=links, words=words)

    def search(
        self,
        queries: Sequence[str],
        k: int,
        *,
        exclude: Collection[str] = (),
        where: Mapping[str, Any] | None = None,
    ) -> list[list[Hit]]:
        """Best `k` facts per query, best first; ties by head, relation, tail.

        `exclude` (passage ids) and `where` (head, relation, tail, file, line) are applied before
        ranking. `hit.ranks` says where nearness (`graph`) and words placed the fact.
        """
        if isinstance(queries, str) or isinstance(exclude, str):
            raise GraphInputError("queries and exclude are lists of strings, not one string")
        if k < 1:
            raise GraphInputError(f"k={k!r} must be at least 1")
        for query in queries:
            if not query.strip():
                raise GraphInputError(f"the query {query!r} is empty; give it words")
        allowed = self._allowed(exclude, where)
        return [self._search(query, k, allowed) for query in queries]

    def _search(self, query: str, k: int, allowed: Mask) -> list[Hit]:
        near = self.nearness(self.store.link(query, self.links))
        shared = self.store.words.scores(query)
        if (best := shared.max(initial=0.0)) > 0:
            shared = shared / best
        total = np.round(near + self.words * shared, 6)
        rows = np.flatnonzero((total > 0) & allowed)
        ranked = Ranked.best(rows, total[rows], k)
        parts = {"graph": near, "words": shared}
        return [
            Hit(
                self.store.passage(int(row)),
                float(score),
                {
                    name: 1 + int((part[allowed] > part[row]).sum())
                    for name, part in parts.items()
                    if part[row] > 0
                },
            )
            for row, score in zip(ranked.rows, ranked.scores, strict=True)
        ]

    def nearness(self, links: Sequence[Match]) -> Scores:
        """How near every fact is to the linked entities, 0 to 1."""
        near = np.zeros(len(self.store), dtype=np.float64)
        for link in links:
            found = self.store.neighbours(link.entity, self.hops, AROUND)
            _raise(near, found.near, link.score)
        pairs = list(combinations([link for link in links if link.score == 1.0], 2))[:PAIRS]
        for one, other in pairs:
            if one.entity != other.entity:
                between = self.store.paths(
                    one.entity, other.entity, 2 * self.hops, PATHS, shortest=True
                )
                _raise(near, [Near(leg.row, 1) for path in between.paths for leg in path], 1.0)
        return near

    def _allowed(self, exclude: Collection[str], where: Mapping[str, Any] | None) -> Mask:
        mask = np.ones(len(self.store), dtype=np.bool_)
        for key in where or {}:
            known = metadata(self.store.facts[0])
            if key not in known:
                raise UnknownName(f"unknown metadata key {key!r}; {nearest(key, known)}")
        for key, wanted in (where or {}).items():
            members = wanted if isinstance(wanted, list | tuple | set | frozenset) else [wanted]
            for row, fact in enumerate(self.store.facts):
                value = metadata(fact)[key]
                mask[row] &= any(value == one and type(value) is type(one) for one in members)
        for identifier in exclude:
            fact_id, _, ordinal = identifier.rpartition("#")
            if ordinal == "0" and fact_id in self.store.rows:
                mask[self.store.rows[fact_id]] = False
        return mask


def _raise(near: Scores, found: Sequence[Near], strength: float) -> None:
    for fact in found:
        near[fact.row] = max(near[fact.row], strength * 0.5 ** (fact.hop - 1))
