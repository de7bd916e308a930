"""The adapters of one engine step, as batched low-rank products over its rows.

Rows of a step may carry different adapters. All factors A of the step's adapters are stacked into
one matrix, one product takes every row through all of them, a mask keeps what a row's own adapters
gave, and a product with the stacked B leads back: the batching of Chen et al., Punica,
arXiv 2310.18547, in plain matrix products, so that it runs (and differentiates) anywhere.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from inference.adapters.lora import Adapter, lasting

Span = tuple[int, int, tuple[Adapter, ...]]
"""First row, row after the last, and what these rows carry."""

NARROW = 64
"""Up to this many stacked directions one block-diagonal B costs less than a call per part."""


@dataclass(frozen=True, slots=True)
class Stack:
    """The stacked factors of one linear layer."""

    a: torch.Tensor
    """[directions, in]"""
    owners: tuple[int, ...]
    """Index of the adapter that each direction belongs to."""
    products: tuple[tuple[slice, slice, torch.Tensor], ...]
    """(directions, columns of the output, B [columns, directions]), one after the other."""


Layer = dict[tuple[int, tuple[str, ...]], Stack | None]


class Stacks:
    """Stacks of the sets of adapters used last, kept between steps; one thread at a time."""

    def __init__(self, sets: int = 4) -> None:
        self.sets = sets
        self._kept: OrderedDict[tuple[str, ...], Layer] = OrderedDict()

    def of(self, adapters: Sequence[Adapter]) -> Layer:
        """The stacks made so far for this set, in this order."""
        key = tuple(adapter.digest for adapter in adapters)
        layers = self._kept.setdefault(key, {})
        self._kept.move_to_end(key)
        while len(self._kept) > self.sets:
            self._kept.popitem(last=False)
        return layers

    def forget(self) -> None:
        """Free all stacks, as after an adapter was detached."""
        self._kept.clear()


class LoraBatch:
    """What the rows of one step carry."""

    def __init__(
        self,
        adapters: Sequence[Adapter],
        rows: slice | torch.Tensor,
        lacking: torch.Tensor | None,
        stacks: Layer | None,
    ) -> None:
        self._adapters = adapters
        self._rows = rows  # those with adapters
        self._lacking = lacking  # [rows, adapters]; None where all carry all
        self._stacks = stacks  # None: gradients flow, so nothing outlives its use
        self._masks: dict[tuple[int, ...], torch.Tensor] = {}

    @classmethod
    def build(cls, spans: Sequence[Span], stacks: Stacks | None = None) -> LoraBatch | None:
        """Sort out a step's rows once; None where none carries an adapter.

        Spans may come in any order and leave rows out; they do not overlap. `stacks` keeps the
        stacked matrices for later steps.
        """
        spans = sorted((span for span in spans if span[2] and span[0] < span[1]), key=_first_row)
        if not spans:
            return None
        carried = [_counted(adapters) for _, _, adapters in spans]
        distinct = {key: adapter for row in carried for key, adapter in row.items()}
        keys = sorted(distinct)
        adapters = [distinct[key] for key in keys]
        numbers: list[int] = []
        table: list[list[bool]] = []
        for (start, end, _), row in zip(spans, carried, strict=True):
            if numbers and start <= numbers[-1]:
                raise ValueError(f"row {start} of a step is in two spans")
            numbers.extend(range(start, end))
            table.extend([[key in row for key in keys]] * (end - start))
        shape = adapters[0].shape
        rows: slice | torch.Tensor = slice(numbers[0], numbers[-1] + 1)
        if len(numbers) < numbers[-1] + 1 - numbers[0]:
            rows = torch.tensor(numbers, device=shape.device)
        lacking = None
        if not all(map(all, table)):
            lacking = ~torch.tensor(table, device=shape.device)
        trains = any(adapter.trains for adapter in adapters)
        kept = None if trains else (stacks or Stacks()).of(adapters)
        return cls(adapters, rows, lacking, kept)

    def add(self, layer: int, parts: Mapping[str, slice], x: torch.Tensor, y: torch.Tensor) -> None:
        """Add B A x of each row's adapters to `y` in place; other rows of `y` are not touched.

        `x` [rows, in] is what the linear layers `parts` of `layer` read, and `y` [rows, out] what
        they gave, side by side: `parts` maps each module to its columns, in rising order.
        """
        stack = self._stack(layer, parts)
        if stack is None:
            return
        rows = self._rows
        inner = (x[rows] if isinstance(rows, slice) else x.index_select(0, rows)) @ stack.a.T
        if self._lacking is not None:
            # Not a product with 0: what overflows in one request's adapter stays there.
            inner = inner.masked_fill(self._mask(stack.owners, self._lacking), 0)
        for directions, columns, b in stack.products:
            if isinstance(rows, slice):
                y[rows, columns].addmm_(inner[:, directions], b.T)
            else:
                y[:, columns].index_add_(0, rows, inner[:, directions] @ b.T)

    def _mask(self, owners: tuple[int, ...], lacking: torch.Tensor) -> torch.Tensor:
        """[rows, directions]: whether a row lacks the owner of a direction."""
        mask = self._masks.get(owners)
        if mask is None:
            columns = torch.tensor(owners, device=lacking.device)
            mask = self._masks[owners] = lacking.index_select(1, columns)
        return mask

    def _stack(self, layer: int, parts: Mapping[str, slice]) -> Stack | None:
        if self._stacks is None:
            return _stacked(self._adapters, layer, parts)
        key = (layer, tuple(parts))
        if key not in self._stacks:
            with lasting():
                self._stacks[key] = _stacked(self._adapters, layer, parts)
        return self._stacks[key]


def _stacked(adapters: Sequence[Adapter], layer: int, parts: Mapping[str, slice]) -> Stack | None:
    """The factors of `parts` in `layer`, part after part; None where no adapter changes them."""
    factors: list[torch.Tensor] = []
    owners: list[int] = []
    products: list[tuple[slice, slice, torch.Tensor]] = []
    for module, columns in parts.items():
        found = [
            (index, pair)
            for index, adapter in enumerate(adapters)
            if (pair := adapter.pairs.get((layer, module))) is not None
        ]
        if not found:
            continue
        first = len(owners)
        owners += [index for index, pair in found for _ in range(pair.rank)]
        factors += [pair.a for _, pair in found]
        b = _joined([pair.b for _, pair in found], 1)
        products.append((slice(first, len(owners)), columns, b))
    if not factors:
        return None
    if len(products) > 1 and len(owners) <= NARROW:
        products = [_block_diagonal(products)]
    return Stack(_joined(factors, 0), tuple(owners), tuple(products))


def _block_diagonal(
    products: Sequence[tuple[slice, slice, torch.Tensor]],
) -> tuple[slice, slice, torch.Tensor]:
    first, last = products[0][1].start, products[-1][1].stop
    b = products[0][2].new_zeros(last - first, products[-1][0].stop)
    for directions, columns, block in products:
        b[columns.start - first : columns.stop - first, directions] = block
    return slice(0, b.shape[1]), slice(first, last), b


def _joined(tensors: list[torch.Tensor], dim: int) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def _first_row(span: Span) -> int:
    return span[0]


def _counted(adapters: Sequence[Adapter]) -> dict[tuple[str, int], Adapter]:
    """Adapters by digest and how often it came before, for one carried twice counts twice."""
    counted: dict[tuple[str, int], Adapter] = {}
    times: Counter[str] = Counter()
    for adapter in adapters:
        counted[adapter.digest, times[adapter.digest]] = adapter
        times[adapter.digest] += 1
    return counted
