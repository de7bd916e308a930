"""Where a model can carry adapters, and of which size they are there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

NUMBERED = re.compile(r"(?P<list>[^0-9]*?)\.(?P<layer>\d+)\.(?P<path>.+)")


@dataclass(frozen=True)
class Shape:
    """The linear layers of a model's decoder blocks, and the type its weights have.

    `sizes` maps the name of a module ("q_proj") to (out, in) and `paths` to its place in the
    network ("model.layers.{layer}.self_attn.q_proj"), both the same in each of `layers` blocks.
    """

    layers: int
    sizes: Mapping[str, tuple[int, int]]
    paths: Mapping[str, str]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, network: torch.nn.Module) -> Shape:
        """The shape of a transformers causal model, from its linear layers."""
        found: dict[str, dict[int, tuple[str, tuple[int, int]]]] = {}
        unclear = set()
        for path, module in network.named_modules():
            match = NUMBERED.fullmatch(path)
            if match is None or not isinstance(module, torch.nn.Linear):
                continue
            name, layer = path.rpartition(".")[2], int(match["layer"])
            place = f"{match['list']}.{{layer}}.{match['path']}"
            if layer in found.setdefault(name, {}):
                unclear.add(name)  # as of the experts of a mixture
            found[name][layer] = (place, (module.out_features, module.in_features))
        layers = max((len(places) for places in found.values()), default=0)
        same = {
            name: next(iter(places.values()))
            for name, places in found.items()
            if name not in unclear and len(places) == layers and len(set(places.values())) == 1
        }
        weight = next(network.parameters())
        return cls(
            layers=layers,
            sizes={name: size for name, (_, size) in same.items()},
            paths={name: place for name, (place, _) in same.items()},
            dtype=weight.dtype,
            device=weight.device,
        )

    @classmethod
    def of_config(cls, config: Any, dtype: torch.dtype, device: torch.device) -> Shape:
        """The shape of the causal model that a transformers configuration describes."""
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            shape = cls.of(AutoModelForCausalLM.from_config(config))
        return cls(shape.layers, shape.sizes, shape.paths, dtype, device)

    def path(self, layer: int, module: str) -> str:
        """The place of a module in the network, as in "model.layers.0.self_attn.q_proj"."""
        return self.paths[module].format(layer=layer)
