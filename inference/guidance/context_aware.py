"""Context-aware decoding: what the documents add to what the model says anyway."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference.errors import InferenceInputError
from inference.guidance.base import Context

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class ContextAware:
    """(1 + weight) * logits with the context - weight * logits without it.

    The request is the one with the documents, `without` the same question alone. Source: Shi et
    al. 2023, "Trusting Your Evidence", arXiv 2305.14739, section 2 (from memory of the paper, not
    verified against it).
    """

    without: Context
    weight: float = 0.5

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise InferenceInputError(
                f"context_aware weight={self.weight!r} must be finite and >= 0 (0 means none)"
            )

    @property
    def contexts(self) -> tuple[Context, ...]:
        """The question alone."""
        return (self.without,)

    def combine(self, logits: Sequence[Tensor]) -> Tensor:
        """Equation 2, before the softmax."""
        with_it, without = logits
        return (1 + self.weight) * with_it - self.weight * without
