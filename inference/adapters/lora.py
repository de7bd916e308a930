"""A LoRA adapter in memory: per linear layer a low-rank change of its weight."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch

from inference.adapters.shape import Shape
from inference.errors import AdapterInputError
from inference.suggest import nearest

Site = tuple[int, str]
"""Layer index and module name: where a pair of factors belongs."""


class Pair(NamedTuple):
    """The factors of one change, `x -> x + b @ (a @ x)`; the scale is already within `b`."""

    a: torch.Tensor
    """[rank, in]"""
    b: torch.Tensor
    """[out, rank]"""

    @property
    def rank(self) -> int:
        """Number of directions of the change."""
        return int(self.a.shape[0])


@dataclass(frozen=True, eq=False)
class Adapter:
    """A set of low-rank changes to a model's linear layers, fit for that model only.

    Source: Hu et al., LoRA, arXiv 2106.09685, section 4.1: W' = W + (alpha / rank) B A.
    """

    name: str
    shape: Shape
    pairs: Mapping[Site, Pair]

    @classmethod
    def from_peft(cls, folder: str | Path, shape: Shape, name: str | None = None) -> Adapter:
        """Read a folder that PEFT wrote; `name` is the folder's unless given.

        Raises AdapterInputError for what is not read, by name, and for what does not fit `shape`.
        """
        from inference.adapters.folder import read

        path = Path(folder).expanduser()
        tensors, scales = read(path, shape)
        return _build(name or path.resolve().name, tensors, scales, shape)

    @classmethod
    def from_tensors(
        cls,
        name: str,
        tensors: Mapping[Site, tuple[torch.Tensor, torch.Tensor]],
        scale: float,
        shape: Shape,
    ) -> Adapter:
        """Take (layer, module) -> (A [rank, in], B [out, rank]); the change is `scale` B A.

        The tensors are copied; gradients flow back to them where they require any.
        """
        return _build(name, tensors, dict.fromkeys(tensors, scale), shape)

    @cached_property
    def digest(self) -> str:
        """Hex sha256 of what the adapter does, whatever its name."""
        state = hashlib.sha256()
        for (layer, module), pair in sorted(self.pairs.items()):
            for factor in pair:
                state.update(f"{layer} {module} {factor.dtype} {tuple(factor.shape)}\n".encode())
                plain = factor.detach().cpu().contiguous().view(torch.uint8)
                state.update(plain.numpy().tobytes())
        return state.hexdigest()

    @property
    def bytes(self) -> int:
        """Size of all factors."""
        return sum(f.numel() * f.element_size() for pair in self.pairs.values() for f in pair)

    @property
    def trains(self) -> bool:
        """Whether gradients flow through it."""
        return any(factor.requires_grad for pair in self.pairs.values() for factor in pair)

    def renamed(self, name: str) -> Adapter:
        """The same adapter under another name; its tensors are shared."""
        return replace(self, name=name)

    def save_peft(self, folder: str | Path) -> None:
        """Write the folder that PEFT loads: adapter_config.json and adapter_model.safetensors."""
        from inference.adapters.folder import write

        write(self, Path(folder).expanduser())


@contextmanager
def lasting(grad: bool | None = None) -> Iterator[None]:
    """Tensors made within can be used outside of inference mode; `grad` None keeps that mode."""
    grad = torch.is_grad_enabled() if grad is None else grad
    with torch.inference_mode(False), torch.set_grad_enabled(grad):
        yield


def _build(
    name: str,
    tensors: Mapping[Site, tuple[torch.Tensor, torch.Tensor]],
    scales: Mapping[Site, float],
    shape: Shape,
) -> Adapter:
    if not name:
        raise AdapterInputError("an adapter has an empty name; give it one")
    if not tensors:
        raise AdapterInputError(f"adapter {name!r} has no tensors; give at least one pair A, B")
    with lasting():
        pairs = {
            site: _pair(name, site, *tensors[site], scales[site], shape) for site in sorted(tensors)
        }
    return Adapter(name, shape, MappingProxyType(pairs))


def _pair(
    name: str, site: Site, a: torch.Tensor, b: torch.Tensor, scale: float, shape: Shape
) -> Pair:
    layer, module = site
    place = f"adapter {name!r}, layer {layer}, {module}"
    if module not in shape.sizes:
        raise AdapterInputError(
            f"adapter {name!r} changes {module!r}, which is no linear layer in the blocks of this "
            f"model; {nearest(module, shape.sizes)}"
        )
    if not 0 <= layer < shape.layers:
        raise AdapterInputError(
            f"adapter {name!r} changes layer {layer} of a model with {shape.layers} layers; "
            "it belongs to another model"
        )
    out, width = shape.sizes[module]
    rank = a.shape[0] if a.ndim == 2 else 0
    for factor, tensor, wanted in (("A", a, (rank, width)), ("B", b, (out, rank))):
        if not rank or tuple(tensor.shape) != wanted:
            sizes = f"[{wanted[0] or 'rank'}, {wanted[1] or 'rank'}]"
            raise AdapterInputError(
                f"{place}: {factor} has shape {list(tensor.shape)} and this model needs {sizes}; "
                "the adapter belongs to another model, or its factors to different ranks"
            )
    # Scaled before it is rounded to the model's type; copied, so that nobody else can change it.
    wide = torch.float64 if torch.float64 in {a.dtype, b.dtype} else torch.float32
    factors = [factor.to(shape.device, wide, copy=True) for factor in (a, b)]
    if not all(torch.isfinite(factor).all() for factor in factors):
        raise AdapterInputError(f"{place}: the factors hold values that are not finite numbers")
    pair = Pair(factors[0].to(shape.dtype), (factors[1] * scale).to(shape.dtype))
    if not all(torch.isfinite(factor).all() for factor in pair):
        raise AdapterInputError(
            f"{place}: with scale {scale!r} the factors do not fit {shape.dtype}; "
            "use a smaller scale or a wider type"
        )
    return pair
