"""Documents to passages: token-aware spans with exact character offsets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from retrieval.errors import RetrievalInputError

Offsets = Callable[[str], list[tuple[int, int]]]
"""A tokenizer as this module needs it: the character span of every token of a text."""

BLOCK = 100_000
"""Characters tokenized at a time, so that a long document needs no memory of its size."""
LONGEST_TOKEN = 100
"""Characters of the longest token kept whole (BERT's limit for a word)."""

PARAGRAPH, SENTENCE, WORD, INSIDE = 3, 2, 1, 0
"""How good a place between two tokens is for a cut."""

SENTENCE_END = re.compile(r"""[.!?\u2026]["'\u201d\u2019)\]]*$""")
WIDE_SENTENCE_END = "\u3002\uff01\uff1f"
"""Full-width full stop, exclamation and question mark: no space follows them."""


class ChunkSettings(BaseModel):
    """Size of a passage and overlap of neighbours, in tokens.

    The default fills MiniLM's window of 256, of which two frame the text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: int = Field(default=254, ge=32, le=254)
    overlap: int = Field(default=32, ge=0)

    @model_validator(mode="after")
    def _overlap_fits(self) -> ChunkSettings:
        if self.overlap > self.tokens // 4:
            raise ValueError(f"overlap must be at most a quarter of tokens={self.tokens}")
        return self


@dataclass(frozen=True, slots=True)
class Units:
    """Consecutive pieces of a text: piece i is `[starts[i], ends[i])`, `cuts[i]` its left edge."""

    starts: list[int]
    ends: list[int]
    cuts: list[int]


def chunk(text: str, offsets: Offsets, size: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Spans `(start, end)` of at most `size` tokens that cover all but white space.

    A span ends at the last paragraph end in its second half, else at a sentence end, else
    between two words. Neighbours share up to `overlap` tokens, from a sentence start
    where there is one; an overlap of at most a quarter of `size` (as `ChunkSettings` demands)
    makes every span reach further than the one before.
    """
    if len(text) <= BLOCK and len(offsets(text)) + len(text) // LONGEST_TOKEN < size:
        if stripped := text.strip():  # fits as a whole, whatever its units are
            start = text.index(stripped[0])
            yield start, start + len(stripped)
        return
    units = _units(text, offsets)
    count = len(units.starts)
    first = 0
    while first < count:
        last = min(first + size, count)
        if last < count:
            last = _best_cut(units.cuts, first + size // 2, last)
        yield units.starts[first], units.ends[last - 1]
        if last == count:
            return
        first = _next_start(units.cuts, max(last - overlap, first + 1), last)


def _best_cut(cuts: list[int], low: int, high: int) -> int:
    """The best place in (low, high]; the last one among equals."""
    return max(range(low + 1, high + 1), key=lambda place: (cuts[place], place))


def _next_start(cuts: list[int], low: int, end: int) -> int:
    """Where the span after one that ends at `end` starts: in [low, end], sentences first."""
    for wanted in (SENTENCE, WORD):
        for place in range(low, end):
            if cuts[place] >= wanted:
                return place
    return end


def _units(text: str, offsets: Offsets) -> Units:
    """Tokens widened over the characters that the tokenizer drops, so that nothing is lost."""
    starts: list[int] = []
    for low, high in _blocks(text):
        block = text[low:high]
        found = [low + start for start, end in offsets(block) if end > start]
        first = low + len(block) - len(block.lstrip())
        if first < high:
            starts.extend([first, *(start for start in found if start > first)])
    units = Units([], [], [])
    for start, stop in pairwise([*starts, len(text)]):
        if not units.starts or start > units.starts[-1]:
            _add(units, text, start, stop)
    return units


def _add(units: Units, text: str, start: int, stop: int) -> None:
    """Append `[start, stop)` less the space at its end, in pieces if it is overlong."""
    end = start + len(text[start:stop].rstrip())
    for piece in range(start, end, LONGEST_TOKEN):
        units.cuts.append(_cut(text, units.ends[-1] if units.ends else 0, piece))
        units.starts.append(piece)
        units.ends.append(min(piece + LONGEST_TOKEN, end))


def _cut(text: str, end: int, start: int) -> int:
    """How good the place between a unit that ends at `end` and one at `start` is for a cut."""
    gap = text[end:start]
    if not gap:
        return SENTENCE if end and text[end - 1] in WIDE_SENTENCE_END else INSIDE
    if gap.count("\n") > 1:
        return PARAGRAPH
    if "\n" in gap or SENTENCE_END.search(text[max(0, end - 4) : end]):
        return SENTENCE
    return WORD


def _blocks(text: str) -> Iterator[tuple[int, int]]:
    """Spans of about `BLOCK` characters that end at white space where there is any."""
    low = 0
    while low < len(text):
        high = min(low + BLOCK, len(text))
        if high < len(text):
            space = max(text.rfind(" ", low, high), text.rfind("\n", low, high))
            high = space + 1 if space > low else high
        yield low, high
        low = high


def chunk_settings(options: dict[str, int]) -> ChunkSettings:
    """Settings from options; `RetrievalInputError` names the option that is out of range."""
    try:
        return ChunkSettings(**options)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "overlap"
        raise RetrievalInputError(
            f"chunk option {name}={options.get(name)!r}: {first['msg']}"
        ) from None
