"""Medusa's chain of heads by its formula, one path at a time, to hold batched drafts against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from inference.native.model import Model
from inference.speculative.medusa_heads import MedusaHeads


class Spelt:
    """The formula of a chain, path by path: log shares of all tokens behind a path."""

    def __init__(self, folder: Path, model: Model) -> None:
        self.heads = MedusaHeads.load(folder)
        weights = load_file(Path(model.name) / "model.safetensors")
        self.table = weights["model.embed_tokens.weight"].float()
        self.matrix = weights["lm_head.weight"].float()

    def shares(self, hidden: torch.Tensor, path: Sequence[int]) -> torch.Tensor:
        assert self.heads.drawn is not None
        state = hidden
        for at, token in enumerate(path):
            head = min(at, self.heads.count - 1)
            row = self.table[token]
            x = self.heads.blocks[head].float() @ state + self.heads.biases[head].float()
            x = x + self.heads.drawn[head].float() @ (row / row.square().mean().sqrt())
            state = state + x / (1 + torch.exp(-x))
        return torch.log_softmax(self.matrix @ state, 0)
