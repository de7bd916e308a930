"""The whole cache: nothing is dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from inference.kv.base import KVPolicy, Moment

if TYPE_CHECKING:
    from inference.native.attention import Heads
    from inference.native.compact import Compact
    from inference.native.step import View


class Full(KVPolicy):
    """Keep every entry; the default, for which requests share the engine's store."""

    lossless: ClassVar[bool] = True

    def compress(
        self, cache: Compact, layer: int, view: View, heads: Heads, moment: Moment
    ) -> None:
        """Keep everything."""
