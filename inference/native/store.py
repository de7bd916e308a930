"""The key and value tensors behind the blocks, one pair per layer."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import torch

from inference.errors import InferenceError


class Store:
    """Per layer keys and values [slots, heads, head_dim]; it grows as higher slots are used."""

    def __init__(self) -> None:
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}
        self._slots = 0

    @property
    def token_bytes(self) -> int:
        """Bytes that one token takes in all layers, from the tensors themselves."""
        return sum(
            t[0].numel() * t.element_size() for kv in (self.keys, self.values) for t in kv.values()
        )

    def reserve(self, slots: int) -> None:
        """Have room for slot numbers below `slots`; InferenceError where memory does not allow."""
        if slots <= self._slots:
            return
        size = max(slots, 2 * self._slots)  # doubling keeps the copies rare
        for held in (self.keys, self.values):
            for layer, old in held.items():
                if len(old) >= size:  # an earlier attempt came this far
                    continue
                try:
                    grown = _room(old, size)
                except (RuntimeError, OSError, OverflowError, ValueError) as error:
                    raise InferenceError(
                        f"there is too little memory for key/value entries of {size} tokens "
                        f"({self.token_bytes * size} bytes); lower kv_cache_bytes or step_rows, "
                        "or send fewer or shorter requests at a time"
                    ) from error
                grown[: self._slots] = old[: self._slots]
                held[layer] = grown
        self._slots = size

    def write(
        self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> None:
        """Put key and value [tokens, heads, head_dim] of one layer into `slots` [tokens]."""
        if layer not in self.keys:
            self.keys[layer] = key.new_empty(self._slots, *key.shape[1:])
            self.values[layer] = value.new_empty(self._slots, *value.shape[1:])
        self.keys[layer].index_copy_(0, slots, key)
        self.values[layer].index_copy_(0, slots, value)

    def read(
        self, layer: int, runs: Sequence[tuple[int, int]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [tokens, heads, head_dim] of slot ranges; one range is not copied."""
        keys, values = self.keys[layer], self.values[layer]
        if len(runs) == 1:
            start, end = runs[0]
            return keys[start:end], values[start:end]
        return (
            torch.cat([keys[start:end] for start, end in runs]),
            torch.cat([values[start:end] for start, end in runs]),
        )

    def gather(self, layer: int, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [tokens, heads, head_dim] of any slots, copied."""
        return self.keys[layer].index_select(0, slots), self.values[layer].index_select(0, slots)

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Put the entries of slots `sources` into `targets`, in every layer, all at once."""
        every = [*self.keys.values(), *self.values.values()]
        # Lists would be made into tensors for every layer anew.
        to, of = (torch.tensor(list(x), device=every[0].device) for x in (targets, sources))
        for tensor in every:
            tensor.index_copy_(0, to, tensor.index_select(0, of))

    def copy(self, source: int, target: int, slots: int) -> None:
        """Copy `slots` entries from slot `source` on to slot `target` on."""
        for held in (self.keys, self.values):
            for tensor in held.values():
                tensor[target : target + slots] = tensor[source : source + slots]


def _room(like: torch.Tensor, slots: int) -> torch.Tensor:
    """An empty tensor of so many slots; on a CPU only what is written takes memory.

    A map of its own goes back to the system when it is freed, which the allocator's heap does not.
    """
    if like.device.type != "cpu":
        return like.new_empty(slots, *like.shape[1:])
    size = like[0].numel() * slots
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    pages = mmap.mmap(-1, size * like.element_size(), flags=private)
    return torch.frombuffer(pages, dtype=like.dtype, count=size).view(slots, *like.shape[1:])
