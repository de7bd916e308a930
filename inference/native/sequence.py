"""One row of work in the engine: its token ids and how far the key/value cache holds them."""

from __future__ import annotations

from collections.abc import Sequence as Several
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference.adapters.lora import Adapter
    from inference.native.compact import Compact
    from inference.taps import Taps


class Status(StrEnum):
    """Where a sequence stands."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Draft:
    """A tree of guessed tokens below the last token of a sequence, parents before children.

    `parents[i]` is the place of token i's parent in the draft, -1 for the sequence's last token.
    """

    ids: tuple[int, ...]
    parents: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.ids) == len(self.parents)
        assert all(-1 <= parent < at for at, parent in enumerate(self.parents))

    def first(self, count: int) -> Draft:
        """The tree of the first `count` tokens."""
        return Draft(self.ids[:count], self.parents[:count])

    def depths(self) -> list[int]:
        """Steps from the sequence's last token to each token, 1 for its children."""
        found: list[int] = []
        for parent in self.parents:
            found.append(1 if parent < 0 else found[parent] + 1)
        return found

    def ancestors(self) -> list[list[int]]:
        """Per token the draft's tokens it continues, itself last."""
        found: list[list[int]] = []
        for at, parent in enumerate(self.parents):
            found.append([*(found[parent] if parent >= 0 else ()), at])
        return found


@dataclass(slots=True, eq=False)
class Sequence:
    """Prompt and completion of one row; `blocks` hold the first `cached` of its `ids`.

    `wanted` is the first position whose logits are needed; None means the last one only, from
    which the next token is drawn. The first `prompt` of its ids were given. `expected` is a guess
    of its final length, for placing blocks. A `draft` is computed along with the last token, and
    every row of it yields logits. A sequence with a `cache` of its own holds no blocks; it keeps
    `reserve` of them free instead, reads its prompt in pieces that end at multiples of `chunk`,
    and is never preempted. `group` are rows that come and go together, this one among them, or
    nothing. With `shows_hidden` its wanted rows come with their final hidden states.
    """

    ids: list[int]
    expected: int = 0
    salt: bytes = b""
    prompt: int = 0
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
    draft: Draft | None = None
    cache: Compact | None = None
    reserve: int = 0
    reserved: int = 0
    chunk: int | None = None
    skip: range = range(0)
    adapters: tuple[Adapter, ...] = ()
    taps: Taps | None = None
    shows_hidden: bool = False
    group: Several[Sequence] = ()

    @property
    def remaining(self) -> int:
        """Tokens that are not in the cache yet."""
        return len(self.ids) - self.cached

    @property
    def reusable(self) -> int:
        """Leading tokens that may come from the cache: what yields wanted logits is computed."""
        if self.cache is not None or self.taps is not None:
            return 0  # what is observed or shrunk is computed for this request alone
        last = len(self.ids) - 1
        return last if self.wanted is None else min(self.wanted, last)
