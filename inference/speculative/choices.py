"""Which guesses of several heads make a draft: a tree of ranks, parents before children.

A choice is the rank of each of its ancestors, and its own, in the list of the head at that depth:
(0,), (1,), (0, 0), (0, 2). As text: `0 1 0.0 0.2`. Source: Medusa (arXiv 2401.10774), tree
attention, and its code's `medusa_choices`.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from inference.errors import DrafterInputError
from inference.speculative.base import MOST

Choice = tuple[int, ...]
RANKS = 10
"""Guesses of one head that are used at most."""


def read_choices(text: str) -> tuple[Choice, ...]:
    """The choices of a text, the likeliest first; DrafterInputError if they make no tree."""
    try:
        found = tuple(tuple(int(rank) for rank in word.split(".")) for word in text.split())
    except ValueError as error:
        raise DrafterInputError(
            f"choices {text!r} are not ranks such as '0 1 0.0 0.0.0' ({error})", "choices"
        ) from error
    seen: set[Choice] = {()}
    for one in found:
        if one in seen or one[:-1] not in seen or not all(0 <= rank < RANKS for rank in one):
            raise DrafterInputError(
                f"choice {spell_choice(one)!r} of {text!r} stands twice, before its parent, or "
                f"names a rank outside 0 to {RANKS - 1}; list each once, behind its parent",
                "choices",
            )
        seen.add(one)
    if not 1 <= len(found) <= MOST:
        raise DrafterInputError(f"{len(found)} choices; give 1 to {MOST}", "choices")
    return found


def spell_choice(choice: Choice) -> str:
    """One choice as text."""
    return ".".join(map(str, choice))


def spell_choices(choices: Sequence[Choice]) -> str:
    """The text that `read_choices` reads."""
    return " ".join(map(spell_choice, choices))


def grow(accuracy: Sequence[Sequence[float]], nodes: int) -> tuple[Choice, ...]:
    """The `nodes` choices that are likeliest to be right, each behind its parent.

    `accuracy[k][i]` is how often guess i of head k is right; a node's value is the product along
    its path, as if heads erred independently. Source: Medusa's greedy tree construction. Since a
    value never exceeds that of its parent, nor of a sibling before it where ranks are ordered,
    taking the best open node each time gives the best tree of every size.
    """
    found: list[Choice] = []
    open_: list[tuple[float, Choice]] = [(-accuracy[0][0], (0,))]
    while open_ and len(found) < nodes:
        value, best = heapq.heappop(open_)
        found.append(best)
        depth, rank = len(best), best[-1]
        if rank + 1 < min(RANKS, len(accuracy[depth - 1])):
            above = value / accuracy[depth - 1][rank] if accuracy[depth - 1][rank] else 0.0
            heapq.heappush(open_, (above * accuracy[depth - 1][rank + 1], (*best[:-1], rank + 1)))
        if depth < len(accuracy):
            heapq.heappush(open_, (value * accuracy[depth][0], (*best, 0)))
    return tuple(found)


def expected(accuracy: Sequence[Sequence[float]], choices: Sequence[Choice]) -> float:
    """Drafted tokens accepted per step, if heads erred independently."""
    total = 0.0
    for choice in choices:
        value = 1.0
        for depth, rank in enumerate(choice):
            value *= accuracy[depth][rank]
        total += value
    return total
