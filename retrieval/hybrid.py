"""Hybrid retrieval: dense and BM25 rankings joined by reciprocal rank fusion.

Source: Cormack, Clarke and Buettcher 2009, "Reciprocal rank fusion outperforms Condorcet and
individual rank learning methods".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retrieval.ranking import IndexRetriever, Mask, Ranked

if TYPE_CHECKING:
    from retrieval.store import Index


def fuse(rankings: Mapping[str, Ranked], constant: float, k: int) -> Ranked:
    """Best `k` rows by the sum of 1 / (constant + rank) over the rankings, ranks from 1."""
    ranks: dict[int, dict[str, int]] = {}
    for part, ranked in rankings.items():
        for rank, row in enumerate(ranked.rows.tolist(), start=1):
            ranks.setdefault(row, {})[part] = rank
    rows = np.array(sorted(ranks), dtype=np.int64)
    scores = np.array(
        [sum(1 / (constant + rank) for rank in ranks[row].values()) for row in rows.tolist()],
        dtype=np.float64,
    )
    best = Ranked.best(rows, scores, k)
    return Ranked(best.rows, best.scores, [ranks[row] for row in best.rows.tolist()])


class HybridRetriever(IndexRetriever):
    """Reciprocal rank fusion of the dense and the BM25 ranking, each `depth` passages deep."""

    def __init__(self, index: Index, constant: float, depth: int) -> None:
        super().__init__(index)
        self._constant, self._depth = constant, depth
        self._dense, self._bm25 = index.dense, index.bm25

    @classmethod
    def open(cls, path: Path, constant: float, depth: int) -> HybridRetriever:
        """Open over an index folder."""
        from retrieval.store import open_index

        return cls(open_index(path), constant, depth)

    def rank(self, queries: Sequence[str], k: int, mask: Mask | None) -> list[Ranked]:
        """Best `k` rows per query; a passage without a shared word is not ranked by BM25."""
        depth = max(self._depth, k)
        dense = self._dense.rank(queries, depth, mask)
        bm25 = self._bm25.rank(queries, depth, mask, matching=True)
        return [
            fuse({"dense": one, "bm25": other}, self._constant, k)
            for one, other in zip(dense, bm25, strict=True)
        ]
