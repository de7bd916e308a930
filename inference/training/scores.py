"""How often heads guess right, beside what counting alone would reach."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import linear

from inference.speculative.choices import RANKS
from inference.speculative.medusa_heads import MedusaHeads
from inference.training.answers import Answer


@dataclass(frozen=True, slots=True)
class Ranks:
    """`hits[k][i]`: how often guess i of head k was the token; `counts[k]`: of how many."""

    hits: list[list[int]]
    counts: list[int]

    def accuracy(self) -> list[list[float]]:
        """Share of the tokens that each guess alone was right about."""
        return [
            [hit / max(1, count) for hit in row]
            for row, count in zip(self.hits, self.counts, strict=True)
        ]

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

    `embedding` [vocabulary, hidden] is for heads that read the drawn token.
    """
    hits = torch.zeros(heads.count, RANKS, dtype=torch.int64)
    counts = [0] * heads.count
    for one in answers:
        drawn = None if embedding is None else embedding[one.ids]
        states = heads.states(one.hidden.to(heads.blocks), drawn)
        for head in range(heads.count):
            truth = one.ids[1 + head :]
            inner = states[: len(truth), head]
            if not len(truth):
                continue
            guesses = linear(inner, output).topk(min(RANKS, len(output)), dim=1).indices
            ids = guesses if heads.tokens is None else heads.tokens[guesses]
            hits[head, : ids.shape[1]] += (ids == truth[:, None]).sum(0)
            counts[head] += len(truth)
    return Ranks(hits.tolist(), counts)


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
