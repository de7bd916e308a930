"""An adapter that learns from a text while the text is read or written, and is then dropped.

Source: Wang, Ma, Cai, Temp-LoRA, arXiv 2401.11504, section 3: after each chunk a few gradient steps
on that chunk, given the tokens before it; adapter and optimizer state stay until the text ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from inference.adapters.lora import Adapter, lasting
from inference.adapters.shape import Shape
from inference.errors import InferenceError, InferenceInputError
from inference.training.examples import Example
from inference.training.lora import LINEAR, LoraOptions, adapter_of, causal_loss, with_lora


@dataclass(frozen=True, slots=True)
class Update:
    """One update: mean loss (nats per token) before each of its steps, and the adapter after."""

    losses: tuple[float, ...]
    adapter: Adapter


class LoraTrainer:
    """Trains one adapter of one session over a network whose weights it shares and never changes.

    `network` is a transformers causal model with its own linear modules; what runs on it at the
    same time is not disturbed. One trainer serves one thread at a time. Defaults are the paper's
    code (scale 1, AdamW with eps 1e-7, gradient norm 1, 2 steps), but for the rank, which is 64
    there for models of 7B, and for dropout, 0.05 there. Dropout draws from torch's own
    generator: two trainers that use it are reproducible only if they take turns.
    """

    def __init__(
        self,
        network: Any,
        rank: int = 8,
        targets: Sequence[str] = LINEAR,
        lr: float = 5e-5,
        *,
        steps: int = 2,
        clip: float = 1.0,
        dropout: float = 0.0,
        seed: int = 0,
        name: str = "temp",
    ) -> None:
        if steps < 1 or not (math.isfinite(lr) and lr > 0) or not clip > 0:
            raise InferenceInputError(
                f"online training with steps={steps}, lr={lr!r}, clip={clip!r}: "
                "all three must be positive"
            )
        self.name, self.steps, self.clip, self.seed = name, steps, clip, seed
        self._options = LoraOptions(rank, rank, tuple(targets), dropout)
        self._shape = Shape.of(network)
        self._model = with_lora(network, self._options, seed)
        self._loss = causal_loss(self._model)
        self._weights = [p for p in self._model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._weights, lr=lr, eps=1e-7, weight_decay=0.0)
        self._done = 0

    @property
    def adapter(self) -> Adapter:
        """The adapter as it is now, a copy."""
        return adapter_of(self._model, self.name, self._shape, self._options)

    def update(self, ids: Sequence[int], context: Sequence[int] = ()) -> Update:
        """Learn the tokens `ids` as they follow `context`, which carries no loss itself.

        Raises InferenceError before a step whose loss or gradient is not finite; the steps
        before it stay.
        """
        example = Example.continuation(context, ids)
        devices = [self._shape.device] if self._shape.device.type == "cuda" else []
        with lasting(grad=True), torch.random.fork_rng(devices):
            losses = tuple(self._step(example) for _ in range(self.steps))
        return Update(losses, self.adapter)

    def score(
        self, ids: Sequence[int], context: Sequence[int] = (), *, adapted: bool = True
    ) -> float:
        """Mean negative log-likelihood (nats per token) of `ids` after `context`.

        `adapted=False` is the base model's. Score a chunk before it is learned, never after.
        """
        example = Example.continuation(context, ids)
        self._model.eval()
        with torch.no_grad():
            if adapted:
                total, terms = self._loss([example])
            else:
                with self._model.disable_adapter():
                    total, terms = self._loss([example])
        mean: float = total.item() / terms
        return mean

    def _step(self, example: Example) -> float:
        torch.manual_seed(self.seed + self._done)  # for dropout
        self._model.train()
        self._optimizer.zero_grad(set_to_none=True)
        total, terms = self._loss([example])
        (total / terms).backward()
        self._model.eval()
        loss: float = total.item() / terms
        norm = float(torch.nn.utils.clip_grad_norm_(self._weights, self.clip))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise InferenceError(
                f"adapter {self.name!r} cannot learn {terms} tokens: loss {loss!r}, gradient norm "
                f"{norm!r}; drop it and begin again with a lower lr"
            )
        self._optimizer.step()
        self._done += 1
        return loss
