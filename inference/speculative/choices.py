"""Which guesses of several heads make a draft: a tree of ranks, parents before children.

A choice is the rank of each of its ancestors, and its own, in the list of the head at that depth:
(0,), (1,), (0, 0), (0, 2). As text: `0 1 0.0 0.2`. Source: Medusa (arXiv 2401.10774), tree
attention, and its code's `medusa_choices`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

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


def grow(paths: Mapping[Choice, int], nodes: int) -> tuple[Choice, ...]:
    """The `nodes` choices that were right most often, each behind its parent.

    `paths` counts, over some texts, the ranks at which the true continuation stood, as far as each
    was among the guesses. A draft has as many tokens accepted as the longest beginning of the true
    path it holds, so the beginnings that occur most often are the best tree of every size: no
    beginning occurs more often than its own. Medusa's greedy construction, without its assumption
    that heads err independently.
    """
    found = beginnings(paths)
    return tuple(sorted(found, key=lambda one: (-found[one], len(one), one))[:nodes])


def expected(paths: Mapping[Choice, int], choices: Sequence[Choice]) -> float:
    """Drafted tokens accepted per step, had the `choices` been drafted along the texts of `paths`.

    Texts that end, and guesses that all miss, count among the steps as the empty path.
    """
    found = beginnings(paths)
    return sum(found[one] for one in choices) / max(1, sum(paths.values()))


def beginnings(paths: Mapping[Choice, int]) -> Counter[Choice]:
    """How often a path begins with each choice."""
    found: Counter[Choice] = Counter()
    for path, count in paths.items():
        for end in range(1, len(path) + 1):
            found[path[:end]] += count
    return found
