"""Dense, BM25 and fusion against independent calculations over the same passages."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from Stemmer import Stemmer

from retrieval import Passage
from retrieval.bm25 import K1 as K
from retrieval.bm25 import STOPWORDS, B, Bm25
from retrieval.documents import Document
from retrieval.embedding import Embedder
from retrieval.hybrid import fuse
from retrieval.index import build_index, open_index
from retrieval.ranking import Ranked
from retrieval.store import Index
from retrieval.table import retriever_config

QUERIES = ["who discovered polonium", "machines and compilers", "ships, ships; SHIPS left!"]


@pytest.fixture(scope="module")
def index(index_path: Path) -> Index:
    """The opened corpus."""
    return open_index(index_path)


def words(text: str) -> list[str]:
    """An own reading of the analyzer's rules."""
    found = [w for w in re.split(r"\W+", text.lower()) if len(w) > 1 and w not in STOPWORDS]
    return [str(word) for word in Stemmer("english").stemWords(found)]


def lucene_bm25(query: str, texts: list[str]) -> list[float]:
    """BM25 as Lucene has it, from the definition."""
    bags = [Counter(words(text)) for text in texts]
    average = sum(bag.total() for bag in bags) / len(bags)
    scores = [0.0] * len(texts)
    for term in words(query):
        df = sum(term in bag for bag in bags)
        idf = math.log(1 + (len(bags) - df + 0.5) / (df + 0.5))
        for row, bag in enumerate(bags):
            tf = bag[term]
            scores[row] += idf * tf / (tf + K * (1 - B + B * bag.total() / average))
    return scores


def passages(index: Index) -> list[Passage]:
    """Every passage in index order."""
    return [index.passage(row) for row in range(len(index))]


def test_bm25_equals_the_definition(index: Index) -> None:
    texts = [f"{p.title} {p.title} {p.text}" for p in passages(index)]
    for query in QUERIES:
        np.testing.assert_allclose(
            index.bm25.scores(query), lucene_bm25(query, texts), rtol=1e-5, atol=1e-6
        )


def test_dense_equals_brute_force(index: Index, embedder: Embedder) -> None:
    vectors = embedder.embed([p.text for p in passages(index)])
    scores = embedder.embed(QUERIES).astype(np.float64) @ vectors.T
    found = retriever_config("dense").open(index.path).search(QUERIES, len(index))
    for row, hits in zip(scores, found, strict=True):
        by_id = {index.passage(n).id: float(score) for n, score in enumerate(row)}
        assert [hit.score for hit in hits] == pytest.approx(
            [by_id[hit.passage.id] for hit in hits], abs=5e-6
        )
        assert [hit.score for hit in hits] == pytest.approx(sorted(row, reverse=True), abs=5e-6)


@pytest.mark.parametrize(("rrf", "depth"), [(60.0, 100), (1.0, 3)])
def test_hybrid_is_the_sum_of_reciprocal_ranks(index: Index, rrf: float, depth: int) -> None:
    k = 3
    dense = retriever_config("dense").open(index.path).search(QUERIES, depth)
    bm25 = retriever_config("bm25").open(index.path).search(QUERIES, depth)
    config = retriever_config("hybrid", {"rrf": rrf, "depth": depth})
    for one, other, hits in zip(
        dense, bm25, config.open(index.path).search(QUERIES, k), strict=True
    ):
        total: Counter[str] = Counter()
        for ranking in (one, [hit for hit in other if hit.score > 0]):
            for rank, hit in enumerate(ranking):
                total[hit.passage.id] += 1 / (rrf + rank + 1)  # type: ignore[assignment]
        best = sorted(total.values(), reverse=True)[:k]
        assert [hit.score for hit in hits] == pytest.approx(best)
        for hit in hits:
            assert hit.score == pytest.approx(total[hit.passage.id])
            assert hit.score == pytest.approx(sum(1 / (rrf + r) for r in hit.ranks.values()))


def test_fusion_of_nothing_is_nothing() -> None:
    assert len(fuse({"dense": Ranked.empty(), "bm25": Ranked.empty()}, 60, 5).rows) == 0


def test_ties_at_the_border_go_to_the_lower_row() -> None:
    rows = np.array([2, 3, 5, 7, 9])
    best = Ranked.best(rows, np.array([1.0, 2.0, 1.0, 1.0, 3.0]), 3)
    assert best.rows.tolist() == [9, 3, 2]
    assert best.scores.tolist() == [3.0, 2.0, 1.0]


def test_many_copies_of_a_passage_come_in_their_order(tmp_path: Path) -> None:
    copies = [Document(f"d{n:02}", "", "x", "The same sentence.") for n in range(40)]
    build_index([*copies, Document("e", "", "x", "Something else entirely.")], tmp_path / "i")
    for name in ("dense", "bm25", "hybrid"):
        (hits,) = retriever_config(name).open(tmp_path / "i").search(["same sentence"], 5)
        assert [hit.passage.document_id for hit in hits] == [f"d{n:02}" for n in range(5)]


def test_a_corpus_of_stop_words_has_no_terms(tmp_path: Path) -> None:
    build_index(
        [Document("a", "", "x", "the of and a"), Document("b", "", "x", "?")], tmp_path / "i"
    )
    index = open_index(tmp_path / "i")
    assert isinstance(index.bm25, Bm25)
    assert index.bm25.scores("the other").tolist() == [0.0, 0.0]
    (hits,) = retriever_config("hybrid").open(tmp_path / "i").search(["the"], 5)
    assert len(hits) == 2


def test_retrievers_share_what_is_loaded(index: Index) -> None:
    opened = [retriever_config(name).open(index.path) for name in ("dense", "hybrid", "bm25")]
    assert {id(one.index) for one in opened} == {id(index)}  # type: ignore[attr-defined]
    assert index.dense is index.dense
