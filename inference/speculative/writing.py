"""The small model of LLMCad at work: trees of many requests grow together, pass by pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from inference.native.sequence import Draft
from inference.speculative.base import Proposal, Proposer, Start, Turn
from inference.speculative.pacing import Branch, Tree, judge, neediest, updated
from inference.speculative.small import Line, Second

if TYPE_CHECKING:
    from inference.speculative.llmcad import LLMCad

PROVISIONAL = "off, weights are resident"
"""What results say of drafting during verification, which would hide the reading of weights."""


@dataclass(slots=True, eq=False)
class _State:
    """A request: its line, the tree that is being verified, and what became of those before."""

    start: Start
    alpha: float
    line: Line | None = None
    tree: Tree | None = None
    fed: dict[int, int] = field(default_factory=dict)
    """Nodes of the tree that the small model has read, and their numbers in the line."""
    calls: int = 0
    emitted: int = 0
    drafted: int = 0
    accepted: int = 0
    passes: int = 0


class Writing(Proposer):
    """One tree per request; a request whose prompt is still being read goes without."""

    def __init__(self, options: LLMCad, second: Second, stops: frozenset[int]) -> None:
        self._options = options
        self._second = second
        self._stops = stops
        self._limit = math.log(options.branch)
        # No more than this many tokens can be above the threshold.
        self._likely = min(int(1 / options.branch) + 1, second.words)

    def begin(self, start: Start) -> Any:
        """Nothing is read before the first proposal: that is the step thread's work."""
        return _State(start, self._options.alpha)

    def propose(self, turns: Sequence[Turn]) -> Sequence[Proposal | None]:
        """A tree for every request whose prompt the small model has read by now."""
        growing: list[_State] = []
        for turn in turns:
            state: _State = turn.state
            self._learn(state, turn)
            options = self._options
            state.fed = {}
            state.tree = Tree(
                min(options.nodes, turn.room), min(options.depth, turn.depth), self._stops
            )
            if self._read(state, turn).lost is None:
                growing.append(state)
        self._grow(growing)
        return [self._proposal(turn.state) for turn in turns]

    def end(self, state: Any) -> None:
        """Free its line."""
        if state.line is not None:
            self._second.free(state.line)

    def notes(self, state: Any) -> dict[str, object]:
        """Counts up to the last tree that was judged; nodes that were not accepted are wasted."""
        found: dict[str, object] = {
            "provisional": PROVISIONAL,
            "target_calls_per_token": state.calls / state.emitted if state.emitted else None,
            "nodes": {
                "drafted": state.drafted,
                "accepted": state.accepted,
                "wasted": state.drafted - state.accepted,
            },
            "small_passes": state.passes,
            "alpha": state.alpha,
        }
        if state.line is not None and state.line.lost is not None:
            found["fallback"] = f"plain decoding: the small model lacks {state.line.lost}"
        return found

    def close(self) -> None:
        """Forget the kept prefixes."""
        self._second.close()

    def _learn(self, state: _State, turn: Turn) -> None:
        """Judge the last tree by the tokens that followed, and move the threshold."""
        state.calls += 1
        state.emitted += turn.fresh
        if state.tree is None or not state.tree.ids:
            return
        state.drafted += len(state.tree.ids)
        state.accepted += len(turn.kept)
        seen = judge(state.tree, turn.ids[len(turn.ids) - turn.fresh :])
        if seen is not None:
            state.alpha = updated(state.alpha, seen, self._options.update, self._options.decay)

    def _read(self, state: _State, turn: Turn) -> Line:
        """Bring the request's line to its text, which begins with the drafter's own prompt."""
        own = state.start.own
        ids = [*turn.ids] if own else [*state.start.prompt, *turn.ids[turn.prompt :]]
        if state.line is None:
            state.line = self._second.admit(ids, tenant=state.start.tenant)
        else:
            self._second.sync(state.line, ids)
        return state.line

    def _grow(self, growing: list[_State]) -> None:
        """Write on the trees until each is ripe or its line cannot go on."""
        chosen: list[Branch] = [state.tree.branches[0] for state in growing if state.tree]
        while growing:
            found = self._second.step([state.line for state in growing if state.line])
            known = [logits for logits in found if logits is not None]
            if not known:
                return
            words, logs = self._best(torch.stack(known))
            left: list[tuple[_State, Branch]] = []
            rows = iter(zip(words, logs, strict=True))
            for state, branch, logits in zip(growing, chosen, found, strict=True):
                assert state.tree is not None
                if logits is None:  # its prompt is long, or it is lost
                    continue
                state.passes += 1
                self._write(state.tree, branch, *next(rows))
                following = None if state.tree.ripe(state.alpha) else neediest(state.tree.branches)
                if following is not None:
                    self._feed(state, following)
                    left.append((state, following))
            growing, chosen = [one for one, _ in left], [one for _, one in left]

    def _best(self, logits: torch.Tensor) -> tuple[list[list[int]], list[list[float]]]:
        """The likeliest tokens behind each row of logits [rows, words], and their logs."""
        logs, words = torch.log_softmax(logits, dim=-1).topk(self._likely, dim=-1)
        return words.tolist(), logs.tolist()

    def _write(self, tree: Tree, branch: Branch, words: list[int], logs: list[float]) -> None:
        """Add the likeliest token, and the others whose probability is above the threshold."""
        count = 1 + sum(log > self._limit for log in logs[1:])
        tree.grow(branch, words[:count], logs[:count])

    def _feed(self, state: _State, branch: Branch) -> None:
        """Let the small model read the last token of a branch."""
        assert state.tree is not None and state.line is not None
        above = state.fed.get(state.tree.parents[branch.tip], -1)
        state.fed[branch.tip] = state.line.push(state.tree.ids[branch.tip], above)

    def _proposal(self, state: _State) -> Proposal | None:
        """The tree with its most confident nodes first, since the last may be cut off."""
        tree = state.tree
        if tree is None or not tree.ids:
            return None
        order = tree.order()
        place = {node: at for at, node in enumerate(order)} | {-1: -1}
        return Proposal(
            Draft(
                tuple(tree.ids[node] for node in order),
                tuple(place[tree.parents[node]] for node in order),
            )
        )
