"""Idealized runtime: what a generation costs on this machine without its noise.

Source: Narayanan et al., "Cheaply Estimating Inference Efficiency Metrics for Autoregressive
Transformer Models", arXiv 2305.02440: T(p, o) = F(p) + g * (o - 1) for p prompt and o >= 1 output
tokens, and T(p, 0) = F(p), with F piecewise linear. The released estimator scales F down from the
next larger profiled prompt, which splits the fixed cost of a forward as if it were a cost per
token; here F is interpolated between its neighbours, constant below the shortest profiled prompt,
and scaled beyond the longest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from inference.errors import InferenceInputError

Grid = Mapping[tuple[int, int], float]
"""(prompt tokens, output tokens) -> measured seconds."""


@dataclass(frozen=True)
class IdealizedRuntime:
    """A fitted model: F at the profiled prompt lengths, and g, both in seconds.

    `r_squared` and the squared errors (seconds squared) are those of the regression for g.
    """

    prefill: Mapping[int, float]
    per_token: float
    r_squared: float
    mean_squared_error: float
    max_squared_error: float

    @classmethod
    def fit(cls, measured: Grid) -> IdealizedRuntime:
        """Fit F and g to a grid; every prompt length must be there with one output token.

        g is the slope of one regression without intercept of T(p, o) - F(p) on o - 1 over all p.
        """
        lengths = sorted({prompt for prompt, _ in measured})
        for length in lengths:
            if (length, 1) not in measured:
                raise InferenceInputError(
                    f"prompt length {length} was not measured with 1 output token; measure it"
                )
        prefill = {length: measured[length, 1] for length in lengths}
        rest = [(p, o, seconds) for (p, o), seconds in measured.items() if o > 1]
        if not rest:
            raise InferenceInputError("no length was measured with more than 1 output token")
        steps = np.array([o - 1 for _, o, _ in rest], dtype=np.float64)
        extra = np.array([seconds - prefill[p] for p, _, seconds in rest], dtype=np.float64)
        slope = float(steps @ extra / (steps @ steps))
        squared = (extra - slope * steps) ** 2
        return cls(
            prefill,
            slope,
            r_squared(extra, slope * steps),
            float(squared.mean()),
            float(squared.max()),
        )

    def seconds(self, prompt_tokens: int, output_tokens: int) -> float:
        """Predicted seconds of a generation."""
        if prompt_tokens < 1 or output_tokens < 0:
            raise InferenceInputError(
                f"{prompt_tokens} prompt and {output_tokens} output tokens cannot be predicted; "
                "give at least 1 and 0"
            )
        lengths = sorted(self.prefill)
        first = float(np.interp(prompt_tokens, lengths, [self.prefill[n] for n in lengths]))
        first *= max(prompt_tokens / lengths[-1], 1.0)
        return first + self.per_token * max(output_tokens - 1, 0)


@dataclass(frozen=True)
class HeldOut:
    """How well a fit to half of the prompt lengths predicts the other half.

    Errors are |predicted - measured| / measured; `r_squared` is that of the predicted seconds.
    """

    fitted: tuple[int, ...]
    predicted: tuple[int, ...]
    median_error: float
    max_error: float
    r_squared: float


def hold_out(measured: Grid) -> HeldOut:
    """Fit every other prompt length, the shortest and mostly the longest among them; predict."""
    lengths = sorted({prompt for prompt, _ in measured})
    if len(lengths) < 3:
        raise InferenceInputError(
            f"{len(lengths)} prompt lengths leave none between two others to predict; "
            "measure at least 3"
        )
    fitted, predicted = lengths[::2], lengths[1::2]
    model = IdealizedRuntime.fit({at: s for at, s in measured.items() if at[0] in fitted})
    rest = [(at, s) for at, s in measured.items() if at[0] in predicted]
    found = np.array([model.seconds(*at) for at, _ in rest], dtype=np.float64)
    wanted = np.array([seconds for _, seconds in rest], dtype=np.float64)
    errors = np.abs(found - wanted) / wanted
    return HeldOut(
        tuple(fitted),
        tuple(predicted),
        float(np.median(errors)),
        float(errors.max()),
        r_squared(wanted, found),
    )


def r_squared(measured: np.ndarray, predicted: np.ndarray) -> float:
    """Coefficient of determination: the share of the variance that a prediction explains."""
    squared = float(((measured - predicted) ** 2).sum())
    total = float(((measured - measured.mean()) ** 2).sum())
    return 1 - squared / total if total else float(not squared)
