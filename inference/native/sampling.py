"""Choosing the next token: pure functions over one row of logits.

Shapes: `logits` and `probabilities` are [vocabulary], float32 or float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from inference.errors import BrokenLogits
from inference.requests import SamplingParams


def require_sound(logits: torch.Tensor) -> None:
    """Raise BrokenLogits unless the largest of each row of logits [..., vocabulary] is finite.

    A logit of -inf alone is a probability of zero; NaN, +inf and nothing but -inf are no
    distribution, and an argmax over them would pass for a token.
    """
    fine = logits.amax(dim=-1).isfinite()
    if bool(fine.all()):
        return
    row = logits[~fine][0] if logits.dim() > 1 else logits
    found = [
        f"{text} for {count} of {len(row)} tokens"
        for text, count in (
            ("NaN", int(row.isnan().sum())),
            ("+inf", int(row.isposinf().sum())),
            ("-inf", int(row.isneginf().sum())),
        )
        if count
    ]
    raise BrokenLogits(
        f"the model computed logits of {' and '.join(found)}, from which no token can be chosen; "
        "use dtype float32 if its numbers overflow, else fetch or convert the checkpoint again"
    )


def penalize_repetition(logits: torch.Tensor, seen: Sequence[int], penalty: float) -> torch.Tensor:
    """Divide positive and multiply negative logits of `seen` ids by `penalty`; float64 if any are.

    Source: Keskar et al. 2019 (CTRL), section 4.1; prompt and completion count as seen.
    """
    if penalty == 1.0 or not seen:
        return logits
    logits = logits.double()
    ids = torch.tensor(sorted(set(seen)), device=logits.device)
    rows = logits[ids]
    # An extreme penalty stays within the numbers; what is masked stays masked.
    largest = torch.finfo(logits.dtype).max
    changed = torch.where(rows < 0, rows * penalty, rows / penalty).clamp(-largest, largest)
    return logits.index_copy(0, ids, torch.where(rows.isneginf(), rows, changed))


def keep_top_k(logits: torch.Tensor, k: int | None) -> torch.Tensor:
    """Mask all but the `k` largest logits with -inf; ties with the k-th are kept."""
    if k is None or k >= logits.numel():
        return logits
    return logits.masked_fill(logits < torch.topk(logits, k).values[-1], -torch.inf)


def keep_top_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Keep the smallest set of most probable tokens whose mass reaches `p`.

    Equal logits rank by id. Source: Holtzman et al. 2020, nucleus sampling.
    """
    if p >= 1.0:
        return logits
    ranked, order = torch.sort(logits, descending=True, stable=True)
    mass = torch.softmax(ranked.double(), dim=0)
    before = torch.cumsum(mass, dim=0) - mass
    drop = torch.zeros_like(order, dtype=torch.bool).scatter(0, order, before >= p)
    return logits.masked_fill(drop, -torch.inf)


def keep_min_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Keep tokens at least `p` times as probable as the most probable one.

    Source: Nguyen et al. 2024, min-p sampling.
    """
    if p <= 0.0:
        return logits
    ratio = torch.exp((logits - logits.max()).double())
    return logits.masked_fill(ratio < p, -torch.inf)


def process(logits: torch.Tensor, params: SamplingParams, seen: Sequence[int] = ()) -> torch.Tensor:
    """Logits [vocabulary] after penalty, temperature and filters; greedy applies the penalty only.

    Order: repetition penalty, temperature, top-k, top-p, min-p.
    """
    logits = penalize_repetition(logits.float(), seen, params.repetition_penalty)
    if params.temperature == 0.0:
        return logits
    # Shifted first: a tiny temperature then gives -inf for the losers, never inf - inf.
    logits = (logits - logits.max()).double() / params.temperature
    return keep_min_p(keep_top_p(keep_top_k(logits, params.top_k), params.top_p), params.min_p)


def distribution(
    logits: torch.Tensor, params: SamplingParams, seen: Sequence[int] = ()
) -> torch.Tensor:
    """Float64 probabilities [vocabulary] the next token is drawn from; temperature must be > 0."""
    return torch.softmax(process(logits, params, seen), dim=0)


def most_probable(logits: torch.Tensor) -> int:
    """Index of the largest of logits [vocabulary], the first among equals, or of the first NaN."""
    if logits.device.type == "cpu":
        return int(logits.numpy().argmax())  # a tenth of the time that torch takes
    return int(logits.argmax())


def uniform(seed: int, position: int, lane: int = 0) -> float:
    """A number in [0, 1) that depends on (seed, position, lane) only: one block of Philox 4x64."""
    counter = np.array([0, position, lane, 0], dtype=np.uint64)
    return float(np.random.Generator(np.random.Philox(counter=counter, key=seed)).random())


def draw(probabilities: torch.Tensor, number: float) -> int:
    """Inverse of the cumulative distribution (in id order) at `number` in [0, 1)."""
    return int(draw_all(probabilities, np.array([number]))[0])


def draw_all(probabilities: torch.Tensor, numbers: NDArray[np.float64]) -> NDArray[np.intp]:
    """The token id for each of `numbers` [draws], as `draw` gives it."""
    cumulative = np.cumsum(probabilities.double().cpu().numpy())
    total = cumulative[-1]
    # The first index above the target has positive mass; a target that rounded up to the
    # total belongs to the last token with mass, which is where the total is first reached.
    last = np.searchsorted(cumulative, total, side="left")
    found: NDArray[np.intp] = np.searchsorted(cumulative, numbers * total, side="right")
    return found.clip(max=last)


def choose(
    logits: torch.Tensor, params: SamplingParams, seed: int, position: int, seen: Sequence[int]
) -> int:
    """The next token id; `position` is the index of the token in prompt plus completion.

    Raises BrokenLogits where the logits are no distribution.
    """
    if params.temperature == 0.0:
        processed = process(logits, params, seen)
        token = most_probable(processed)
        if not math.isfinite(processed[token]):
            require_sound(logits)
        return token
    require_sound(logits)
    return draw(distribution(logits, params, seen), uniform(seed, position))
