"""A transformers network that carries adapters through the batched product, for comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from inference.adapters.batch import LoraBatch
from inference.adapters.lora import Adapter


@contextmanager
def carrying(network: Any, *adapters: Adapter) -> Iterator[None]:
    """Every position of a forward over one row of token ids carries `adapters`."""
    shape = adapters[0].shape

    def hook(layer: int, name: str) -> Callable[..., None]:
        def add(_: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            batch = LoraBatch.build([(0, len(output[0]), adapters)])
            assert batch is not None
            batch.add(layer, {name: slice(None)}, inputs[0][0], output[0])

        return add

    hooks = [
        network.get_submodule(shape.path(layer, name)).register_forward_hook(hook(layer, name))
        for layer in range(shape.layers)
        for name in shape.sizes
    ]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()
