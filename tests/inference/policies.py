"""Cache policies for tests alone, and the rule that each policy must follow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from inference.kv import Full, KVPolicy, Moment, Random, StreamingLLM
from inference.native.engine import NativeEngine
from tests.inference.dense import Entry, Rule


class Uneven(KVPolicy):
    """The last `budget` + 3 layer + 2 head entries, decided at the end of the prompt only."""

    budget: int = 6

    def most(self, prompt: int, completion: int) -> int:
        return min(prompt + completion, max(prompt, self.budget + 5) + 1)

    def compress(self, cache: Any, layer: int, view: Any, heads: Any, moment: Moment) -> None:
        if moment is Moment.PIECE:
            return
        for at, head in enumerate(cache.heads[layer]):
            count = self.budget + 3 * layer + 2 * at
            if head.count > count:
                head.keep(torch.arange(head.count - count, head.count))


class Merging(KVPolicy):
    """The two oldest entries become their mean until `budget` are left."""

    budget: int = 8

    @property
    def chunk(self) -> int:
        return self.budget

    def most(self, prompt: int, completion: int) -> int:
        return min(prompt + completion, 2 * self.budget)

    def compress(self, cache: Any, layer: int, view: Any, heads: Any, moment: Moment) -> None:
        if moment is Moment.PIECE:
            return
        for head in cache.heads[layer]:
            keys, values, positions = head.keys, head.values, head.positions
            while len(keys) > self.budget:
                keys = torch.cat([keys[:2].mean(0, keepdim=True), keys[2:]])
                values = torch.cat([values[:2].mean(0, keepdim=True), values[2:]])
                positions = positions[1:]
            head.replace(keys, values, positions)


class Ends(KVPolicy):
    """Half of `budget` from the beginning, half from the end, counted anew; more in head 1."""

    budget: int = 8
    reindex: ClassVar[bool] = True

    @property
    def chunk(self) -> int:
        return 5

    def most(self, prompt: int, completion: int) -> int:
        return min(prompt + completion, self.budget + 2 + 5)

    def compress(self, cache: Any, layer: int, view: Any, heads: Any, moment: Moment) -> None:
        if moment is Moment.PIECE:
            return
        for at, head in enumerate(cache.heads[layer]):
            half = self.budget // 2 + at
            if head.count > 2 * half:
                middle = torch.arange(head.count)
                head.keep(middle[(middle < half) | (middle >= head.count - half)])


class Loud(KVPolicy):
    """The `budget` entries whose values were largest, later ones a little larger; remembers that.

    Without the latter two entries of one token would tie in the first layer.
    """

    budget: int = 8

    @property
    def chunk(self) -> int:
        return 4

    def most(self, prompt: int, completion: int) -> int:
        return min(prompt + completion, self.budget + 4)

    def compress(self, cache: Any, layer: int, view: Any, heads: Any, moment: Moment) -> None:
        for at, head in enumerate(cache.heads[layer]):
            sizes = heads.value[view.start : view.end, at].norm(dim=-1)
            sizes = sizes + 0.01 * torch.tensor(list(view.positions))
            name = f"{layer}.{at}"
            if name in cache.memory:
                sizes = torch.cat([cache.memory[name], sizes])
            if moment is not Moment.PIECE and len(sizes) > self.budget:
                kept = sizes.topk(self.budget).indices.sort().values
                head.keep(kept)
                sizes = sizes[kept]
            cache.memory[name] = sizes


class Broken(KVPolicy):
    """Raises at the `after`th token."""

    after: int = 9

    def compress(self, cache: Any, layer: int, view: Any, heads: Any, moment: Moment) -> None:
        if view.positions[-1] >= self.after:
            raise ZeroDivisionError("this policy is broken")


@dataclass(frozen=True)
class Row:
    """A policy that keeps little, one that keeps all, and what the little one must keep."""

    name: str
    tight: KVPolicy
    roomy: KVPolicy
    rule: Rule | None
    sizes: tuple[tuple[int, ...], ...] | None
    """Entries per layer and head once the budget is used up, None for no budget."""


def _last(layer: int, head: int, held: list[Entry], read: int) -> list[Entry]:
    return held[-(6 + 3 * layer + 2 * head) :]


def _merged(layer: int, head: int, held: list[Entry], read: int) -> list[Entry]:
    while len(held) > 8:
        (k0, v0, _), (k1, v1, place), *rest = held
        held = [((k0 + k1) / 2, (v0 + v1) / 2, place), *rest]
    return held


def _ends(layer: int, head: int, held: list[Entry], read: int) -> list[Entry]:
    half = 4 + head
    return held if len(held) <= 2 * half else held[:half] + held[-half:]


def _loud(layer: int, head: int, held: list[Entry], read: int) -> list[Entry]:
    order = sorted(range(len(held)), key=lambda at: -float(held[at][1].norm()) - 0.01 * held[at][2])
    return [held[at] for at in sorted(order[:8])]


def _streaming(layer: int, head: int, held: list[Entry], read: int) -> list[Entry]:
    return held if len(held) <= 10 else held[:3] + held[-7:]


def _same(*count: int) -> tuple[tuple[int, ...], ...]:
    return (count, count)


ROWS = [
    Row("full", Full(), Full(), lambda layer, head, held, read: held, None),
    Row("random", Random(budget=8, recent=3, seed=1), Random(budget=500), None, _same(8, 8)),
    Row(
        "streaming_llm",
        StreamingLLM(sinks=3, recent=7),
        StreamingLLM(sinks=3, recent=500),
        _streaming,
        _same(10, 10),
    ),
    Row("uneven", Uneven(), Uneven(budget=500), _last, ((6, 8), (9, 11))),
    Row("merging", Merging(), Merging(budget=500), _merged, _same(8, 8)),
    Row("ends", Ends(), Ends(budget=1000), _ends, _same(8, 10)),
    Row("loud", Loud(), Loud(budget=500), _loud, _same(8, 8)),
]


@dataclass(frozen=True)
class Look:
    """The private caches of one request after a step: positions, bytes, tokens read."""

    read: int
    moment: Moment
    positions: list[list[list[int]]]
    bytes: int
    peak: int
    reserved: int


@contextmanager
def watched(engine: NativeEngine) -> Iterator[list[Look]]:
    """Collects a look at every private cache after every step."""
    core = engine._core()
    found: list[Look] = []
    step = core.runner.step

    def looking(picked: Any, copies: Any = ()) -> Any:
        results = step(picked, copies)
        for row in picked:
            if row.cache is not None and row.cache.moment is not None:
                found.append(
                    Look(
                        row.cached + row.scheduled,
                        row.cache.moment,
                        [[h.positions.tolist() for h in layer] for layer in row.cache.heads],
                        row.cache.bytes,
                        row.cache.peak,
                        row.reserved * core.blocks.size * core.runner.store.token_bytes,
                    )
                )
        return results

    core.runner.step = looking  # type: ignore[method-assign]
    try:
        yield found
    finally:
        core.runner.step = step  # type: ignore[method-assign]
