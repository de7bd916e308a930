"""In-Context RALM: a search every few tokens, for the last ones. The peer of triggers that decide.

Source: Ram et al., "In-Context Retrieval-Augmented Language Models", arXiv 2302.00083, section 3:
every s tokens (the stride) the last l tokens are the query, and what is found stands before the
prefix. Deviations: passages of earlier searches stay, as with every trigger here, where the paper
replaces them; the first search comes behind `stride` tokens, not before the first one; the query
is whole words, of the question too where the answer is shorter, and the role names of a chat
template are among them. The paper's s is 4 and its l 32; 4 means a search every few words, so 16 is
the default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from agents.watching import Judge, Place, Trigger
from inference.watched import Watched


@dataclass(frozen=True, slots=True)
class Strides:
    """A search behind every `stride` tokens of an answer, for the last `tokens` before it."""

    stride: int
    tokens: int
    query_tokens: int = 0

    def weights(self, layers: int) -> list[float]:
        """It looks at no state: the last one stands for all."""
        return [0.0] * layers + [1.0]

    def place(self, seen: Watched, first: int, end: int, kept: int) -> Place | None:
        """The first token behind a whole number of strides."""
        for position in range(max(seen.start, first), min(end, len(seen.ids))):
            behind = kept + position - seen.start
            if behind and behind % self.stride == 0:
                return Place(position, float(seen.probabilities[position - seen.start]))
        return None

    def words(self, seen: Watched, position: int) -> list[str]:
        """The words of the last tokens before `position`."""
        return last_words(seen.pieces, position, self.tokens)


class Ralm(Trigger):
    """In-Context RALM: searches every `stride` tokens for the last `tokens` ones.

    Source: Ram et al., arXiv 2302.00083; deviations in `agents.ralm`.
    """

    source: ClassVar[str] = "In-Context RALM, arXiv 2302.00083"

    stride: int = Field(16, ge=1, le=256, description="s: tokens between two searches")
    tokens: int = Field(32, ge=1, le=256, description="l: last tokens that are the query")

    def watching(self, model: str, digest: str) -> Judge:
        """Every model is judged alike."""
        return Strides(self.stride, self.tokens)


def last_words(pieces: Sequence[str], end: int, count: int) -> list[str]:
    """Words of the last `count` tokens before `end`, from the first whole one on."""
    first = max(0, end - count)
    while 0 < first < end and _joined(pieces[first - 1], pieces[first]):
        first += 1
    return "".join(one or " " for one in pieces[first:end]).split()


def _joined(left: str, right: str) -> bool:
    """Whether two pieces belong to one word."""
    return bool(left and right) and not left[-1].isspace() and not right[0].isspace()
