"""Key/value entries of one sequence in tensors of its own, which a policy may shrink.

Every layer and key/value head has its own number of entries, each with its logical position: the
index of its token in prompt plus completion. Such entries are never found by other sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import scaled_dot_product_attention

from inference.native.lean import rotate
from inference.native.step import View

if TYPE_CHECKING:
    from inference.kv import KVPolicy, Moment
    from inference.native.attention import Heads

SLACK = 16
"""Entries a head has room for beyond what it holds, so that not every token moves all others."""

Turn = Callable[[torch.Tensor, torch.dtype], tuple[torch.Tensor, torch.Tensor]]
"""Positions [entries] -> cosine and signed sine, as `Rotary` gives them."""


class Head:
    """Entries of one key/value head of one layer: keys, values [entries, head_dim], positions."""

    __slots__ = ("_keys", "_positions", "_values", "count")

    def __init__(self) -> None:
        self.count = 0
        self._keys = self._values = self._positions = torch.empty(0)

    @property
    def keys(self) -> torch.Tensor:
        """Keys [entries, head_dim]."""
        return self._keys[: self.count]

    @property
    def values(self) -> torch.Tensor:
        """Values [entries, head_dim]."""
        return self._values[: self.count]

    @property
    def positions(self) -> torch.Tensor:
        """Logical positions [entries], int64."""
        return self._positions[: self.count]

    @property
    def bytes(self) -> int:
        """Bytes of memory behind the tensors, positions included."""
        held = (self._keys, self._values, self._positions)
        return sum(one.untyped_storage().nbytes() for one in held)

    def append(self, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor) -> None:
        """Add entries [added, head_dim] behind the others."""
        end = self.count + len(keys)
        if end > len(self._keys):
            self._move(end + (SLACK if len(keys) == 1 else 0), keys, values, positions)
        self._keys[self.count : end] = keys
        self._values[self.count : end] = values
        self._positions[self.count : end] = positions
        self.count = end

    def keep(self, entries: torch.Tensor) -> None:
        """Keep these entries [kept] in this order, and give the memory of the others back."""
        self.replace(self.keys[entries], self.values[entries], self.positions[entries])

    def crop(self, count: int) -> None:
        """Keep the first `count` entries; the room stays for what comes in their place."""
        self.count = count

    def replace(self, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor) -> None:
        """Hold exactly these entries from now on, such as merged ones; ValueError if misshapen."""
        if keys.shape != values.shape or keys.shape[:1] != positions.shape:
            raise ValueError(
                f"keys {list(keys.shape)}, values {list(values.shape)} and positions "
                f"{list(positions.shape)} are not those of the same entries"
            )
        if self._keys.dim() == 2 and keys.shape[1:] != self._keys.shape[1:]:
            raise ValueError(f"keys of width {keys.shape[1]} among {self._keys.shape[1]}")
        self._keys, self._values = _own(keys), _own(values)
        self._positions, self.count = _own(positions), len(keys)

    def _move(
        self, room: int, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor
    ) -> None:
        for name, like in (("_keys", keys), ("_values", values), ("_positions", positions)):
            moved = like.new_empty(room, *like.shape[1:])
            if self.count:
                moved[: self.count] = getattr(self, name)[: self.count]
            setattr(self, name, moved)


def _own(held: torch.Tensor) -> torch.Tensor:
    """The same numbers in memory that holds nothing else: a slice would keep all of its source."""
    whole = held.untyped_storage().nbytes() == held.numel() * held.element_size()
    return held if whole and held.is_contiguous() else held.clone().contiguous()


class Compact:
    """The entries of one sequence: `heads[layer][kv_head]`.

    With `reindex` keys are held unrotated and every forward turns them to the positions 0, 1, ...
    of what is left (`turn`), so that logical positions beyond the trained context do no harm.
    `memory` is what the policy remembers, as tensors, so that a snapshot can carry it. `peak` are
    the most bytes held at any time. A policy that raises leaves its `error` and is asked no more.
    """

    def __init__(self, layers: int, kv_heads: int, policy: KVPolicy, turn: Turn) -> None:
        self.heads = [[Head() for _ in range(kv_heads)] for _ in range(layers)]
        self.policy = policy
        self.moment: Moment | None = None
        self.memory: dict[str, torch.Tensor] = {}
        self.error: Exception | None = None
        self.peak = 0
        self._turn = turn
        self._held = [0] * layers
        self._drafted: dict[int, Heads] = {}

    @property
    def bytes(self) -> int:
        """Bytes of all entries, and of what the policy remembers."""
        own: int = sum(one.untyped_storage().nbytes() for one in self.memory.values())
        return own + sum(head.bytes for layer in self.heads for head in layer)

    @property
    def entries(self) -> list[list[int]]:
        """Number of entries per layer and head."""
        return [[head.count for head in layer] for layer in self.heads]

    def attend(
        self, layer: int, view: View, heads: Heads, scale: float | None, window: int | None
    ) -> torch.Tensor:
        """Output [rows, kv_heads, groups, head_dim] of a view; stores, then lets the policy act."""
        reindex = self.policy.reindex
        rows = slice(view.start, view.end)
        query, key = heads.query[rows], heads.key[rows]
        if reindex:
            assert heads.raw is not None
            query, key = heads.raw[0][rows], heads.raw[1][rows]
        value = heads.value[rows]
        positions = torch.tensor(view.positions, device=key.device)
        grouped = query.unflatten(1, (key.shape[1], -1))
        output = torch.empty_like(grouped)
        for at, head in enumerate(self.heads[layer]):
            past = head.count
            head.append(key[:, at], value[:, at], positions)
            found = self._one(head, past, grouped[:, at], view, positions, scale, window)
            output[:, at] = found
        self.weigh(layer)
        if view.tree is not None:
            self._drafted[layer] = heads.pick(torch.arange(view.start, view.end))
        else:
            self._decide(layer, view, heads)
        return output

    def settle(self, view: View, path: Sequence[int]) -> None:
        """Of the rows a tree has just added keep those of `path`, in its order; then decide."""
        kept = torch.tensor(path, dtype=torch.long)
        places = [view.positions[row] for row in path]
        settled = replace(view, start=0, end=len(path), positions=places, tree=None)
        for at, layer in enumerate(self.heads):
            if at in view.skip:
                continue
            for head in layer:
                past = head.count - view.rows
                for held in (head.keys, head.values, head.positions):
                    held[past : past + len(path)] = held[past + kept]
                head.crop(past + len(path))
            self._decide(at, settled, self._drafted.pop(at).pick(kept))

    def _decide(self, layer: int, view: View, heads: Heads) -> None:
        """Let the policy act; what goes wrong in it is for the request alone to end with."""
        if self.moment is None or self.error is not None:
            return
        try:
            self.policy.compress(self, layer, view, heads, self.moment)
        except Exception as error:
            self.error = error
        self.weigh(layer)

    def weigh(self, layer: int) -> None:
        """Measure a layer, and with it the most that was ever held."""
        self._held[layer] = sum(head.bytes for head in self.heads[layer])
        memory = sum(one.untyped_storage().nbytes() for one in self.memory.values())
        self.peak = max(self.peak, sum(self._held) + memory)

    def _one(
        self,
        head: Head,
        past: int,
        query: torch.Tensor,
        view: View,
        positions: torch.Tensor,
        scale: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Attention of query [rows, groups, head_dim] over one head's entries."""
        keys, values, seen = head.keys, head.values, head.positions
        if self.policy.reindex:
            # Row i of a chunk stands i places behind what was there; of a tree, by its depth.
            seen = torch.arange(head.count, device=keys.device)
            positions = past + positions - positions[0]
            seen[past:] = positions
            keys = rotate(keys[:, None], *self._turn(seen, keys.dtype))[:, 0]
            query = rotate(query, *self._turn(positions, query.dtype))
        mask = None
        if view.rows > 1 or window is not None:
            mask = torch.ones(view.rows, head.count, dtype=torch.bool, device=keys.device)
            mask[:, past:] = mask[:, past:].tril() if view.tree is None else view.tree
            if window is not None:
                mask &= seen > positions[:, None] - window
        found = scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            keys.expand(1, query.shape[1], -1, -1),
            values.expand(1, query.shape[1], -1, -1),
            attn_mask=mask,
            scale=scale,
        )
        return found[0].transpose(0, 1)
