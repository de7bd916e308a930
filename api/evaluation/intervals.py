"""Bootstrap intervals of means, from a seed: the percentile method (Efron, 1979)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
BLOCK = 2**22
"""Numbers drawn at a time."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over `n` values and the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int

    def plain(self) -> dict[str, float | int]:
        """Plain JSON object."""
        return asdict(self)


def bootstrap(values: Sequence[float], seed: int) -> Interval | None:
    """The mean of the values and its interval, from 2,000 resamples; None without a value.

    One value gives an interval without width: nothing is known about its spread.
    """
    if not len(values):
        return None
    draw = np.random.default_rng(seed)
    array = np.asarray(values, dtype=np.float64)
    each = max(1, BLOCK // len(array))
    means = np.concatenate(
        [
            array[draw.integers(0, len(array), (min(each, RESAMPLES - done), len(array)))].mean(1)
            for done in range(0, RESAMPLES, each)
        ]
    )
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(array.mean()), float(low), float(high), len(array))


def paired(first: Sequence[float], other: Sequence[float], seed: int) -> Interval | None:
    """Mean of `other - first`, value by value, and its interval; the two are of one length."""
    return bootstrap([b - a for a, b in zip(first, other, strict=True)], seed)
