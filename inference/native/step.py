"""What one forward pass computes: the tokens of many sequences in a row, and what each row sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from inference.native.store import Store

if TYPE_CHECKING:
    from inference.adapters.batch import LoraBatch, Stacks
    from inference.adapters.lora import Adapter
    from inference.native.compact import Compact
    from inference.native.taps import Recorder

PADDED = 256
"""Longest cache that is read padded: a copy beats one more call of the attention kernel."""


@dataclass(slots=True, eq=False)
class View:
    """Rows [start, end) of a step: one sequence with `past` entries before them.

    The entries are slot ranges of the store (`runs`, those of the rows included), or lie in a
    `cache` of the sequence's own. `tree` [rows, seen] says which of the last entries each row sees,
    the rows themselves being the very last; without it, those up to itself. Where it reaches into
    the past, which only entries of the store do, `behind` are the positions of the past entries
    under it. Layers of `skip` do not compute these rows, which carry `adapters`. `key` is the same
    in every part of a step.
    """

    key: int
    start: int
    end: int
    past: int
    runs: tuple[tuple[int, int], ...] = ()
    positions: Sequence[int] = ()
    tree: torch.Tensor | None = None
    behind: Sequence[int] = ()
    cache: Compact | None = None
    skip: range = range(0)
    adapters: tuple[Adapter, ...] = ()

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.end - self.start


@dataclass(slots=True)
class Pad:
    """Single rows of several sequences whose entries are read together.

    `rows` [n] are rows of the step, None meaning all of it in order; `entries` [n * longest] are
    slots; `mask` [n, 1, 1, longest] is added to the scores.
    """

    count: int
    rows: torch.Tensor | None
    entries: torch.Tensor
    mask: torch.Tensor


@dataclass(slots=True)
class Plan:
    """How the rows of a step read the store: some together, the other views one by one."""

    pads: list[Pad]
    alone: list[View]


@dataclass(slots=True)
class Step:
    """Tensors over all rows of a step: `ids`, `positions` [rows], `kept` rows that need logits.

    `slots` are the places of the rows' entries in the store, rows with a cache of their own left
    out: `paged` are the other rows, None meaning all. With `shows_hidden` the forward pass leaves
    what it gives the output matrix [kept, hidden] in `hidden`.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    kept: torch.Tensor
    store: Store
    slots: torch.Tensor
    views: Sequence[View]
    paged: torch.Tensor | None = None
    lora: LoraBatch | None = None
    recorder: Recorder | None = None
    stacks: Stacks | None = None
    shows_hidden: bool = False
    hidden: torch.Tensor | None = None
    _plans: dict[int | None, Plan] = field(default_factory=dict)
    _masks: dict[tuple[int, int | None], torch.Tensor] = field(default_factory=dict)
    _biases: dict[tuple[int, int | None, int], torch.Tensor] = field(default_factory=dict)
    _parts: dict[tuple[int, ...], tuple[Step, torch.Tensor]] = field(default_factory=dict)

    def write(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store key and value [rows, heads, head_dim] of the rows without a cache of their own."""
        if self.paged is not None:
            key, value = key[self.paged], value[self.paged]
        if len(self.slots):
            self.store.write(layer, self.slots, key, value)

    def plan(self, window: int | None, dtype: torch.dtype) -> Plan:
        """Which views are read together, for layers that see `window` positions back."""
        if window not in self._plans:
            self._plans[window] = _plan(self.views, window, dtype, self.ids.device)
        return self._plans[window]

    def mask(self, view: View, window: int | None) -> torch.Tensor:
        """Which of all its entries each row of a view sees: bool [rows, past + rows]."""
        key = (view.start, window)
        if key not in self._masks:
            self._masks[key] = sight(view, view.past, window, self.ids.device)
        return self._masks[key]

    def bias(self, view: View, window: int | None, dtype: torch.dtype, copies: int) -> torch.Tensor:
        """The mask as attention adds it to scores: [copies * rows, past + rows], 0 or -inf.

        Given a mask of booleans, torch makes this of it in every layer anew.
        """
        key = (view.start, window, copies)
        if key not in self._biases:
            seen = self.mask(view, window)
            added = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            self._biases[key] = added.masked_fill_(~seen, -torch.inf).repeat(copies, 1)
        return self._biases[key]

    def active(self, layer: int) -> tuple[Step, torch.Tensor] | None:
        """The part of this step that a layer computes, and its rows; None for all of it."""
        skipped = tuple(at for at, view in enumerate(self.views) if layer in view.skip)
        if not skipped:
            return None
        if skipped not in self._parts:
            self._parts[skipped] = self._without(set(skipped))
        return self._parts[skipped]

    def _without(self, skipped: set[int]) -> tuple[Step, torch.Tensor]:
        views: list[View] = []
        rows: list[int] = []
        for at, view in enumerate(self.views):
            if at not in skipped:
                start = len(rows)
                rows += range(view.start, view.end)
                views.append(replace(view, start=start, end=len(rows)))
        device = self.ids.device
        kept = torch.tensor(rows, dtype=torch.long, device=device)
        paged = [at for view in views if view.cache is None for at in range(view.start, view.end)]
        # Whoever skips has a cache of its own, so the store's rows are all still there.
        assert len(paged) == len(self.slots)
        return (
            Step(
                self.ids[kept],
                self.positions[kept],
                self.kept,
                self.store,
                self.slots,
                views,
                torch.tensor(paged, dtype=torch.long, device=device),
                lora(views, self.stacks),
                self.recorder,
                self.stacks,
            ),
            kept,
        )


def lora(views: Sequence[View], stacks: Stacks | None) -> LoraBatch | None:
    """The adapters the views carry, or None where there are none."""
    if not any(view.adapters for view in views):
        return None
    from inference.adapters.batch import LoraBatch

    return LoraBatch.build([(view.start, view.end, view.adapters) for view in views], stacks)


def sight(view: View, past: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Which of `past` earlier entries and its own rows each row of a view sees: bool [rows, all].

    Earlier entries stand at positions 0, 1, ... as they do in the store, but for those `behind`.
    """
    count, free = view.rows, past - len(view.behind)
    if view.tree is not None:
        mask = torch.cat([view.tree.new_ones(count, free), view.tree], dim=1)
    else:
        seen = torch.arange(past + count, device=device)
        mask = seen <= seen[past:, None]
    if window is not None:
        own = torch.tensor(view.positions, device=device)
        grown = torch.tensor(view.behind, dtype=torch.long, device=device)
        all_positions = torch.cat([torch.arange(free, device=device), grown, own])
        mask = mask & (all_positions > own[:, None] - window)
    return mask


def last(runs: Sequence[tuple[int, int]], count: int) -> tuple[tuple[int, int], ...]:
    """The last `count` slots of slot ranges."""
    kept: list[tuple[int, int]] = []
    for start, end in reversed(runs):
        if count == 0:
            break
        kept.append((max(start, end - count), end))
        count -= end - kept[-1][0]
    return tuple(reversed(kept))


def _plan(
    views: Sequence[View], window: int | None, dtype: torch.dtype, device: torch.device
) -> Plan:
    buckets: dict[int, list[View]] = {}
    alone: list[View] = []
    for view in views:
        if view.cache is not None:
            continue
        seen = view.past + 1 if window is None else min(view.past + 1, window)
        masked = view.tree is not None and window is not None  # the last entries are not its own
        if view.rows > 1 or seen > PADDED or masked:
            alone.append(view)
        else:  # caches of like length together: less than half of what is read is padding
            buckets.setdefault(seen.bit_length(), []).append(view)
    pads: list[Pad] = []
    for bucket in buckets.values():
        if len(bucket) == 1:
            alone += bucket
        else:
            whole = len(bucket) == len(views)
            pads.append(_pad(bucket, window, dtype, device, whole=whole))
    return Plan(pads, alone)


def _pad(
    views: Sequence[View],
    window: int | None,
    dtype: torch.dtype,
    device: torch.device,
    *,
    whole: bool,
) -> Pad:
    slots: list[np.ndarray] = []
    for view in views:
        runs = view.runs if window is None else last(view.runs, window)
        slots.append(np.concatenate([np.arange(*run) for run in runs]))
    lengths = np.array([len(one) for one in slots])
    longest = int(lengths.max())
    # Padding reads the last entry again: what nobody wrote could be a NaN, and 0 * NaN is NaN.
    entries = np.stack([np.pad(one, (0, longest - len(one)), mode="edge") for one in slots])
    unseen = np.arange(longest) >= lengths[:, None]
    for at, view in enumerate(views):
        if view.tree is not None:
            end = lengths[at]
            unseen[at, end - view.tree.shape[1] : end] = ~view.tree[0].cpu().numpy()
    hidden = torch.from_numpy(unseen)
    mask = torch.zeros(len(views), longest, dtype=dtype).masked_fill_(hidden, -torch.inf)
    rows = [view.start for view in views]
    return Pad(
        len(rows),
        None if whole else torch.tensor(rows, device=device),
        torch.from_numpy(entries.reshape(-1)).to(device),
        mask[:, None, None].to(device),
    )
