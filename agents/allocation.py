"""The computation allocation model: which k, m and n to spend a budget of input tokens on.

Source: Yue et al., "Inference Scaling for Long-Context Retrieval Augmented Generation", arXiv
2410.04343, section 4: sigma^-1(P(theta)) = (a + b*i)^T log(theta + 0.01) + c, with a and b of the
model and i of the task, ordinary least squares, P as z-scores per (dataset, metric).

Readings and deviations:
- The paper does not say how sigma and the regression were interleaved. Here: regress with
  the identity, fit the 4-parameter logistic between prediction and truth, clip z into its open
  range by 1e-3, invert, regress again.
- The logistic is fitted by a grid over slope and shift that closes in on the best cell; scale and
  floor follow in closed form.
- Rows of both strategies are regressed together, each with the `i` of its own strategy.
- No row is dropped as an outlier; the paper dropped some for its R^2.
- Where rows do not determine a coefficient (n is always 1, or one dataset), the solution of least
  norm is taken, and `rank` below 6 says so.

Not verified: the range of slopes and shifts that the paper allowed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from agents.allocation_rows import (
    AllocationError,
    Cells,
    Floats,
    Lengths,
    Theta,
    fit_lengths,
    groups,
    traits,
    z_scores,
)

EPSILON = 0.01
"""Added to theta before the logarithm; part of the method."""
MARGIN = 1e-3
"""How far inside the sigmoid's range z is clipped."""


@dataclass(frozen=True, slots=True)
class Sigmoid:
    """scale / (1 + exp(-slope (x + shift))) + floor."""

    scale: float
    slope: float
    shift: float
    floor: float

    def __call__(self, x: Floats) -> Floats:
        """Values in (floor, floor + scale)."""
        # The tanh form does not overflow.
        half: Floats = np.tanh(self.slope * (x + self.shift) / 2)
        return self.scale * (1 + half) / 2 + self.floor

    def clip(self, z: Floats) -> Floats:
        """z inside the open range."""
        margin = min(MARGIN, self.scale / 4)
        inside: Floats = np.clip(z, self.floor + margin, self.floor + self.scale - margin)
        return inside

    def inverse(self, z: Floats) -> Floats:
        """x of a z, clipped into the range first."""
        found: Floats = -np.log(self.scale / (self.clip(z) - self.floor) - 1)
        return found / self.slope - self.shift


PAPER = Sigmoid(3.30, 1.81, 0.46, -2.18)
"""As reported for Gemini 1.5 Flash; its ceiling is z = 1.12."""


@dataclass(frozen=True, slots=True)
class Regression:
    """Six numbers and a sigmoid (None: the identity), and how they fit the rows they come from.

    `r2` and `mse` are in-sample and in z-scores; `clipped` rows lay outside of the sigmoid's range.
    """

    a: tuple[float, float, float]
    b: tuple[float, float]
    c: float
    sigmoid: Sigmoid | None
    r2: float
    mse: float
    rows: int
    rank: int
    clipped: int

    def linear(self, theta: Sequence[Theta], i: Sequence[tuple[float, float]]) -> Floats:
        """The part before the sigmoid, whose order is that of the predictions."""
        values: Floats = design(theta, i) @ np.array([*self.a, *self.b, self.c])
        return values

    def predict(self, theta: Sequence[Theta], i: Sequence[tuple[float, float]]) -> Floats:
        """Predicted z-scores."""
        values = self.linear(theta, i)
        return values if self.sigmoid is None else self.sigmoid(values)


def design(theta: Sequence[Theta], i: Sequence[tuple[float, float]]) -> Floats:
    """Rows ln(k+e), ln(m+e), ln(n+e), i_doc ln(k+e), i_shot ln(m+e), 1; shape (N, 6)."""
    logs = np.log(np.asarray(theta, dtype=float).reshape(-1, 3) + EPSILON)
    task = np.asarray(i, dtype=float).reshape(-1, 2)
    return np.column_stack([logs, logs[:, :2] * task, np.ones(len(logs))])


def regress(
    theta: Sequence[Theta],
    i: Sequence[tuple[float, float]],
    z: Sequence[float] | Floats,
    *,
    sigmoid: Sigmoid | Literal["fitted", "identity"] = "fitted",
    by_task: bool = True,
) -> Regression:
    """Fit the six numbers to z-scores; without `by_task` b is 0 (the ablation of the paper)."""
    rows, target = design(theta, i), np.asarray(z, dtype=float)
    if len(rows) < 6:
        raise AllocationError(f"{len(rows)} rows cannot determine six numbers; measure more")
    if not by_task:
        rows[:, 3:5] = 0
    beta = np.linalg.lstsq(rows, target, rcond=None)[0]
    shape = None if isinstance(sigmoid, str) else sigmoid
    clipped = 0
    if sigmoid == "fitted":
        shape = fit_sigmoid(rows @ beta, target)
    if shape is not None:
        clipped = int(np.count_nonzero(shape.clip(target) != target))
        beta = np.linalg.lstsq(rows, shape.inverse(target), rcond=None)[0]
    values = rows @ beta
    errors = (values if shape is None else shape(values)) - target
    mse, variance = float(np.mean(errors**2)), float(np.var(target))
    a1, a2, a3, b1, b2, c = map(float, beta)
    rank = int(np.linalg.matrix_rank(rows))
    r2 = 1 - mse / variance if variance > 0 else float("nan")
    return Regression((a1, a2, a3), (b1, b2), c, shape, r2, mse, len(rows), rank, clipped)


def fit_sigmoid(x: Floats, z: Floats) -> Sigmoid:
    """The increasing 4-parameter logistic nearest to z(x) in least squares.

    Slopes lie between 0.05 and 50 over the deviation of x, shifts within three of its ranges.
    """
    spread = float(x.std())
    if spread < 1e-12:
        raise AllocationError("the rows predict one value for all; measure other configurations")
    centre, reach = float(x.mean()), 3 * float(np.ptp(x))
    middle = np.array([0.5 * (np.log(0.05) + np.log(50)), 0.0])
    width = np.array([0.5 * (np.log(50) - np.log(0.05)), reach])
    low, high = middle - width, middle + width
    best, least = np.array([0.0, 0.0]), np.inf
    steps = np.linspace(-1, 1, 21)
    for _ in range(60):
        u, v = np.meshgrid(middle[0] + width[0] * steps, middle[1] + width[1] * steps)
        u, v = np.clip(u.ravel(), low[0], high[0]), np.clip(v.ravel(), low[1], high[1])
        slopes = np.exp(u) / spread
        shapes = (1 + np.tanh(slopes[:, None] * (x - centre + v[:, None]) / 2)) / 2
        deviations = shapes - shapes.mean(axis=1, keepdims=True)
        power = (deviations**2).sum(axis=1)
        scales = np.divide(deviations @ z, power, out=np.zeros_like(power), where=power > 1e-9)
        errors = ((z - z.mean() - scales[:, None] * deviations) ** 2).sum(axis=1)
        errors[scales <= 0] = np.inf
        place = int(errors.argmin())
        if errors[place] <= least:
            best, least = np.array([u[place], v[place]]), float(errors[place])
        middle, width = best, width * 0.7
    slope, shift = float(np.exp(best[0]) / spread), float(best[1] - centre)
    unit = Sigmoid(1.0, slope, shift, 0.0)(x)
    scale = float(np.dot(unit - unit.mean(), z) / ((unit - unit.mean()) ** 2).sum())
    if not scale > 0:
        raise AllocationError("no increasing curve fits the rows; check their scores")
    return Sigmoid(scale, slope, shift, float(z.mean() - scale * unit.mean()))


@dataclass(frozen=True, slots=True)
class Task:
    """What is measured of a dataset under one strategy and metric: `i`, and its lengths."""

    strategy: str
    i: tuple[float, float]
    lengths: Lengths


@dataclass(frozen=True, slots=True)
class Model:
    """A fitted regression, and per strategy the values of k, m and n it was fitted on."""

    metric: str
    regression: Regression
    grid: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
    datasets: tuple[str, ...]

    def thetas(self, strategy: str) -> list[Theta]:
        """The grid of a strategy; nothing beyond what was fitted."""
        if strategy not in self.grid:
            raise AllocationError(
                f"the model was fitted without rows of {strategy!r}; it knows "
                f"{', '.join(sorted(self.grid))}"
            )
        ks, ms, ns = self.grid[strategy]
        return [(k, m, n) for k in ks for m in ms for n in ns]

    def to_json(self) -> str:
        """JSON text; `from_json` reads it back exactly."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Model:
        """The model; raises AllocationError where the text is none."""
        try:
            value = json.loads(text)
            told = value["regression"]
            shape = None if told["sigmoid"] is None else Sigmoid(**told["sigmoid"])
            a, b = tuple(map(float, told["a"])), tuple(map(float, told["b"]))
            if (len(a), len(b)) != (3, 2):
                raise ValueError("a has three numbers and b two")
            numbers = {**told, "a": a, "b": b, "sigmoid": shape}
            grid = {
                str(name): tuple(tuple(int(one) for one in axis) for axis in axes)
                for name, axes in value["grid"].items()
            }
            datasets = tuple(map(str, value["datasets"]))
            return cls(str(value["metric"]), Regression(**numbers), grid, datasets)  # type: ignore[arg-type]
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise AllocationError(
                f"this is no allocation model ({type(error).__name__}: {error}); make one with "
                "`ragwright allocate fit`"
            ) from None


def fit(found: Cells, metric: str, *, without: str | None = None, part: str = "a") -> Model:
    """Fit the model to all datasets of a part but `without`; `i` comes from their dev rows."""
    theta: list[Theta] = []
    i: list[tuple[float, float]] = []
    z: list[Floats] = []
    used: dict[str, set[Theta]] = {}
    names = [dataset for dataset, _ in groups(found, part, metric) if dataset != without]
    for dataset in names:
        scores: list[float] = []
        for (name, strategy, kind, where), measured in sorted(found.items()):
            if (name, kind, where) != (dataset, metric, part):
                continue
            scored = {t: c.score for t, c in measured.items() if c.score is not None}
            if not scored:
                continue
            theta += scored
            i += [traits(found, dataset, strategy, metric)] * len(scored)
            scores += scored.values()
            used.setdefault(strategy, set()).update(scored)
        z.append(z_scores(scores, f"dataset {dataset!r}, metric {metric!r}"))
    if not z:
        raise AllocationError(f"no scored rows of the part {part!r} for metric {metric!r}")
    grid = {
        strategy: tuple(tuple(sorted({each[axis] for each in seen})) for axis in range(3))
        for strategy, seen in sorted(used.items())
    }
    return Model(metric, regress(theta, i, np.concatenate(z)), grid, tuple(names))  # type: ignore[arg-type]


def tasks(found: Cells, dataset: str, metric: str, strategies: Iterable[str]) -> list[Task]:
    """A dataset's `i` and lengths for each strategy that has dev rows; raises AllocationError."""
    kept = [name for name in strategies if (dataset, name, metric, "dev") in found]
    if not kept:
        raise AllocationError(f"no dev rows of dataset {dataset!r} for metric {metric!r}")
    return [
        Task(s, traits(found, dataset, s, metric), fit_lengths(found, dataset, s)) for s in kept
    ]


@dataclass(frozen=True, slots=True)
class Choice:
    """A strategy and its theta, the predicted z-score, and the predicted largest length."""

    strategy: str
    k: int
    m: int
    n: int
    z: float
    length: float

    @property
    def theta(self) -> Theta:
        """k, m, n."""
        return self.k, self.m, self.n


def choose(
    model: Model,
    given: Sequence[Task],
    budget: int,
    among: Mapping[str, Iterable[Theta]] | None = None,
) -> Choice:
    """The best predicted theta whose longest query is predicted to fit `budget` input tokens.

    `among` replaces the model's grid per strategy. Equal predictions go to the shorter one. Raises
    AllocationError where nothing fits.
    """
    found: list[tuple[float, float, Choice]] = []
    shortest = float("inf")
    for task in given:
        allowed = model.thetas(task.strategy) if among is None else among.get(task.strategy, ())
        thetas = sorted(set(allowed))
        lengths = [task.lengths(theta) for theta in thetas]
        shortest = min([shortest, *lengths])
        fitting = [(t, size) for t, size in zip(thetas, lengths, strict=True) if size <= budget]
        if not fitting:
            continue
        i = [task.i] * len(fitting)
        linear = model.regression.linear([t for t, _ in fitting], i)
        z = model.regression.predict([t for t, _ in fitting], i)
        for (theta, size), order, value in zip(fitting, linear, z, strict=True):
            found.append((float(order), -size, Choice(task.strategy, *theta, float(value), size)))
    if not found:
        raise AllocationError(
            f"no configuration is predicted to fit a budget of {budget} input tokens; the shortest "
            f"takes {shortest:.0f}"
        )
    return max(found, key=lambda each: each[:2])[2]
