"""StreamingLLM: the first tokens and the last ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from inference.kv.base import KVPolicy, Moment

if TYPE_CHECKING:
    from inference.native.attention import Heads
    from inference.native.compact import Compact
    from inference.native.step import View


class StreamingLLM(KVPolicy):
    """Keep `sinks` first and `recent` last entries of every head, counted anew from 0.

    Asked every `recent` prompt tokens, and after every token of the completion. Keys are held
    unrotated: positions are those within the cache, as in the paper.
    """

    sinks: int = Field(4, ge=0)
    recent: int = Field(252, ge=1)

    reindex: ClassVar[bool] = True
    source: ClassVar[str] = "Xiao et al. 2023, arXiv 2309.17453, section 3.2"

    @property
    def chunk(self) -> int:
        """Prompt tokens between two decisions."""
        return self.recent

    def most(self, prompt: int, completion: int) -> int:
        """Sinks, recent entries, and a chunk that was not looked at yet."""
        return min(prompt + completion, self.sinks + 2 * self.recent)

    def compress(
        self, cache: Compact, layer: int, view: View, heads: Heads, moment: Moment
    ) -> None:
        """Drop the middle of what is held."""
        if moment is Moment.PIECE:
            return
        import torch

        for head in cache.heads[layer]:
            surplus = head.count - self.sinks - self.recent
            if surplus > 0:
                entries = torch.arange(head.count, device=head.keys.device)
                head.keep(torch.cat([entries[: self.sinks], entries[self.sinks + surplus :]]))
