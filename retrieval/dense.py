"""Dense retrieval: exact inner products of unit vectors by FAISS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
import numpy.typing as npt

from retrieval.ranking import IndexRetriever, Mask, Ranked

if TYPE_CHECKING:
    from retrieval.embedding import Embedder
    from retrieval.store import Index

SPARE = 8
"""Hits asked for beyond k, so that ties at the border can be settled."""
DIGITS = 6
"""Decimals of a score; beyond them float32 sums differ with batch and device."""
ADD = 16_384
"""Vectors copied into FAISS at a time."""


class Dense:
    """A FAISS flat index over the vectors; on the GPU where FAISS sees one."""

    def __init__(self, vectors: npt.NDArray[np.float32], embedder: Embedder) -> None:
        self.vectors = vectors
        self.embedder = embedder
        self._gpu = hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0
        self._one_at_a_time = Lock()
        index: Any = faiss.IndexFlatIP(vectors.shape[1])
        if self._gpu:
            self._resources = faiss.StandardGpuResources()
            index = faiss.index_cpu_to_gpu(self._resources, 0, index)
        for low in range(0, len(vectors), ADD):
            index.add(np.ascontiguousarray(vectors[low : low + ADD]))
        self._index = index

    def rank(self, queries: Sequence[str], depth: int, mask: Mask | None) -> list[Ranked]:
        """Best `depth` allowed rows per query with their cosine, best first, ties by row."""
        return self.nearest(self.embedder.embed(queries), depth, mask)

    def nearest(
        self, vectors: npt.NDArray[np.float32], depth: int, mask: Mask | None
    ) -> list[Ranked]:
        """The same for query vectors of unit length, shape (n, dimensions)."""
        available = len(self.vectors) if mask is None else int(mask.sum())
        depth = min(depth, available)
        if not depth:
            return [Ranked.empty() for _ in vectors]
        wanted = min(depth + SPARE, available)
        scores, rows = self._search(vectors, wanted, mask)
        ranked = []
        for number in range(len(vectors)):
            found, near = rows[number], scores[number]
            more = wanted
            while near[depth - 1] - near[-1] < 2 * 10**-DIGITS and more < available:
                more = min(2 * more, available)
                one_scores, one_rows = self._search(vectors[number : number + 1], more, mask)
                found, near = one_rows[0], one_scores[0]
            ranked.append(self._settle(vectors[number], found, depth))
        return ranked

    def _settle(self, query: npt.NDArray[np.float32], rows: Any, depth: int) -> Ranked:
        """Order candidates by a score that depends on query and passage only."""
        rows = np.sort(rows)
        exact = self.vectors[rows].astype(np.float64) @ query.astype(np.float64)
        return Ranked.best(rows, np.round(exact, DIGITS), depth)

    def _search(
        self, vectors: npt.NDArray[np.float32], k: int, mask: Mask | None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        if self._gpu:
            return self._search_gpu(vectors, k, mask)
        if mask is None:
            scores, rows = self._index.search(vectors, k)
            return scores, rows
        bits = np.packbits(mask, bitorder="little")
        chosen = faiss.IDSelectorBitmap(len(mask), faiss.swig_ptr(bits))
        only: Any = faiss.SearchParameters(sel=chosen)  # type: ignore[call-arg]
        scores, rows = self._index.search(vectors, k, params=only)
        return scores, rows

    def _search_gpu(
        self, vectors: npt.NDArray[np.float32], k: int, mask: Mask | None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The GPU index has no selectors and no concurrent use: a subset is searched by itself."""
        with self._one_at_a_time:
            if mask is None:
                scores, rows = self._index.search(vectors, k)
                return scores, rows
            allowed = np.flatnonzero(mask)
            part = faiss.index_cpu_to_gpu(
                self._resources, 0, faiss.IndexFlatIP(self.vectors.shape[1])
            )
            for low in range(0, len(allowed), ADD):
                part.add(np.ascontiguousarray(self.vectors[allowed[low : low + ADD]]))
            scores, places = part.search(vectors, k)
            return scores, allowed[places]


class DenseRetriever(IndexRetriever):
    """Passages by cosine of their MiniLM vector and the query's."""

    def __init__(self, index: Index) -> None:
        super().__init__(index)
        self._dense = index.dense

    @classmethod
    def open(cls, path: Path) -> DenseRetriever:
        """Open over an index folder."""
        from retrieval.store import open_index

        return cls(open_index(path))

    def rank(self, queries: Sequence[str], k: int, mask: Mask | None) -> list[Ranked]:
        """Best `k` rows per query."""
        return self._dense.rank(queries, k, mask)
