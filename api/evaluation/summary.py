"""Rows of an evaluation as one result: means with intervals, paired differences, by hops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from api.evaluation.intervals import bootstrap, paired
from api.evaluation.plan import Plan
from api.evaluation.results import Row
from api.evaluation.scores import distinct, supporting_recall
from api.evaluation.suites import Question

FORCED = frozenset({"closing"})
"""Endings of which the model has given no final answer: one was asked for without documents."""

Measure = Callable[[Row], float | None]


def _used(name: str) -> Measure:
    return lambda row: None if row.usage is None else float(row.usage[name])


def _tokens(row: Row) -> float | None:
    used = row.usage
    return None if used is None else float(used["prompt_tokens"] + used["completion_tokens"])


def _unforced(row: Row) -> float | None:
    return None if row.ending is None else row.exact_match * (row.ending not in FORCED)


MEASURES: dict[str, Measure] = {
    "exact_match": lambda row: row.exact_match,
    "f1": lambda row: row.f1,
    "unforced_exact_match": _unforced,
    "supporting_recall": lambda row: row.recall,
    "passages": lambda row: None if row.citations is None else float(len(distinct(row.citations))),
    "rounds": lambda row: row.rounds,
    "prompt_tokens": _used("prompt_tokens"),
    "cached_tokens": _used("cached_tokens"),
    "completion_tokens": _used("completion_tokens"),
    "tokens": _tokens,
    "model_calls": _used("model_calls"),
    "retrievals": _used("retrievals"),
    "seconds": _used("seconds"),
}
"""Name -> what is averaged over the rows that have it."""
USAGE = (
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "model_calls",
    "retrievals",
    "seconds",
)
PAIRED = ("exact_match", "f1", "supporting_recall", "tokens", "seconds")
BY_HOPS = ("exact_match", "f1", "supporting_recall", "passages", "rounds", "tokens")


def summarise(plan: Plan, rows: Mapping[tuple[str, str], Row], folder: str) -> dict[str, Any]:
    """The whole result as plain JSON; every row of the plan must be there.

    `workflows` holds, by name, means over the questions as numbers, those of a run's usage below
    `usage`, and all of them once more below `intervals`, as `{mean, low, high, n}` with a 95 %
    bootstrap interval; null where no row has the measure.
    """
    labels = [one.label for one in plan.contenders]
    table = {name: [rows[name, one.id] for one in plan.questions] for name in labels}
    seed = plan.order.seed
    equal = _equal(plan.questions, table)
    workflows = {name: _workflow(table[name], equal[name], seed) for name in labels}
    return {
        "suite": plan.suite.name,
        "n": len(plan.questions),
        "seed": seed,
        "at_once": plan.order.at_once,
        "folder": folder,
        "workflows": workflows,
        "paired": [_paired(table[labels[0]], table[name], seed) for name in labels[1:]],
        "hops": _hops(plan.questions, table, seed),
    }


def _workflow(rows: Sequence[Row], equal: Sequence[float], seed: int) -> dict[str, Any]:
    forced = [row for row in rows if row.ending in FORCED]
    told = [row for row in rows if row.ending is not None]
    malformed = [row.malformed_turns for row in rows if row.malformed_turns is not None]
    intervals = {
        **_means(rows, MEASURES, seed),
        "supporting_recall_equal": _interval(equal, seed),
    }
    means = {name: None if one is None else one["mean"] for name, one in intervals.items()}
    usage = {name: means.pop(name) for name in USAGE}
    return {
        "n": len(rows),
        "failed": sum(row.error is not None for row in rows),
        "errors": dict(Counter(row.error["code"] for row in rows if row.error is not None)),
        **means,
        "usage": usage,
        "malformed_turns": sum(malformed) if malformed else None,
        "forced": len(forced) if told else None,
        "forced_right": int(sum(row.exact_match for row in forced)) if told else None,
        "endings": dict(Counter(row.ending for row in told)),
        "intervals": intervals,
    }


def _means(rows: Sequence[Row], names: Sequence[str] | Mapping[str, Any], seed: int) -> Any:
    found = {}
    for name in names:
        values = [value for row in rows if (value := MEASURES[name](row)) is not None]
        found[name] = _interval(values, seed)
    return found


def _interval(values: Sequence[float], seed: int) -> dict[str, float | int] | None:
    found = bootstrap(values, seed)
    return None if found is None else found.plain()


def _equal(questions: Sequence[Question], table: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Recall by workflow over as many passages as all workflows have read of a question.

    Only questions count of which every workflow that reads has read a passage.
    """
    found: dict[str, list[float]] = {name: [] for name in table}
    reading = [
        name for name, rows in table.items() if any(row.citations is not None for row in rows)
    ]
    for place, question in enumerate(questions):
        read = {name: table[name][place].citations or [] for name in reading}
        most = min((len(distinct(one)) for one in read.values()), default=0)
        if most and question.supporting and not any(table[n][place].error for n in reading):
            for name, citations in read.items():
                recall = supporting_recall(question.supporting, citations, most)
                assert recall is not None
                found[name].append(recall)
    return found


def _paired(first: Sequence[Row], other: Sequence[Row], seed: int) -> dict[str, Any]:
    """Differences `other - first` over the questions of which neither has failed."""
    both = [(a, b) for a, b in zip(first, other, strict=True) if a.error is b.error is None]
    found: dict[str, Any] = {
        "workflow": other[0].workflow,
        "against": first[0].workflow,
        "n": len(both),
    }
    for name in PAIRED:
        values = [(MEASURES[name](a), MEASURES[name](b)) for a, b in both]
        whole = [(a, b) for a, b in values if a is not None and b is not None]
        interval = paired([a for a, _ in whole], [b for _, b in whole], seed)
        found[name] = None if interval is None else interval.plain()
    return found


def _hops(
    questions: Sequence[Question], table: Mapping[str, Sequence[Row]], seed: int
) -> list[dict[str, Any]]:
    found = []
    for hops in sorted({one.hops for one in questions if one.hops is not None}):
        for name, rows in table.items():
            of = [row for row, one in zip(rows, questions, strict=True) if one.hops == hops]
            failed = sum(row.error is not None for row in of)
            facts = {"hops": hops, "workflow": name, "n": len(of), "failed": failed}
            found.append({**facts, **_means(of, BY_HOPS, seed)})
    return found
