"""Retrievers over the questions of a suite, without a workflow: recall@k, nDCG@k, MRR."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from api.evaluation.errors import EvaluationInputError
from api.evaluation.intervals import bootstrap
from api.evaluation.ranking import ndcg_at, recall_at, reciprocal_rank
from api.evaluation.suites import Question, open_suite
from retrieval.build import Progress
from retrieval.retriever import Retriever
from retrieval.table import retriever_config


def rank_suite(
    suite: str,
    docs: Path | None,
    names: Sequence[str],
    ks: Sequence[int],
    *,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Scores of each retriever, the question being the query; means with intervals.

    Documents are ranked by their best passage, to the depth of the largest `k`, at which the
    reciprocal rank ends too. Only questions with supporting documents count. Raises
    SuiteInputError, EvaluationInputError and RetrievalInputError.
    """
    configs = {name: retriever_config(name) for name in names}
    opened = open_suite(suite, docs)
    index = opened.index(progress)
    questions = [one for one in opened.chosen(limit) if one.supporting]
    if index is None or not questions:
        lacks = "questions with `supporting`" if index is not None else "documents (--docs)"
        raise EvaluationInputError(f"suite {opened.name!r} has no {lacks}; a ranking needs them")
    depth = max(ks)
    rows = []
    for name, config in configs.items():
        retriever = config.open(index)
        ranked = [ranking(retriever, one, depth) for one in questions]
        pairs = list(zip(ranked, (one.supporting for one in questions), strict=True))
        scores: dict[str, list[float]] = {}
        for k in ks:
            scores[f"recall@{k}"] = [recall_at(found, gold, k) for found, gold in pairs]
            scores[f"ndcg@{k}"] = [ndcg_at(found, gold, k) for found, gold in pairs]
        scores[f"mrr@{depth}"] = [reciprocal_rank(found, gold) for found, gold in pairs]
        means = {key: found.plain() for key, v in scores.items() if (found := bootstrap(v, seed))}
        rows.append({"retriever": name, "n": len(questions), **means})
    return {"suite": opened.name, "n": len(questions), "seed": seed, "retrievers": rows}


def ranking(retriever: Retriever, question: Question, depth: int) -> list[str]:
    """The first `depth` documents for a question; a passage stands for itself if it is gold."""
    asked = depth
    while True:
        [hits] = retriever.search([question.text], asked)
        names = [hit.passage.id for hit in hits]
        found = list(
            dict.fromkeys(
                name if name in question.supporting else hit.passage.document_id
                for name, hit in zip(names, hits, strict=True)
            )
        )
        if len(found) >= depth or len(hits) < asked:
            return found[:depth]
        asked *= 2
