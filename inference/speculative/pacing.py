"""How a token tree grows, which branch is next, and when it is worth a verification (LLMCad).

Equations are those of arXiv 2309.04255, sections 3.1 to 3.3. Confidences are kept as natural
logarithms, because products of many probabilities vanish.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

Update = Literal["prose", "printed", "fixed"]

FLOOR, CEILING = 1e-4, 0.9
"""Where an update of the threshold ends (ours: the paper names no bounds)."""


@dataclass(slots=True)
class Branch:
    """A path that is written on: its last node (-1: none yet), and the tokens it was given."""

    tip: int
    given: int
    score: float
    """Log of the product of its tokens' probabilities, from the root of the tree."""
    closed: bool = False


@dataclass(slots=True)
class Tree:
    """Drafted tokens; parents before children, -1 being the request's last token.

    `most` nodes of at most `deepest` depth; no token of `stops` is written on.
    """

    most: int
    deepest: int
    stops: frozenset[int] = frozenset()
    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=lambda: [Branch(-1, 0, 0.0)])

    def grow(self, branch: Branch, words: Sequence[int], logs: Sequence[float]) -> None:
        """Write the first of `words` on a branch; the others open branches of their own there.

        `logs` are their log probabilities behind the branch. What a new branch shares with this
        one counts as this one's.
        """
        tip, score = branch.tip, branch.score
        for at, (word, log) in enumerate(zip(words, logs, strict=True)):
            if len(self.ids) == self.most:
                return
            if at:
                branch = Branch(tip, 0, score)
                self.branches.append(branch)
            self.ids.append(word)
            self.parents.append(tip)
            self.depths.append(self.depths[tip] + 1 if tip >= 0 else 1)
            self.scores.append(score + log)
            branch.tip = len(self.ids) - 1
            branch.given += 1
            branch.score = score + log
            branch.closed = word in self.stops or self.depths[-1] == self.deepest

    def best(self) -> Branch:
        """The most confident branch, the earliest of equals; its confidence is the tree's."""
        return max(self.branches, key=lambda one: one.score)

    def ripe(self, alpha: float) -> bool:
        """Whether to verify now: confidence at `alpha`, the best branch at its end, or no room.

        The paper stops below alpha; that equality stops too lets alpha 1 verify every token.
        """
        best = self.best()
        low = best.score <= math.log(alpha) if alpha > 0 else False
        return low or best.closed or len(self.ids) == self.most

    def follow(self, words: Sequence[int]) -> list[int]:
        """The nodes that spell the beginning of a text."""
        path: list[int] = []
        for word in words:
            at = path[-1] if path else -1
            below = [n for n, up in enumerate(self.parents) if up == at and self.ids[n] == word]
            if not below:
                break
            path.append(below[0])
        return path

    def line(self, leaf: int) -> list[int]:
        """The nodes from the root down to one."""
        path: list[int] = []
        while leaf >= 0:
            path.append(leaf)
            leaf = self.parents[leaf]
        return path[::-1]

    def order(self) -> list[int]:
        """All nodes, the most confident first; a node is never before its parent."""
        return sorted(range(len(self.ids)), key=lambda node: (-self.scores[node], node))


def neediest(branches: Sequence[Branch]) -> Branch | None:
    """The open branch that lacks most of its share, f(i) = M C_i / sum_j C_j - T_i.

    M are all tokens, T_i those that branch i was given, C_i its confidence. The paper prints a
    minimum over f under max-min fairness and describes more compute for likelier branches; that
    the largest deficit is served first agrees with both (sheet, step 2). None if all are closed.
    """
    top = max(one.score for one in branches)
    weights = [math.exp(one.score - top) for one in branches]
    share = sum(one.given for one in branches) / sum(weights)
    open_ = [
        (share * weight - one.given, one.score, -at)
        for at, (one, weight) in enumerate(zip(branches, weights, strict=True))
        if not one.closed
    ]
    return branches[-max(open_)[2]] if open_ else None


Pacer = Callable[[Sequence[Branch]], Branch | None]


@dataclass(frozen=True, slots=True)
class Judgement:
    """A tree beside the target's text: the best-matching branch has `right` of `length` tokens.

    `behind` are the confidences of its tokens behind the wrong one, or of that one if it is last.
    """

    right: int
    length: int
    behind: Sequence[float] = ()


def judge(tree: Tree, text: Sequence[int]) -> Judgement | None:
    """Compare a tree with the text that followed; None where the text ends inside it.

    Of several branches that match alike, the most confident counts.
    """
    path = tree.follow(text)
    end = path[-1] if path else -1
    if end not in tree.parents:
        return Judgement(len(path), len(path))
    if len(path) == len(text):
        return None
    inner = set(tree.parents)
    leaves = [node for node in range(len(tree.ids)) if node not in inner]
    lines = [line for line in map(tree.line, leaves) if line[: len(path)] == path]
    line = max(lines, key=lambda one: (tree.scores[one[-1]], -one[-1]))
    behind = line[len(path) + 1 :] or line[len(path) :]
    return Judgement(len(path), len(line), [math.exp(tree.scores[node]) for node in behind])


def updated(alpha: float, seen: Judgement, rule: Update, decay: float) -> float:
    """The threshold after a verification.

    Without an error alpha <- decay * alpha. With one, `printed` is Eq. 3, the share of the branch
    that was wrong, which forgets alpha and may lower it; `prose` is the text below it, alpha over
    the mean cumulative confidence of the tokens behind the wrong one, which only raises it. They
    end at FLOOR and CEILING, but never move alpha the other way to get there.
    """
    if rule == "fixed":
        return alpha
    if seen.right == seen.length:
        return max(decay * alpha, min(alpha, FLOOR))
    if rule == "printed":
        return min(max((seen.length - seen.right) / seen.length, FLOOR), CEILING)
    mean = sum(seen.behind) / len(seen.behind)
    raised = alpha / mean if mean > 0 else CEILING
    return max(alpha, min(raised, CEILING))
