"""Prompt lookup: what followed the last tokens when they occurred before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from inference.native.sequence import Draft
from inference.speculative.base import MOST, Drafter, Proposal, Proposer, Start, Turn

if TYPE_CHECKING:
    from inference.native.model import Model


class PromptLookup(Drafter):
    """Copies the continuation of the latest earlier occurrence of the last tokens.

    The longest suffix of at most `ngram` tokens that occurs before, in the request's references,
    its prompt or its own output, and the `tokens` that followed it there. Source: Saxena 2023
    (prompt lookup decoding), and transformers' `prompt_lookup_num_tokens`, which takes the first
    occurrence where this takes the latest.
    """

    source: ClassVar[str] = "Saxena 2023, prompt lookup decoding"
    reaches: ClassVar[bool] = True

    tokens: int = Field(10, ge=1, le=MOST, description="longest draft")
    ngram: int = Field(3, ge=1, le=16, description="longest suffix that is looked up")

    def open(self, model: Model) -> Proposer:
        """Nothing is loaded."""
        return _Lookup(self)


class _Lookup(Proposer):
    """State of a request: where each n-gram of its text was continued last."""

    def __init__(self, options: PromptLookup) -> None:
        self._options = options

    def begin(self, start: Start) -> Any:
        """Index references and prompt."""
        index = Index(self._options.ngram)
        for text in (*start.references, start.prompt):
            index.begin()
            index.extend(text)
        return index

    def propose(self, turns: Sequence[Turn]) -> Sequence[Proposal | None]:
        """A chain for each request whose last tokens occurred before."""
        return [self._chain(turn) for turn in turns]

    def _chain(self, turn: Turn) -> Proposal | None:
        index: Index = turn.state
        index.extend(turn.ids[len(turn.ids) - turn.fresh :])
        found = index.after(min(self._options.tokens, turn.room, turn.depth))
        index.turns += 1
        if not found:
            index.empty += 1
            return None
        return Proposal(Draft(tuple(found), tuple(range(-1, len(found) - 1))))

    def notes(self, state: Any) -> dict[str, object]:
        """How often nothing was found, and the fallback where that was always."""
        index: Index = state
        notes: dict[str, object] = {"turns": index.turns, "empty": index.empty}
        if index.turns and index.empty == index.turns:
            notes["fallback"] = "plain decoding: nothing that was read was found to go on"
        return notes


class Index:
    """All texts of a request one behind the other; n-grams never reach over the end of one.

    `turns` were asked, of which `empty` found nothing.
    """

    def __init__(self, ngram: int) -> None:
        self._ngram = ngram
        self._ids: list[int] = []
        self._first = 0
        self.turns = self.empty = 0
        self._places: dict[tuple[int, ...], int] = {}

    def begin(self) -> None:
        """Another text."""
        self._first = len(self._ids)

    def add(self, token: int) -> None:
        """One more token; n-grams before it are now known to be continued."""
        end = len(self._ids)
        for length in range(1, min(self._ngram, end - self._first) + 1):
            self._places[tuple(self._ids[end - length : end])] = end
        self._ids.append(token)

    def extend(self, tokens: Sequence[int]) -> None:
        """More tokens of the text."""
        for token in tokens:
            self.add(token)

    def after(self, most: int, ahead: Sequence[int] = (), least: int = 1) -> list[int]:
        """Up to `most` tokens that followed the longest suffix which occurred before.

        The suffix, of at least `least` tokens, is that of the text and of `ahead`, which only
        stands behind it for this question.
        """
        tail = [*self._ids[max(self._first, len(self._ids) - self._ngram) :], *ahead]
        for length in range(min(self._ngram, len(tail)), least - 1, -1):
            place = self._places.get(tuple(tail[-length:]))
            if place is not None:
                return self._ids[place : place + most]
        return []
