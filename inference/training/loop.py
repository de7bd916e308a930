"""A training loop that a kill does not set back: all randomness is a function of seed and step.

transformers' Trainer and trl's SFTTrainer are not used because their checkpoints hold pickles
(optimizer.pt, scheduler.pt, rng_state.pth), which this project neither writes nor reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from tqdm import tqdm

from inference.errors import InferenceError, InferenceInputError
from inference.training.checkpoint import Checkpoint, latest, save

T = TypeVar("T")
Loss = Callable[[Sequence[T]], tuple[torch.Tensor, int]]
"""Sum of the losses of some examples, and how many terms it has."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train: optimizer steps of `batch` x `accumulate` examples by AdamW.

    `warmup` steps raise the rate from lr/warmup to lr; then `schedule` takes it to 0 at `steps`
    (or leaves it). `clip` bounds the norm of the gradient. `checkpoint_every` counts steps.
    """

    steps: int
    batch: int = 1
    accumulate: int = 1
    lr: float = 3e-4
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: int = 0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float | None = 1.0
    seed: int = 0
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InferenceInputError(f"{name}={getattr(self, name)} must be at least 1")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise InferenceInputError(f"lr={self.lr!r} must be finite and > 0")
        if not 0 <= self.warmup < self.steps:
            raise InferenceInputError(
                f"warmup={self.warmup} must be at least 0 and less than steps={self.steps}"
            )
        if self.clip is not None and not self.clip > 0:
            raise InferenceInputError(f"clip={self.clip!r} must be > 0, or None for no limit")
        if self.schedule not in {"constant", "linear", "cosine"}:
            raise InferenceInputError(
                f"schedule={self.schedule!r} must be constant, linear or cosine"
            )

    def rate(self, step: int) -> float:
        """Learning rate of optimizer step `step`, from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / (self.steps - self.warmup)
        if self.schedule == "linear":
            return self.lr * (1 - done)
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * done))
        return self.lr

    def chosen(self, step: int, examples: int) -> list[int]:
        """Indices of the examples of a step; each epoch shuffles all of them anew."""
        size = self.batch * self.accumulate
        found: list[int] = []
        for place in range(step * size, (step + 1) * size):
            epoch, index = divmod(place, examples)
            found.append(_order(self.seed, epoch, examples)[index])
        return found


@dataclass(slots=True)
class Progress:
    """Steps done so far, and the mean loss of each."""

    steps: int = 0
    losses: list[float] = field(default_factory=list)
    terms: int = 0
    """Tokens, or other terms of the loss, that were learned from."""


def train(
    module: Any,
    examples: Sequence[T],
    loss: Loss[T],
    plan: Plan,
    *,
    data: str,
    folder: Path | None = None,
) -> Progress:
    """Train the parameters of `module` that require gradients; those alone are checkpointed.

    With `folder` the last checkpoint there is resumed, and the result is bit for bit that of an
    uninterrupted run. `data` is the digest of the examples. Raises InferenceInputError if the
    checkpoint belongs to another plan or other data, InferenceError where the loss is not finite.
    """
    weights = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not weights or not examples:
        raise InferenceInputError(
            f"there is nothing to train: {len(weights)} parameters that require gradients and "
            f"{len(examples)} examples"
        )
    optimizer = torch.optim.AdamW(
        weights.values(),
        lr=plan.lr,
        betas=plan.betas,
        eps=plan.eps,
        weight_decay=plan.weight_decay,
    )
    progress = Progress()
    if folder is not None and (found := latest(folder)) is not None:
        _resume(found, weights, optimizer, plan, data)
        progress = Progress(found.step, found.losses, found.terms)
    device = next(iter(weights.values())).device
    with (
        _own_randomness(device),
        tqdm(
            total=plan.steps, initial=progress.steps, disable=None, unit="step", desc="training"
        ) as bar,
    ):
        while progress.steps < plan.steps:
            step = progress.steps
            torch.manual_seed(_mixed(plan.seed, step))
            batch = [examples[index] for index in plan.chosen(step, len(examples))]
            mean, terms = _step(optimizer, weights, batch, loss, plan, step)
            progress.steps += 1
            progress.losses.append(mean)
            progress.terms += terms
            if folder is not None and (
                progress.steps % plan.checkpoint_every == 0 or progress.steps == plan.steps
            ):
                state = Checkpoint(
                    progress.steps, progress.losses, progress.terms, plan_of(plan), data
                )
                save(folder, state, weights, optimizer)
            bar.set_postfix(loss=f"{mean:.3f}", refresh=False)
            bar.update()
    return progress


def plan_of(plan: Plan) -> dict[str, Any]:
    """The plan as plain JSON."""
    fields = {name: getattr(plan, name) for name in Plan.__dataclass_fields__}
    return {**fields, "betas": list(plan.betas)}


def _step(
    optimizer: Any,
    weights: dict[str, torch.Tensor],
    batch: Sequence[T],
    loss: Loss[T],
    plan: Plan,
    step: int,
) -> tuple[float, int]:
    """One optimizer step; mean loss and number of terms."""
    for group in optimizer.param_groups:
        group["lr"] = plan.rate(step)
    optimizer.zero_grad(set_to_none=True)
    total, terms = 0.0, 0
    for start in range(0, len(batch), plan.batch):
        part, count = loss(batch[start : start + plan.batch])
        part.backward()
        total += part.item()
        terms += count
    gradients = [w.grad for w in weights.values() if w.grad is not None]
    for gradient in gradients:
        gradient.div_(terms)  # the mean over all parts, however long each was
    norm = torch.nn.utils.get_total_norm(gradients)
    if not math.isfinite(total) or not torch.isfinite(norm):
        raise InferenceError(
            f"training step {step + 1}: loss {total / terms!r}, gradient norm {norm.item()!r}; "
            f"lower lr={plan.lr!r} and resume from the last checkpoint"
        )
    if plan.clip is not None:
        torch.nn.utils.clip_grads_with_norm_(weights.values(), plan.clip, norm)
    optimizer.step()
    return total / terms, terms


def _resume(
    found: Checkpoint, weights: dict[str, torch.Tensor], optimizer: Any, plan: Plan, data: str
) -> None:
    for what, then, now in (("plan", found.plan, plan_of(plan)), ("data", found.data, data)):
        if then != now:
            raise InferenceInputError(
                f"checkpoint {str(found.folder)!r} belongs to another {what}; "
                "train into another folder, or delete this one"
            )
    found.load(weights, optimizer)


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, examples: int) -> list[int]:
    draw = torch.Generator().manual_seed(_mixed(seed, epoch))
    order: list[int] = torch.randperm(examples, generator=draw).tolist()
    return order


def _mixed(seed: int, number: int) -> int:
    """One seed out of two numbers, so that neighbours share nothing (splitmix64)."""
    mixed = (seed + (number + 1) * 0x9E3779B97F4A7C15) % 2**64
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
    return mixed ^ mixed >> 31


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """Leave torch's generators as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
