"""Idealized runtime: what a generation costs on this machine without its noise.

Source: Narayanan et al., "Cheaply Estimating Inference Efficiency Metrics for Autoregressive
Transformer Models", arXiv 2305.02440: T(p, o) = F(p) + g * (o - 1) for p prompt and o >= 1 output
tokens, and T(p, 0) = F(p). The released estimator scales F linearly from the next larger profiled
prompt, which under-estimates prompts much shorter than that; so does this one.
"""

from __future__ import annotations

from bisect import bisect_left
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
        total = float(((extra - extra.mean()) ** 2).sum())
        return cls(
            prefill,
            slope,
            1 - float(squared.sum()) / total if total else float(not squared.any()),
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
        bucket = lengths[min(bisect_left(lengths, prompt_tokens), len(lengths) - 1)]
        first = self.prefill[bucket] * prompt_tokens / bucket
        return first + self.per_token * max(output_tokens - 1, 0)
