"""Medusa's chain of heads by its formula, one path at a time, to hold batched drafts against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from inference.native.model import Model
from inference.speculative.followers import ORDER
from inference.speculative.medusa_guess import AGREES, SHARPNESS
from inference.speculative.medusa_heads import MedusaHeads


class Spelt:
    """The formula of a chain, path by path: log shares of all tokens behind a path.

    With `text` what followed the same tokens in it before counts too.
    """

    def __init__(self, folder: Path, model: Model) -> None:
        self.heads = MedusaHeads.load(folder)
        weights = load_file(Path(model.name) / "model.safetensors")
        self.table = weights["model.embed_tokens.weight"].float()
        self.matrix = weights["lm_head.weight"].float()

    def shares(
        self, hidden: torch.Tensor, path: Sequence[int], text: Sequence[int] | None = None
    ) -> torch.Tensor:
        assert self.heads.drawn is not None
        state = hidden
        for at, token in enumerate(path):
            head = min(at, self.heads.count - 1)
            row = self.table[token]
            x = self.heads.blocks[head].float() @ state + self.heads.biases[head].float()
            x = x + self.heads.drawn[head].float() @ (row / row.square().mean().sqrt())
            state = state + x / (1 + torch.exp(-x))
        logits = self.matrix @ state
        guessed = torch.ones(len(logits), dtype=torch.bool)
        if self.heads.tokens is not None:
            guessed = torch.zeros_like(guessed).index_fill(0, self.heads.tokens, True)
        if text is not None:
            logits = SHARPNESS * logits
            for token, length in agreement(text, [*text, *path[1:]]).items():
                logits[token] += AGREES * length
                guessed[token] = True
        return torch.log_softmax(logits.masked_fill(~guessed, -math.inf), 0)


def agreement(text: Sequence[int], path: Sequence[int]) -> dict[int, int]:
    """How many tokens at the end of `path` stood before a token of `text`, ORDER at most."""
    found: dict[int, int] = {}
    for at, token in enumerate(text):
        length = 0
        while length < min(ORDER, at) and text[at - length - 1] == path[-length - 1]:
            length += 1
        if length:
            found[token] = max(length, found.get(token, 0))
    return found
