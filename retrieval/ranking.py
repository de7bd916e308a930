"""What all retrievers over an index share: checks, top-k with settled ties, hits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from retrieval.errors import RetrievalInputError
from retrieval.retriever import Hit

if TYPE_CHECKING:
    from retrieval.store import Index

Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ranked:
    """Rows of passages, best first, with scores; `parts` holds the ranks of fused parts."""

    rows: Rows
    scores: Scores
    parts: Sequence[Mapping[str, int]] = field(default_factory=tuple)

    @classmethod
    def empty(cls) -> Ranked:
        """No passage at all."""
        return cls(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float64))

    @classmethod
    def best(cls, rows: Rows, scores: Scores, k: int) -> Ranked:
        """The `k` highest scores; among equal scores the lower row wins. `rows` ascend."""
        if k < len(rows):
            border = np.partition(scores, len(scores) - k)[len(scores) - k]
            above = np.flatnonzero(scores > border)
            level = np.flatnonzero(scores == border)[: k - len(above)]
            chosen = np.concatenate((above, level))
            rows, scores = rows[chosen], scores[chosen]
        order = np.lexsort((rows, -scores))
        return cls(rows[order], scores[order])


class IndexRetriever(ABC):
    """Base of the retrievers over an index folder; a subclass says how to rank rows."""

    def __init__(self, index: Index) -> None:
        self.index = index

    @abstractmethod
    def rank(self, queries: Sequence[str], k: int, mask: Mask | None) -> list[Ranked]:
        """Best `k` rows per query among those that `mask` allows (None allows all)."""

    def search(
        self,
        queries: Sequence[str],
        k: int,
        *,
        exclude: Collection[str] = (),
        where: Mapping[str, Any] | None = None,
    ) -> list[list[Hit]]:
        """Best `k` hits per query, best first; fewer only where fewer passages are allowed.

        `exclude` (passage ids) and `where` (metadata) are applied before ranking. Ties go to
        the passage that stands earlier in the index. Raises `RetrievalInputError` for k < 1,
        an empty query, or a metadata key that no document has.
        """
        if isinstance(queries, str) or isinstance(exclude, str):
            raise RetrievalInputError("queries and exclude are lists of strings, not one string")
        if k < 1:
            raise RetrievalInputError(f"k={k!r} must be at least 1")
        for query in queries:
            if not query.strip():
                raise RetrievalInputError(f"the query {query!r} is empty; give it words")
        if not queries:
            return []
        ranked = self.rank(queries, k, self.index.allowed(exclude, where))
        return [self._hits(one) for one in ranked]

    def _hits(self, ranked: Ranked) -> list[Hit]:
        parts = ranked.parts or ({},) * len(ranked.rows)
        return [
            Hit(self.index.passage(int(row)), float(score), ranks)
            for row, score, ranks in zip(ranked.rows, ranked.scores, parts, strict=True)
        ]
