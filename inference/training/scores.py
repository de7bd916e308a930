"""How often heads guess right, beside what counting alone would reach."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import torch
from torch.nn.functional import linear

from inference.speculative.choices import RANKS, Choice
from inference.speculative.medusa_heads import MedusaHeads
from inference.training.answers import Answer


@dataclass(frozen=True, slots=True)
class Ranks:
    """`hits[k][i]`: how often guess i for depth k was the token; `counts[k]`: of how many.

    `paths` counts the ranks along which the texts go on, as far as they are guessed.
    """

    hits: list[list[int]]
    counts: list[int]
    paths: Counter[Choice] = field(default_factory=Counter)

    def within(self) -> list[list[float]]:
        """Share of the tokens that stood among the first 1, 2, ... guesses."""
        found: list[list[float]] = []
        for row, count in zip(self.hits, self.counts, strict=True):
            sums = [sum(row[: at + 1]) for at in range(len(row))]
            found.append([round(one / max(1, count), 4) for one in sums])
        return found


def ranks(
    heads: MedusaHeads,
    output: torch.Tensor,
    answers: Sequence[Answer],
    embedding: torch.Tensor | None = None,
) -> Ranks:
    """Heads against the tokens of `answers`; `output` [tokens, hidden] is what they guess by.

    `embedding` [vocabulary, hidden] is for a chain, which reads the true tokens along the way: a
    draft is of use as far as its guesses are those.
    """
    found = Ranks([[0] * RANKS for _ in range(heads.depth)], [0] * heads.depth)
    for one in answers:
        drawn = None if embedding is None else embedding[one.ids]
        rows = [
            _standing(heads, output, state, one.ids[1 + depth :])
            for depth, state in enumerate(heads.states(one.hidden.to(heads.blocks), drawn))
        ]
        for depth, row in enumerate(rows):
            found.counts[depth] += len(row)
            for rank in row:
                if rank >= 0:
                    found.hits[depth][rank] += 1
        for at in range(len(rows[0])):
            met = (row[at] for row in rows if at < len(row))
            found.paths[tuple(takewhile(lambda rank: rank >= 0, met))] += 1
    return found


def _standing(
    heads: MedusaHeads, output: torch.Tensor, states: torch.Tensor, truth: torch.Tensor
) -> list[int]:
    """The rank of each true token among the first guesses of a head, or -1."""
    guesses = linear(states[: len(truth)], output).topk(min(RANKS, len(output)), dim=1).indices
    ids = guesses if heads.tokens is None else heads.tokens[guesses]
    right = ids == truth[:, None]
    found: list[int] = torch.where(right.any(1), right.int().argmax(1), -1).tolist()
    return found


def baselines(
    learned: Sequence[Answer], answers: Sequence[Answer], heads: int
) -> tuple[Ranks, Ranks]:
    """What guessing by counts in `learned` reaches: the commonest tokens, and those after a token.

    The second looks at the last token of the text, which is drawn behind the state of heads.
    """
    common = Counter(token for one in learned for token in one.ids.tolist())
    always = [token for token, _ in common.most_common(RANKS)]
    after: list[defaultdict[int, Counter[int]]] = [defaultdict(Counter) for _ in range(heads)]
    for one in learned:
        for head, last, token in _pairs(one, heads):
            after[head][last][token] += 1
    best = [
        {last: [token for token, _ in found.most_common(RANKS)] for last, found in row.items()}
        for row in after
    ]
    unigram, bigram = (Ranks([[0] * RANKS for _ in range(heads)], [0] * heads) for _ in range(2))
    for one in answers:
        for head, last, token in _pairs(one, heads):
            _count(unigram, head, always, token)
            _count(bigram, head, best[head].get(last, always), token)
    return unigram, bigram


def _pairs(one: Answer, heads: int) -> Iterator[tuple[int, int, int]]:
    """Head, last token and the token that the head stands for, wherever there are both."""
    ids = one.ids.tolist()
    for head in range(heads):
        yield from ((head, last, token) for last, token in zip(ids, ids[1 + head :], strict=False))


def _count(found: Ranks, head: int, guesses: Sequence[int], token: int) -> None:
    found.counts[head] += 1
    if token in guesses:
        found.hits[head][guesses.index(token)] += 1
