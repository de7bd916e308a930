"""Leave-one-dataset-out: what a model fitted on other datasets chooses, and what that is worth.

Source: Yue et al., arXiv 2410.04343, section 4.3. Ours, against flattery: theta is fitted and
chosen on half a of the questions and scored on half b; the best of half a (`oracle`) is scored on b
too. `ceiling` is the best of half b itself, which no choice can know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from agents.allocation import Choice, Task, choose, fit, tasks
from agents.allocation_rows import AllocationError, Cells, Theta, groups, z_scores

Place = tuple[str, Theta]
"""A strategy and its theta."""


@dataclass(frozen=True, slots=True)
class Pick:
    """A configuration with what it scored on half b, and the longest query there."""

    strategy: str
    theta: Theta
    score: float
    length: int
    over_budget: bool


@dataclass(frozen=True, slots=True)
class Trial:
    """One held-out dataset under one budget; without a configuration that fits, all are None.

    `baseline` has the best mean z-score on the other datasets. `regret` is the score of the oracle
    less that of the choice; it may be negative, as both are made without half b.
    """

    dataset: str
    budget: int
    chosen: Pick | None
    baseline: Pick | None
    oracle: Pick | None
    ceiling: float | None
    regret: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON object."""
        return asdict(self)


def leave_one_out(found: Cells, metric: str, budgets: Sequence[int]) -> list[Trial]:
    """A trial for every dataset and budget; raises AllocationError below two datasets."""
    names = [dataset for dataset, _ in groups(found, "a", metric)]
    if len(names) < 2:
        raise AllocationError(f"{len(names)} dataset(s) with rows of part 'a'; two are needed")
    trials = []
    for held in names:
        model = fit(found, metric, without=held)
        strategies = [s for s in model.grid if (held, s, metric, "b") in found]
        given = tasks(found, held, metric, strategies)
        measured = _both(found, held, metric, {task.strategy for task in given})
        order = _ranked(found, metric, [name for name in names if name != held])
        for budget in budgets:
            among: dict[str, list[Theta]] = {}
            for strategy, theta in measured:
                among.setdefault(strategy, []).append(theta)
            try:
                chosen = choose(model, given, budget, among)
            except AllocationError:
                trials.append(Trial(held, budget, None, None, None, None, None))
                continue
            trials.append(_trial(found, metric, held, budget, given, measured, order, chosen))
    return trials


def _trial(
    found: Cells,
    metric: str,
    held: str,
    budget: int,
    given: Sequence[Task],
    measured: dict[Place, tuple[float, float, int]],
    order: Sequence[Place],
    chosen: Choice,
) -> Trial:
    lengths = {task.strategy: task.lengths for task in given}
    fitting = [place for place in measured if lengths[place[0]](place[1]) <= budget]
    oracle = max(fitting, key=lambda place: measured[place][0])
    baseline = next((place for place in order if place in fitting), None)

    def pick(place: Place) -> Pick:
        _, score, length = measured[place]
        return Pick(*place, score, length, length > budget)

    best, made = pick(oracle), pick((chosen.strategy, chosen.theta))
    ceiling = max(measured[place][1] for place in fitting)
    return Trial(
        held,
        budget,
        made,
        None if baseline is None else pick(baseline),
        best,
        ceiling,
        best.score - made.score,
    )


def _both(
    found: Cells, dataset: str, metric: str, strategies: set[str]
) -> dict[Place, tuple[float, float, int]]:
    """Configurations scored on both halves: score on a, score on b, longest query on b."""
    places: dict[Place, tuple[float, float, int]] = {}
    for strategy in sorted(strategies):
        first = found.get((dataset, strategy, metric, "a"), {})
        second = found.get((dataset, strategy, metric, "b"), {})
        for theta in sorted(first.keys() & second.keys()):
            a, b = first[theta].score, second[theta].score
            if a is not None and b is not None:
                places[strategy, theta] = (a, b, second[theta].length)
    if not places:
        raise AllocationError(f"no configuration of dataset {dataset!r} is scored on a and on b")
    return places


def _ranked(found: Cells, metric: str, names: Sequence[str]) -> list[Place]:
    """Configurations measured on all of these datasets, by mean z-score on half a, best first."""
    totals: dict[Place, list[float]] = {}
    for dataset in names:
        scored = [
            ((strategy, theta), cell.score)
            for (name, strategy, kind, part), cells in sorted(found.items())
            if (name, kind, part) == (dataset, metric, "a")
            for theta, cell in cells.items()
            if cell.score is not None
        ]
        z = z_scores([score for _, score in scored], f"dataset {dataset!r}")
        for (place, _), value in zip(scored, z, strict=True):
            totals.setdefault(place, []).append(float(value))
    common = {place: sum(zs) for place, zs in totals.items() if len(zs) == len(names)}
    return sorted(common, key=lambda place: -common[place])
