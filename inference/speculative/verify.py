"""The only place that accepts drafted tokens.

A rule walks from the last token of a sequence down its draft. At every node it compares what the
target would say there with the drafted children, and either goes on to one of them or ends with a
token of its own: a step gives the accepted path and one token more, never less than one.

Shapes: `logits` [vocabulary] are the target's at one node, after grammar, penalty, temperature and
filters (`inference.native.sampling.process`); `drawn` [tokens, vocabulary] as in `Proposal`. What
is called p, q and p_hat are float64 probabilities [vocabulary] of the target, of the drafter and of
the target tilted towards the drafter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import torch

from inference.native.sampling import draw, most_probable, uniform
from inference.native.sequence import Draft

PLAIN = 0
"""Lane of the number that plain decoding draws a position's token with."""
REST = 1
"""Lane of the number that draws what is left after all drafted tokens of a position failed."""
TRIALS = 2
"""Lane of the trial of the first sibling; those of the next ones follow."""
DRAFTING = 256
"""First of the lanes that drafters may draw with: a number that drew a token must not judge it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The nodes of a draft that were accepted, parent to child, and the token that follows."""

    path: tuple[int, ...]
    token: int


@dataclass(frozen=True, slots=True)
class Case:
    """A draft and what the target says about it.

    `logits(node, path)` are the target's after a node (-1 is the sequence's last token), reached by
    the nodes `path`; asked for where they are needed only, depth first. `start` is the position
    that a child of the last token has in prompt plus completion; random numbers depend on seed,
    position and lane only.
    """

    draft: Draft
    logits: Callable[[int, Sequence[int]], torch.Tensor]
    greedy: bool
    seed: int
    start: int
    drawn: torch.Tensor | None = None
    _below: dict[int, list[int]] = field(default_factory=dict)

    def children(self, node: int) -> Sequence[int]:
        """Drafted continuations of a node, in the order they were drafted."""
        if not self._below:
            for at, parent in enumerate(self.draft.parents):
                self._below.setdefault(parent, []).append(at)
        return self._below.get(node, ())

    def number(self, depth: int, lane: int = PLAIN) -> float:
        """A number in [0, 1) for the token at `depth` (0: child of the last token).

        Lanes are independent of each other, and a rule asks for each at most once per position.
        """
        return uniform(self.seed, self.start + depth, lane)

    def row(self, node: int, like: torch.Tensor) -> torch.Tensor:
        """What the token of a node was drawn from, where `like` [vocabulary] lies.

        AssertionError if it cannot have been: a rule would accept such a token for ever.
        """
        assert self.drawn is not None, "a draft whose tokens were not drawn has no rows"
        row = self.drawn[node].to(like)
        if not float(row[self.draft.ids[node]]) > 0:
            raise AssertionError(f"draft token {node} was drawn with a probability of 0 by its row")
        return row


class Rule(Protocol):
    """How a draft is accepted; `lossless` if the target's own distribution is kept."""

    name: ClassVar[str]

    @property
    def lossless(self) -> bool:
        """Whether outputs are distributed as without a draft."""
        ...

    def notes(self) -> Mapping[str, object]:
        """What a result says about it beyond its name."""
        ...

    def verify(self, case: Case) -> Verdict:
        """What of a draft is accepted, and the token behind it."""
        ...


Choice = tuple[int | None, int]
"""The child to go on to, or None and the token to end with."""


def walk(case: Case, choose: Callable[[int, Sequence[int]], Choice]) -> Verdict:
    """From child to child, as `choose(node, path)` says, up to a token of the target's own."""
    path: list[int] = []
    while True:
        child, token = choose(path[-1] if path else -1, path)
        if child is None:
            return Verdict(tuple(path), token)
        path.append(child)


@dataclass(frozen=True)
class Match:
    """Go on to the child that equals what the target draws itself; exact for greedy and sampling.

    The draw is the one plain decoding makes at that position, so that seeded outputs are the same,
    token by token. Source: Lookahead (arXiv 2312.12728), verification; SpecInfer's naive sampling.
    """

    name: ClassVar[str] = "match"
    lossless: ClassVar[bool] = True

    def notes(self) -> Mapping[str, object]:
        """Nothing more."""
        return {}

    def verify(self, case: Case) -> Verdict:
        """The longest path of the target's own tokens."""

        def choose(node: int, path: Sequence[int]) -> Choice:
            logits = case.logits(node, path)
            token = most_probable(logits) if case.greedy else _own(case, logits, len(path))
            ids = case.draft.ids
            return next((at for at in case.children(node) if ids[at] == token), None), token

        return walk(case, choose)


@dataclass(frozen=True)
class Rejection:
    """Speculative sampling over trees: outputs keep the target's distribution, whatever was drawn.

    A child is accepted with min(1, p/q); each failure leaves norm(max(p - q, 0)) for the next
    sibling, in the order they were drafted, and in the end for a draw. That is exact for siblings
    drawn with and without replacement, since every node carries the row of its own draw. It holds
    if whether a node is in the draft, and behind which siblings, was settled before its token was
    drawn: a drafter may stop below an unlikely token, but neither drop it nor put it last.

    Greedy, and where tokens were not drawn, it is `Match`, whose outputs have the same
    distribution then. Source: Leviathan et al. 2023 (arXiv 2211.17192), algorithm 1; SpecInfer
    (arXiv 2305.09781), multi-step speculative sampling.
    """

    name: ClassVar[str] = "rejection"
    lossless: ClassVar[bool] = True

    def notes(self) -> Mapping[str, object]:
        """Nothing more."""
        return {}

    def verify(self, case: Case) -> Verdict:
        """The path of tokens that pass their trials, and a draw from what is left behind it."""
        if case.greedy or case.drawn is None:
            return Match().verify(case)

        def choose(node: int, path: Sequence[int]) -> Choice:
            depth, below = len(path), case.children(node)
            logits = case.logits(node, path)
            if not below:
                return None, _own(case, logits, depth)
            left = _probabilities(logits)
            for trial, child in enumerate(below):
                row, token = case.row(child, left), case.draft.ids[child]
                if _passes(left, row, token, case.number(depth, TRIALS + trial)):
                    return child, token
                left = _norm(left - row, left)
            return None, draw(left, case.number(depth, REST))

        return walk(case, choose)


@dataclass(frozen=True)
class Typical:
    """Medusa's typical acceptance: whatever is not unlikely for the target passes; lossy.

    A token is accepted where p > min(epsilon, delta * exp(-H)), with H = -sum p * log(p + 1e-5) as
    the released code computes it. The longest path of accepted tokens wins, among equals that of
    the highest summed log-probability. The token behind it is a draw from p. Greedy it is `Match`.
    Source: Medusa (arXiv 2401.10774), typical acceptance, and its code. Deviation: p is what
    plain sampling would draw from, after top-k, top-p and min-p, which Medusa knows none of.
    """

    name: ClassVar[str] = "typical"
    lossless: ClassVar[bool] = False

    epsilon: float = 0.09
    delta: float = 0.3

    def notes(self) -> Mapping[str, object]:
        """Its two thresholds."""
        return {"epsilon": self.epsilon, "delta": self.delta}

    def verify(self, case: Case) -> Verdict:
        """The longest path of tokens that are typical of the target, and a draw behind it."""
        if case.greedy:
            return Match().verify(case)
        best, found = (-1, 0.0), Verdict((), -1)
        last = torch.empty(0)
        # Parents before children and the first child first, as a path is walked.
        ahead: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
        while ahead:
            path, score = ahead.pop()
            node = path[-1] if path else -1
            logits = case.logits(node, path)
            if (len(path), score) > best:
                best, found, last = (len(path), score), Verdict(path, -1), logits
            p = _probabilities(logits)
            bound = self._bound(p)
            for child in reversed(case.children(node)):
                chance = float(p[case.draft.ids[child]])
                if chance > bound:
                    ahead.append(((*path, child), score + math.log(chance)))
        return Verdict(found.path, _own(case, last, len(found.path)))

    def _bound(self, p: torch.Tensor) -> float:
        entropy = -float((p * torch.log(p + 1e-5)).sum())
        return min(self.epsilon, self.delta * math.exp(-entropy))


Tail = Literal["paper", "repo"]
"""How RAPID spares unlikely tokens: by Eq. 9 of the paper, or as its released code does."""


@dataclass(frozen=True)
class Tilted:
    """RAPID's tilted target, sampled exactly: at drafted positions outputs follow p_hat; lossy.

    p_hat = softmax(z + eta * (q - p)), where z are the target's logits with the temperature
    already in them: the tilt is not multiplied by it again (Eq. 6), and -inf stays -inf. Tail rule
    `paper` then puts p back where p_hat < factor * max(p_hat), and renormalises, which Eq. 9
    omits; `repo` instead shifts nothing where q < factor * max(q). A token is accepted with
    min(1, p_hat/q); after a failure norm(max(p_hat - q, 0)) is drawn from. Behind the last drafted
    token no q is known: what is drawn there follows p.

    Greedy, a token is accepted while it is argmax(z + eta * (q - p)) of softmaxes at temperature 1,
    without a tail rule, and where it is not that one follows. Drafts are chains, and their rows
    are q with the request's temperature, filters and grammar, or at temperature 1 if it is greedy.
    With eta 0 it is plain speculative sampling. Source: RAPID (arXiv 2502.20330), Eq. 6 and 9; the
    residual and the greedy case are ours.
    """

    name: ClassVar[str] = "tilted-exact"

    eta: float
    tail: Tail = "paper"
    factor: float = 0.1

    @property
    def lossless(self) -> bool:
        """Only where nothing is tilted."""
        return self.eta == 0

    def notes(self) -> Mapping[str, object]:
        """How far it tilts, and what it spares."""
        return {"eta": self.eta, "tail": self.tail, "factor": self.factor}

    def verify(self, case: Case) -> Verdict:
        """The tokens of a chain that the tilted target accepts, and one more."""

        def choose(node: int, path: Sequence[int]) -> Choice:
            depth, below = len(path), case.children(node)
            logits = case.logits(node, path)
            if not below:
                own = most_probable(logits) if case.greedy else _own(case, logits, depth)
                return None, own
            assert len(below) == 1, f"RAPID verifies chains, not {len(below)} siblings"
            child, token = below[0], case.draft.ids[below[0]]
            logits = logits.double()
            q = case.row(child, logits)
            if case.greedy:
                best = self._best(logits, q)
                if best == token:
                    return child, token
                return None, self._instead(most_probable(logits), best)
            p, tilted = _probabilities(logits), self.target(logits, q)
            if _passes(tilted, q, token, case.number(depth, TRIALS)):
                return child, token
            return None, draw(_norm(self._rest(p, tilted, q), p), case.number(depth, REST))

        return walk(case, choose)

    def target(self, logits: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        """p_hat, from the target's logits with the temperature in them and the drafter's q."""
        p = _probabilities(logits)
        shift = self.eta * (q - p)
        if self.tail == "repo":
            return _probabilities(logits + shift.where(q >= self.factor * q.max(), 0.0))
        tilted = _probabilities(logits + shift)
        mended = tilted.where(tilted >= self.factor * tilted.max(), p)
        return mended / mended.sum()

    def _best(self, logits: torch.Tensor, q: torch.Tensor) -> int:
        return most_probable(logits + self.eta * (q - _probabilities(logits)))

    def _rest(self, p: torch.Tensor, tilted: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        """What a token that failed leaves to draw from, not normalised, negative for nothing."""
        return tilted - q

    def _instead(self, own: int, tilted: int) -> int:
        """The greedy token where the drafted one fails: the target's own or the tilted one's."""
        return tilted


@dataclass(frozen=True)
class RapidPaper(Tilted):
    """RAPID as printed: outputs follow neither p nor p_hat; lossy unless eta is 0.

    It accepts as `Tilted` does, but draws from norm(max(p - p_hat, p - q, 0)) after a failure
    (algorithm 1; Eq. 10 omits the 0). The paper's proof that outputs follow p takes
    p - min(q, p_hat) for a distribution, which is negative wherever both exceed p. Greedy, the
    target's own argmax follows a token that fails: what the residual tends to as temperature falls.
    """

    name: ClassVar[str] = "rapid-paper"

    def _rest(self, p: torch.Tensor, tilted: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        return torch.maximum(p - tilted, p - q)

    def _instead(self, own: int, tilted: int) -> int:
        return own


RULES: Mapping[str, type[Match | Rejection | Typical | Tilted]] = {
    rule.name: rule for rule in (Match, Rejection, Typical, Tilted, RapidPaper)
}
"""Every rule by its name in results."""


def _probabilities(logits: torch.Tensor) -> torch.Tensor:
    return torch.softmax(logits.double(), dim=0)


def _own(case: Case, logits: torch.Tensor, depth: int) -> int:
    """What plain decoding draws at `depth`."""
    return draw(_probabilities(logits), case.number(depth))


def _passes(target: torch.Tensor, q: torch.Tensor, token: int, number: float) -> bool:
    """Whether a token drawn from q is accepted: with probability min(1, target/q)."""
    return number * float(q[token]) < float(target[token])


def _norm(weights: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
    """Positive weights as probabilities; `otherwise` if rounding alone left none of them."""
    weights = weights.clamp(min=0)
    total = weights.sum()
    return weights / total if total > 0 else otherwise
