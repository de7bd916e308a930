"""Finished evaluations of DRAG and IterDRAG as rows of the computation allocation model.

Source: Yue et al., arXiv 2410.04343, section 4. Ours: the questions of a dataset fall into three
even parts by the hash of their id, so that `i`, the fit and the judgement share none.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.allocation_rows import PARTS, STRATEGIES, AllocationError, Theta
from api.evaluation.contenders import Contender, read_contenders
from api.evaluation.manifest import NAME, read_order
from api.evaluation.results import ROWS, Row, read_rows
from api.evaluation.suites import open_suite

METRICS = {"em": "exact_match", "f1": "f1"}
Place = tuple[str, str, Theta]
"""Dataset, strategy and theta."""


@dataclass(frozen=True, slots=True)
class Found:
    """Rows as JSON objects, and configurations left out because a question did not fit in them."""

    rows: list[dict[str, Any]]
    left_out: dict[Place, str]


def allocation_rows(folders: Sequence[Path]) -> Found:
    """Rows of all runs of `drag` and `iter_drag` in the folders of evaluations.

    A dataset is a suite, or its questions of so many hops where it tells them. Scores are exact
    match (`em`) and token F1 (`f1`), lengths are input tokens of all calls of a question. A
    configuration in which a run failed has no row: a prompt that does not fit is never cut.

    Raises EvaluationInputError for a folder that is none, AllocationError where one lacks runs of
    its own questions, or two hold the same configuration of one dataset.
    """
    runs: dict[Place, dict[str, Row]] = {}
    for folder in folders:
        for place, asked in _runs(folder).items():
            if place in runs:
                raise AllocationError(
                    f"{folder}: {_told(place)} is in an earlier folder too; leave one out"
                )
            runs[place] = asked
    left_out = {
        place: row.error["message"]
        for place, asked in runs.items()
        for row in asked.values()
        if row.error is not None
    }
    kept = {place: asked for place, asked in runs.items() if place not in left_out}
    return Found(
        [line for place, asked in sorted(kept.items()) for line in _lines(place, asked)], left_out
    )


def parts(questions: Iterable[str]) -> dict[str, str]:
    """The part of each question: thirds of all, in the order of the hashes of their ids."""
    order = sorted(questions, key=lambda one: hashlib.sha256(one.encode()).hexdigest())
    return {one: PARTS[at % len(PARTS)] for at, one in enumerate(order)}


def _runs(folder: Path) -> dict[Place, dict[str, Row]]:
    order, manifest = read_order(folder / NAME)
    contenders = {
        one.label: one
        for one in read_contenders(order.workflows)
        if one.workflow.spec.name in STRATEGIES
    }
    if not contenders:
        raise AllocationError(
            f"{folder}: evaluates none of {', '.join(STRATEGIES)}; name them as in "
            "--workflow drag:k=1,demonstrations=0"
        )
    suite = open_suite(order.suite, None if order.docs is None else Path(order.docs))
    hops = {one.id: one.hops for one in suite.questions}
    asked = manifest["suite"]["questions"]
    rows, _ = read_rows(folder / ROWS)
    missing = [label for label in contenders for one in asked if (label, one) not in rows]
    if missing:
        raise AllocationError(
            f"{folder}: {len(missing)} runs are missing, the first of {missing[0]}; go on with "
            f"`{order.command(folder)}`"
        )
    name = suite.name.partition(":")[0]
    found: dict[Place, dict[str, Row]] = defaultdict(dict)
    for label, contender in contenders.items():
        strategy, theta = contender.workflow.spec.name, _theta(contender)
        for one in asked:
            dataset = f"{name}, {hops[one]} hops" if hops.get(one) else name
            found[dataset, strategy, theta][one] = rows[label, one]
    return found


def _theta(contender: Contender) -> Theta:
    inputs: Mapping[str, Any] = contender.inputs_for("?", None)
    return inputs["k"], inputs["demonstrations"], inputs.get("iterations", 1)


def _lines(place: Place, asked: Mapping[str, Row]) -> list[dict[str, Any]]:
    """A row for each question and metric."""
    dataset, strategy, (k, m, n) = place
    belongs = parts(asked)
    found = []
    for question, row in asked.items():
        assert row.usage is not None, "only a run that could not begin has none, and is left out"
        found += [
            {"dataset": dataset, "strategy": strategy, "metric": metric, "part": belongs[question]}
            | {"k": k, "m": m, "n": n, "score": getattr(row, score)}
            | {"length": row.usage["prompt_tokens"]}
            for metric, score in METRICS.items()
        ]
    return found


def _told(place: Place) -> str:
    dataset, strategy, (k, m, n) = place
    return f"{strategy} with k={k}, m={m}, n={n} on {dataset}"
