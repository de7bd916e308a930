"""What a KV-cache policy is: when it is asked, what it sees, and what it may do.

Configurations are light pydantic models; tensors reach a policy only while a request runs.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from inference.native.attention import Heads
    from inference.native.compact import Compact
    from inference.native.step import View


class Moment(StrEnum):
    """How far a sequence is when its policy is asked."""

    PIECE = "piece"
    """Part of a prompt chunk; more of it follows in a later step."""
    CHUNK = "chunk"
    """The end of a prompt chunk of `KVPolicy.chunk` tokens."""
    PROMPT = "prompt"
    """The end of the prompt."""
    TOKEN = "token"
    """One more token of the completion."""


class KVPolicy(BaseModel):
    """Decides what the cache of one request keeps; per layer, after that layer's attention.

    A policy changes what the model sees, so its outputs are not those of the full cache unless
    nothing was dropped. `chunk` is the number of prompt tokens after which it is asked; None asks
    at the end of the prompt only. `reindex` holds keys unrotated and counts positions within what
    is left. A request reserves `most` entries per head when it is admitted and is never preempted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    lossless: ClassVar[bool] = False
    reindex: ClassVar[bool] = False
    source: ClassVar[str] = ""
    """Paper and section the rule is from."""

    @property
    def chunk(self) -> int | None:
        """Prompt tokens between two decisions."""
        return None

    def most(self, prompt: int, completion: int) -> int:
        """Upper bound of the entries a head holds at any time; their memory is set apart.

        What the policy remembers is measured, but not set apart: keep it small.
        """
        return prompt + completion

    def compress(
        self, cache: Compact, layer: int, view: View, heads: Heads, moment: Moment
    ) -> None:
        """Shrink `cache.heads[layer]`, whose last `view.rows` entries this step has added.

        `heads` holds the step's query, key and value; the view's rows are [view.start, view.end).
        What a policy must remember of a request goes into `cache.memory`, as tensors. An exception
        ends the request as failed. After a tree of drafted tokens `view` and `heads` are those of
        the accepted ones.
        """
        raise NotImplementedError(type(self).__name__)
