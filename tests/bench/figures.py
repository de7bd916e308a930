"""A measured figure beside its peer's, and the way two things are timed fairly."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One line of a benchmark; `ratio` above 1 means that we are better than the peer.

    `value` and `peer_value` are medians over `n` measurements, `ratio` is the median of the
    ratios of the pairs, `spread` the distance between the quartiles of those ratios (or of the
    values, where there is no peer). Peer fields are None where there is no peer to measure.
    """

    name: str
    value: float | None
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None
    spread: float | None = None
    n: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON object."""
        return asdict(self)


def pairs(
    ours: Callable[[], float], peer: Callable[[], float], n: int
) -> list[tuple[float, float]]:
    """Measure both `n` times, alternating who goes first, after one unmeasured pair."""
    ours(), peer()
    measured = []
    for turn in range(n):
        if turn % 2:
            theirs = peer()
            measured.append((ours(), theirs))
        else:
            measured.append((ours(), peer()))
    return measured


def against(
    name: str,
    unit: str,
    peer: str,
    measured: Sequence[tuple[float, float]],
    *,
    lower_is_better: bool = True,
) -> Figure:
    """The figure of paired measurements (ours, peer's)."""
    ratios = [theirs / own if lower_is_better else own / theirs for own, theirs in measured]
    return Figure(
        name,
        statistics.median(own for own, _ in measured),
        unit,
        peer,
        statistics.median(theirs for _, theirs in measured),
        statistics.median(ratios),
        _spread(ratios),
        len(measured),
    )


def alone(name: str, unit: str, values: Sequence[float], peer: str | None = None) -> Figure:
    """The figure of measurements without a peer's; `peer` names one that is not installed."""
    middle = statistics.median(values)
    return Figure(name, middle, unit, peer, spread=_spread(values), n=len(values))


def _spread(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4)
    return high - low
