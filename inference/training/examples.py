"""What a model is trained on: token ids, and which of them count."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from inference.errors import InferenceInputError

IGNORED = -100
"""Label of a token that carries no loss, as transformers and torch have it."""


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids and, in the same places, their labels: the id itself or IGNORED."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.labels):
            raise InferenceInputError(
                f"an example has {len(self.ids)} ids and {len(self.labels)} labels; "
                "give one label per id"
            )
        if all(label == IGNORED for label in self.labels[1:]):
            raise InferenceInputError(
                f"an example of {len(self.ids)} tokens has none to learn; give at least one "
                "labelled token with a token before it"
            )

    def check(self, vocabulary: int, context: int) -> None:
        """Raise InferenceInputError unless a model of this vocabulary and context can read it."""
        if len(self.ids) > context:
            raise InferenceInputError(
                f"an example has {len(self.ids)} tokens and the model's context {context}; cut it"
            )
        if not 0 <= min(self.ids) <= max(self.ids) < vocabulary:
            raise InferenceInputError(
                f"an example holds token ids {min(self.ids)} to {max(self.ids)} and the model "
                f"knows 0 to {vocabulary - 1}; encode it with the model's own tokenizer"
            )

    @classmethod
    def whole(cls, ids: Sequence[int]) -> Example:
        """Every token counts."""
        return cls(tuple(ids), tuple(ids))

    @classmethod
    def continuation(cls, context: Sequence[int], ids: Sequence[int]) -> Example:
        """Only `ids`, which follow `context`, count."""
        return cls((*context, *ids), (*(IGNORED for _ in context), *ids))


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples side by side, padded on the right."""

    ids: torch.Tensor
    """[examples, longest]"""
    mask: torch.Tensor
    """[examples, longest], 1 where there is a token"""
    labels: torch.Tensor
    """[examples, longest]"""


def batched(examples: Sequence[Example], device: torch.device, multiple: int = 1) -> Batch:
    """Pad `examples` to the longest, made a `multiple`; what is added carries no loss."""
    longest = max(len(one.ids) for one in examples)
    longest += -longest % multiple

    def rows(values: Iterable[Sequence[int]], pad: int) -> torch.Tensor:
        return torch.tensor([[*row, *[pad] * (longest - len(row))] for row in values]).to(device)

    return Batch(
        rows((one.ids for one in examples), 0),
        rows(([1] * len(one.ids) for one in examples), 0),
        rows((one.labels for one in examples), IGNORED),
    )


def digest(examples: Iterable[Example]) -> str:
    """Hex sha256 of the examples in their order."""
    state = hashlib.sha256()
    for one in examples:
        state.update(f"{one.ids} {one.labels}\n".encode())
    return state.hexdigest()
