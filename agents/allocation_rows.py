"""What the computation allocation model is fitted to: evaluation rows, traits of tasks, lengths.

Source: Yue et al., arXiv 2410.04343, section 4 and appendix F. A row is what one or more questions
scored, and the input tokens they took, under one theta = (k, m, n).

Deviations and readings:
- `i` is a difference of plain scores, not of z-scores, as mean and deviation of a new task are
  unknown. Not verified. It is read from rows of the part `dev` only.
- The length model is ours; the paper counts tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.errors import InferenceInputError

Theta = tuple[int, int, int]
"""Documents k, demonstrations m, iterations n."""
Floats = NDArray[np.float64]

STRATEGIES = ("drag", "iter_drag")
PARTS = ("dev", "a", "b")
"""Slices of a dataset: `i` is measured on dev, theta is fitted and chosen on a, scored on b."""


class AllocationError(InferenceInputError):
    """Rows that cannot be used, or a budget that nothing fits."""

    code = "bad_allocation"


@dataclass(frozen=True, slots=True)
class Row:
    """Mean score (None where only lengths were measured) and largest length of `questions`."""

    dataset: str
    strategy: str
    metric: str
    part: str
    theta: Theta
    score: float | None
    length: int
    questions: int = 1


@dataclass(frozen=True, slots=True)
class Cell:
    """All rows of one theta: mean score over questions, largest length in tokens."""

    score: float | None
    length: int
    questions: int


Key = tuple[str, str, str, str]
"""Dataset, strategy, metric, part."""
Cells = dict[Key, dict[Theta, Cell]]


def read_rows(path: Path) -> list[Row]:
    """Rows of a JSONL file; raises AllocationError naming the line.

    Keys: dataset, strategy (drag or iter_drag), metric, part (dev, a or b), k, m, n, score (null
    where only lengths count), length (input tokens of all calls; of several questions the
    largest), and questions (default 1).
    """
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AllocationError(f"{path} cannot be read: {error}") from None
    for number, text in enumerate(lines, start=1):
        if text.strip():
            try:
                rows.append(read_row(json.loads(text)))
            except (ValueError, RecursionError, AllocationError) as error:
                raise AllocationError(f"{path}:{number}: {error}") from None
    return rows


def read_row(value: Any) -> Row:
    """One row from plain values."""
    if not isinstance(value, Mapping):
        raise AllocationError("a row is a JSON object")
    known = {"dataset", "strategy", "metric", "part", "k", "m", "n", "score", "length", "questions"}
    missing = sorted(known - {"questions"} - value.keys())
    if missing:
        raise AllocationError(f"the row lacks {', '.join(missing)}")
    for name, allowed in (("strategy", STRATEGIES), ("part", PARTS)):
        if value[name] not in allowed:
            raise AllocationError(f"{name} {value[name]!r} is none of {', '.join(allowed)}")
    least = {"k": 0, "m": 0, "n": 1, "length": 1, "questions": 1}
    numbers = {name: value.get(name, 1) for name in least}
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < least[name]:
            raise AllocationError(
                f"{name} must be an integer of at least {least[name]} (found: {number!r})"
            )
    score = value["score"]
    fine = isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score)
    if score is not None and not fine:
        raise AllocationError(f"score must be a number or null (found: {score!r})")
    if value["strategy"] == "drag" and numbers["n"] != 1:
        raise AllocationError(f"DRAG has n=1 (found: {numbers['n']})")
    return Row(
        str(value["dataset"]),
        value["strategy"],
        str(value["metric"]),
        value["part"],
        (numbers["k"], numbers["m"], numbers["n"]),
        None if score is None else float(score),
        numbers["length"],
        numbers["questions"],
    )


def cells(rows: Iterable[Row]) -> Cells:
    """Rows of the same theta as one: scores averaged by questions, the largest length."""
    found: Cells = {}
    scored: dict[tuple[Key, Theta], int] = {}
    for row in rows:
        key = (row.dataset, row.strategy, row.metric, row.part)
        here = found.setdefault(key, {})
        old = here.get(row.theta, Cell(None, 0, 0))
        score, before = old.score, scored.get((key, row.theta), 0)
        if row.score is not None:
            total = (score or 0.0) * before + row.score * row.questions
            scored[key, row.theta] = before + row.questions
            score = total / (before + row.questions)
        questions = old.questions + row.questions
        here[row.theta] = Cell(score, max(old.length, row.length), questions)
    return found


BASE: tuple[Theta, Theta, Theta] = ((0, 0, 1), (1, 0, 1), (0, 1, 1))
"""The three configurations whose scores make a task's `i`."""


def traits(found: Cells, dataset: str, strategy: str, metric: str) -> tuple[float, float]:
    """(i_doc, i_shot) of a task: what a document and what a demonstration adds on the dev slice."""
    dev = found.get((dataset, strategy, metric, "dev"), {})
    scores = []
    for theta in BASE:
        score = dev[theta].score if theta in dev else None
        if score is None:
            k, m, n = theta
            raise AllocationError(
                f"no scored dev row of dataset {dataset!r}, strategy {strategy!r}, metric "
                f"{metric!r} at k={k}, m={m}, n={n}; measure the three base configurations "
                "(0,0,1), (1,0,1) and (0,1,1) on questions kept for this"
            )
        scores.append(score)
    return scores[1] - scores[0], scores[2] - scores[0]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Input tokens of the longest query as a function of theta, for one dataset and strategy.

    Least squares over measured maxima, then scaled by the largest ratio of a measured maximum to
    its prediction, so that nothing that was measured is predicted shorter than it was.
    """

    strategy: str
    coefficients: tuple[float, ...]
    factor: float

    def __call__(self, theta: Theta) -> float:
        """Predicted largest length in tokens."""
        terms = length_terms(self.strategy, theta)
        return self.factor * float(np.dot(terms, self.coefficients))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON object."""
        return {"coefficients": list(self.coefficients), "factor": self.factor}


def length_terms(strategy: str, theta: Theta) -> list[float]:
    """What the length is linear in.

    DRAG: I + (m+1)(q + k d). IterDRAG sums its 2n+1 calls: instruction and question each time,
    m demonstrations of k documents each time, a block that grows by k documents before each
    intermediate answer, and the lines so far.
    """
    k, m, n = theta
    if strategy == "drag":
        return [1, m + 1, (m + 1) * k]
    calls = 2 * n + 1
    blocks = n * n + 3 * n + 1
    return [calls, calls * m, calls * m * k, blocks * k, n * calls]


def fit_lengths(found: Cells, dataset: str, strategy: str) -> Lengths:
    """The length model of a dataset from its rows of the parts dev and a, of any metric.

    Raises AllocationError where they do not determine it.
    """
    longest: dict[Theta, int] = {}
    for (name, used, _, part), measured in found.items():
        if (name, used) == (dataset, strategy) and part in ("dev", "a"):
            for theta, cell in measured.items():
                longest[theta] = max(longest.get(theta, 0), cell.length)
    thetas = sorted(longest)
    terms = np.array([length_terms(strategy, theta) for theta in thetas], dtype=float)
    size = len(length_terms(strategy, BASE[0]))
    if len(thetas) < size or np.linalg.matrix_rank(terms) < size:
        raise AllocationError(
            f"the lengths of dataset {dataset!r}, strategy {strategy!r} are measured at "
            f"{len(thetas)} configurations, which do not determine their {size} coefficients; add "
            "rows with other k, m and n (their score may be null)"
        )
    measured_lengths = np.array([longest[theta] for theta in thetas], dtype=float)
    # Relative errors count alike, or the longest configurations would decide alone.
    weights = 1 / measured_lengths
    solution = np.linalg.lstsq(terms * weights[:, None], np.ones(len(thetas)), rcond=None)[0]
    predicted = terms @ solution
    if predicted.min() <= 0:
        raise AllocationError(
            f"the lengths of dataset {dataset!r}, strategy {strategy!r} follow no prompt that "
            "grows with k, m and n; check the rows"
        )
    factor = max(1.0, float((measured_lengths / predicted).max()))
    return Lengths(strategy, tuple(float(value) for value in solution), factor)


def groups(found: Cells, part: str, metric: str | None = None) -> Iterator[tuple[str, str]]:
    """(dataset, metric) pairs that have scored rows of a part, in order."""
    pairs = {
        (dataset, kind)
        for (dataset, _, kind, where), measured in found.items()
        if where == part
        and metric in (None, kind)
        and any(c.score is not None for c in measured.values())
    }
    yield from sorted(pairs)


def z_scores(values: Sequence[float], place: str) -> Floats:
    """Values with mean 0 and deviation 1; raises AllocationError where all are equal."""
    array = np.asarray(values, dtype=float)
    deviation = array.std()
    if len(array) < 2 or deviation < 1e-12:
        raise AllocationError(
            f"{place}: the scores of all configurations are equal, so there is nothing to allocate "
            "for; leave the dataset out, or measure configurations that differ"
        )
    scores: Floats = (array - array.mean()) / deviation
    return scores
