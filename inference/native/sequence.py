"""One row of work in the engine: its token ids and how far the key/value cache holds them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Status(StrEnum):
    """Where a sequence stands."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """Prompt and completion of one row; `blocks` hold the first `cached` of its `ids`.

    `wanted` is the first position whose logits are needed; None means the last one only, from
    which the next token is drawn. `expected` is a guess of its final length, for placing blocks.
    """

    ids: list[int]
    expected: int = 0
    salt: bytes = b""
    wanted: int | None = None
    arrival: int = -1
    status: Status = Status.WAITING
    cached: int = 0
    scheduled: int = 0
    reused: int = 0
    preemptions: int = 0
    turn: int = -1
    blocks: list[int] = field(default_factory=list)
    chain: list[bytes] = field(default_factory=list)
    published: int = 0
    aside: range = range(0)

    @property
    def remaining(self) -> int:
        """Tokens that are not in the cache yet."""
        return len(self.ids) - self.cached

    @property
    def reusable(self) -> int:
        """Leading tokens that may come from the cache: what yields wanted logits is computed."""
        last = len(self.ids) - 1
        return last if self.wanted is None else min(self.wanted, last)
