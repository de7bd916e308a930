"""Random eviction: what every policy that chooses must beat at the same budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from inference.kv.base import KVPolicy, Moment

if TYPE_CHECKING:
    from inference.native.attention import Heads
    from inference.native.compact import Compact
    from inference.native.step import View


class Random(KVPolicy):
    """Keep `budget` entries of every head, chosen at random, and the `recent` last among them.

    Each layer and head chooses for itself; survivors keep their rotation and their order. The
    choice depends on `seed`, layer, head and the number of tokens read, and on nothing else.
    """

    budget: int = Field(256, ge=2)
    recent: int = Field(32, ge=1)
    seed: int = Field(0, ge=0, lt=2**31)

    source: ClassVar[str] = "a control, of no paper"

    @property
    def chunk(self) -> int:
        """Prompt tokens between two decisions."""
        return self.budget

    def most(self, prompt: int, completion: int) -> int:
        """What is kept, and a chunk that was not looked at yet."""
        return min(prompt + completion, 2 * self.budget)

    def compress(
        self, cache: Compact, layer: int, view: View, heads: Heads, moment: Moment
    ) -> None:
        """Drop a random choice of what is older than the recent entries."""
        if moment is Moment.PIECE:
            return
        import torch

        for at, head in enumerate(cache.heads[layer]):
            if head.count <= self.budget:
                continue
            recent = min(self.recent, self.budget)
            older = head.count - recent
            # Large odd factors keep the seeds of neighbouring layers, heads and tokens apart.
            mixed = self.seed + 1_000_003 * layer + 10_007 * at + 2_000_000_011 * view.positions[-1]
            draw = torch.Generator().manual_seed(mixed % 2**63)
            chosen = torch.randperm(older, generator=draw)[: self.budget - recent].sort().values
            kept = torch.cat([chosen, torch.arange(older, head.count)])
            head.keep(kept.to(head.keys.device))
