"""Supporting-passage recall on HotpotQA, where the evaluation data lies beside the project."""

from __future__ import annotations

import pytest

from tests.bench.retrieval import HOTPOTQA, supporting_recall

pytestmark = pytest.mark.skipif(
    not HOTPOTQA.is_dir(), reason="the evaluation data ../shared/data/hotpotqa is absent"
)


@pytest.fixture(scope="module")
def measured() -> tuple[dict[str, float], int]:
    """Recall@5 of every retriever; the index of the corpus is kept in the cache."""
    return supporting_recall()


@pytest.mark.timeout(900)
def test_hybrid_is_above_both_of_its_parts(measured: tuple[dict[str, float], int]) -> None:
    recall, _ = measured
    assert recall["hybrid"] > recall["dense"] >= 0.70
    assert recall["hybrid"] > recall["bm25"] >= 0.72


def test_hybrid_recall(measured: tuple[dict[str, float], int]) -> None:
    recall, _ = measured
    assert recall["hybrid"] >= 0.79
