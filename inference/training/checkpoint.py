"""The state of a training run on disk: safetensors and JSON, published by one rename."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from inference.errors import InferenceInputError
from inference.models.manifest import sha256

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


@dataclass(slots=True)
class Checkpoint:
    """Where a run stands after `step` steps, under which plan and on which data."""

    step: int
    losses: list[float]
    terms: int
    plan: dict[str, Any]
    data: str
    folder: Path | None = None

    def load(self, weights: Mapping[str, torch.Tensor], optimizer: Any) -> None:
        """Put back weights and optimizer state; nothing is changed if they do not fit."""
        folder = self.folder
        if folder is None:
            raise ValueError("a checkpoint that was not read cannot be loaded")
        stored = load_file(folder / WEIGHTS)
        shapes = {name: list(tensor.shape) for name, tensor in stored.items()}
        wanted = {name: list(tensor.shape) for name, tensor in weights.items()}
        if shapes != wanted:
            name = min(_differing(shapes, wanted))
            raise InferenceInputError(
                f"checkpoint {str(folder)!r} holds {name!r} as {shapes.get(name)} and the module "
                f"has {wanted.get(name)}; it belongs to another module"
            )
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        slots: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in load_file(folder / OPTIMIZER).items():
            index, _, slot = key.partition(".")
            slots.setdefault(int(index), {})[slot] = tensor
        optimizer.load_state_dict({"state": slots, "param_groups": state["groups"]})
        with torch.no_grad():
            for name, tensor in weights.items():
                tensor.copy_(stored[name])


def save(
    folder: Path, state: Checkpoint, weights: Mapping[str, torch.Tensor], optimizer: Any
) -> None:
    """Write `state` as the only checkpoint in `folder`; a kill leaves it or the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".partial-*"):
        shutil.rmtree(leftover)
    scratch = folder / f".partial-{os.getpid()}"
    scratch.mkdir()
    save_file({name: _plain(w) for name, w in weights.items()}, scratch / WEIGHTS)
    inner = optimizer.state_dict()
    slots = {
        f"{index}.{slot}": _plain(tensor)
        for index, one in inner["state"].items()
        for slot, tensor in one.items()
    }
    save_file(slots, scratch / OPTIMIZER)
    facts = {
        "step": state.step,
        "losses": state.losses,
        "terms": state.terms,
        "plan": state.plan,
        "data": state.data,
        "groups": inner["param_groups"],
        "sha256": {name: sha256(scratch / name) for name in (WEIGHTS, OPTIMIZER)},
    }
    (scratch / STATE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    older = list(folder.glob("step-*"))
    scratch.rename(folder / f"step-{state.step:08d}")
    for one in older:
        shutil.rmtree(one)


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint in `folder`, its files verified; None where there is none."""
    found = sorted(folder.glob("step-*"))
    if not found:
        return None
    try:
        facts = json.loads((found[-1] / STATE).read_text(encoding="utf-8"))
        damaged = [n for n, digest in facts["sha256"].items() if sha256(found[-1] / n) != digest]
        state = Checkpoint(
            facts["step"], facts["losses"], facts["terms"], facts["plan"], facts["data"], found[-1]
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InferenceInputError(
            f"checkpoint {str(found[-1])!r} cannot be read ({error}); delete it to start again"
        ) from error
    if damaged:
        raise InferenceInputError(
            f"checkpoint {str(found[-1])!r} has a damaged {damaged[0]}; delete it to start again"
        )
    return state


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> set[str]:
    return {name for name in {*one, *other} if one.get(name) != other.get(name)}
