"""Lexical retrieval: BM25 (Lucene's variant) by bm25s.

Source: Lu 2024, "BM25S: Orders of magnitude faster lexical search via eager sparse scoring".
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from Stemmer import Stemmer

from retrieval.arrays import save_array
from retrieval.ranking import IndexRetriever, Mask, Ranked

if TYPE_CHECKING:
    import bm25s

    from retrieval.store import Index

WORD = re.compile(r"\w\w+")
STOPWORDS = frozenset(
    re.findall(
        r"\w+",
        """a an and are as at be but by for if in into is it no not of on or such that the their
        then there these they this to was will with""",
    )
)
"""Lucene's English stop words."""
K1, B = 1.5, 0.75
TITLE_WEIGHT = 2
"""How often a title counts as if it stood in the text (a field weight, as in BM25F).

The title is matched here and not embedded: in a short vector it would crowd out the passage.
"""
DATA, INDICES, INDPTR, VOCABULARY = (
    "bm25.data.npy",
    "bm25.indices.npy",
    "bm25.indptr.npy",
    "bm25.vocabulary.json",
)
FILES = (DATA, INDICES, INDPTR, VOCABULARY)


class Analyzer:
    """Texts to terms: lower-case words of two or more letters, no stop words, Porter2 stems.

    Not safe to share between threads, as the stemmer is not; making one is cheap.
    """

    def __init__(self) -> None:
        self._stem = Stemmer("english").stemWord

    def terms(self, text: str) -> list[str]:
        """The terms of `text` in their order."""
        words = WORD.findall(text.lower())
        return [self._stem(word) for word in words if word not in STOPWORDS]


class Bm25:
    """Precomputed BM25 scores in a sparse matrix, a column of passages per term."""

    def __init__(self, scorer: bm25s.BM25, vocabulary: dict[str, int]) -> None:
        self._scorer = scorer
        self._vocabulary = vocabulary

    @staticmethod
    def write(texts: Iterable[str], folder: Path) -> None:
        """Index `texts`, one passage each, and write the arrays and vocabulary to `folder`."""
        vocabulary: dict[str, int] = {}
        terms = Analyzer().terms
        ids = [
            array("i", [vocabulary.setdefault(term, len(vocabulary)) for term in terms(text)])
            for text in texts
        ]
        scorer = _scorer()
        if vocabulary:
            scorer.index((ids, vocabulary), create_empty_token=False, show_progress=False)
            parts = [scorer.scores[part] for part in ("data", "indices", "indptr")]
        else:
            parts = [np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(1, np.int64)]
        for name, part in zip((DATA, INDICES, INDPTR), parts, strict=True):
            save_array(folder / name, part.shape, part.dtype, [part])
        (folder / VOCABULARY).write_text(
            json.dumps(list(vocabulary), ensure_ascii=False), encoding="utf-8"
        )

    @classmethod
    def load(cls, files: Mapping[str, Any], passages: int) -> Bm25:
        """From the content of the four `FILES`: three arrays and the bytes of the vocabulary."""
        words = json.loads(bytes(files[VOCABULARY]))
        vocabulary = {word: number for number, word in enumerate(words)}
        scorer = _scorer()
        scorer.vocab_dict = vocabulary
        scorer.nonoccurrence_array = None  # of variants other than Lucene's
        scorer.scores = {
            "data": files[DATA],
            "indices": files[INDICES],
            "indptr": files[INDPTR],
            "num_docs": passages,
        }
        return cls(scorer, vocabulary)

    def scores(self, query: str) -> npt.NDArray[np.float64]:
        """BM25 of every passage for `query`, in index order; 0 where no term is shared."""
        terms = Analyzer().terms(query)
        known = [self._vocabulary[term] for term in terms if term in self._vocabulary]
        if not known:
            return np.zeros(self._scorer.scores["num_docs"], dtype=np.float64)
        scores: npt.NDArray[np.float64] = self._scorer.get_scores_from_ids(known).astype(np.float64)
        return scores

    def rank(
        self, queries: Sequence[str], depth: int, mask: Mask | None, *, matching: bool = False
    ) -> list[Ranked]:
        """Best `depth` allowed rows per query; `matching` leaves out rows that score 0."""
        ranked = []
        for query in queries:
            scores = self.scores(query)
            allowed = scores > 0 if matching else np.ones(len(scores), dtype=np.bool_)
            rows = np.flatnonzero(allowed if mask is None else allowed & mask)
            ranked.append(Ranked.best(rows, scores[rows], depth))
        return ranked


def _scorer() -> bm25s.BM25:
    import bm25s

    return bm25s.BM25(k1=K1, b=B, method="lucene", backend="numpy")


class Bm25Retriever(IndexRetriever):
    """Passages by the words they share with the query."""

    def __init__(self, index: Index) -> None:
        super().__init__(index)
        self._bm25 = index.bm25

    @classmethod
    def open(cls, path: Path) -> Bm25Retriever:
        """Open over an index folder."""
        from retrieval.store import open_index

        return cls(open_index(path))

    def rank(self, queries: Sequence[str], k: int, mask: Mask | None) -> list[Ranked]:
        """Best `k` rows per query; rows that share no word come last, with score 0."""
        return self._bm25.rank(queries, k, mask)
