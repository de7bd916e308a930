"""Scores of rankings with binary relevance: recall@k, nDCG@k, reciprocal rank.

nDCG: Järvelin and Kekäläinen, ACM TOIS 20(4), 2002, with gains of 1 and the discount
log2(rank + 1), as trec_eval computes `ndcg_cut`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import log2


def recall_at(ranked: Sequence[str], relevant: Collection[str], k: int) -> float:
    """Share of the relevant ids among the first `k`; `relevant` holds at least one."""
    wanted = set(relevant)
    return len(wanted & set(ranked[:k])) / len(wanted)


def ndcg_at(ranked: Sequence[str], relevant: Collection[str], k: int) -> float:
    """Discounted gain of the first `k` over that of the best ranking."""
    wanted = set(relevant)
    gain = sum(1 / log2(rank + 1) for rank, one in enumerate(ranked[:k], 1) if one in wanted)
    return gain / sum(1 / log2(rank + 1) for rank in range(1, min(k, len(wanted)) + 1))


def reciprocal_rank(ranked: Sequence[str], relevant: Collection[str]) -> float:
    """1 / rank of the first relevant id, 0 where none was ranked."""
    wanted = set(relevant)
    return next((1 / rank for rank, one in enumerate(ranked, 1) if one in wanted), 0.0)
