"""Many draws of the sampler at once, and whether they follow given probabilities."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch

from inference.native.sampling import draw_all, uniform

DRAWS = 200_000


@cache
def numbers() -> np.ndarray:
    """The sampler's numbers in [0, 1): half along the positions of one seed, half along seeds."""
    half = DRAWS // 2
    along = [uniform(17, position) for position in range(half)]
    across = [uniform(seed, 5) for seed in range(18, 18 + half)]
    return np.array(along + across)


def counts(probabilities: torch.Tensor) -> np.ndarray:
    """How often each token is drawn in DRAWS draws."""
    return np.bincount(draw_all(probabilities, numbers()), minlength=len(probabilities))


def chi_square(found: np.ndarray, probabilities: np.ndarray) -> tuple[float, float]:
    """The statistic, and a bound that it passes once in a million times.

    Tokens that are expected less than ten times are counted as one.
    """
    wanted = probabilities * found.sum()
    assert found[probabilities == 0].sum() == 0, "a token of no probability was drawn"
    rare = wanted < 10
    want = np.append(wanted[~rare], wanted[rare].sum())
    have = np.append(found[~rare], found[rare].sum())
    want, have = want[want > 0], have[want > 0]
    df = len(want) - 1
    # Wilson and Hilferty's normal approximation of the chi-square quantile at 4.75 sigma.
    bound = df * (1 - 2 / (9 * df) + 4.75 * math.sqrt(2 / (9 * df))) ** 3
    return float(((have - want) ** 2 / want).sum()), bound
