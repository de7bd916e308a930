"""Drafts of Medusa's heads: all guesses at once, or one behind the other along the likeliest paths.

Heads that read the state alone fill a fixed tree of ranks. A chain knows how likely each of its
guesses is behind those before it, and so may also draft the likeliest nodes of each step.
Source of that: EAGLE-2 (arXiv 2406.16858), section 4.1, expansion and reranking.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch.nn.functional import silu

from inference.native.linear import Linear
from inference.native.sequence import Draft
from inference.speculative.base import Proposal, Proposer, Start, Turn
from inference.speculative.choices import RANKS, Choice
from inference.speculative.medusa_heads import unit

if TYPE_CHECKING:
    from inference.native.lean import Lean
    from inference.speculative.medusa_heads import MedusaHeads

WIDTH = 4
"""Guesses of a depth that are continued, the likeliest."""


class Guessing(Proposer):
    """Proposals from the target's states; no request has a state of its own."""

    reads_hidden: ClassVar[bool] = True

    def __init__(self, heads: MedusaHeads, model: Lean) -> None:
        self._tokens = heads.tokens
        self._dtype = model.dtype
        self._readout = model.readout(heads.tokens)

    def begin(self, start: Start) -> Any:
        """Nothing to prepare."""
        return None

    def propose(self, turns: Sequence[Turn]) -> Sequence[Proposal | None]:
        """A tree for each request, all guessed together."""
        states = [turn.hidden for turn in turns if turn.hidden is not None]
        assert len(states) == len(turns), "a proposer that reads hidden states was given none"
        with torch.inference_mode():
            return self.guess(torch.stack(states).to(self._dtype), turns)

    def guess(self, hidden: torch.Tensor, turns: Sequence[Turn]) -> list[Proposal | None]:
        """A tree for each request from its state, hidden [turns, hidden]."""
        raise NotImplementedError

    def _ids(self, places: torch.Tensor) -> torch.Tensor:
        """Token ids of columns of the readout."""
        return places if self._tokens is None else self._tokens.to(places.device)[places]


class Parallel(Guessing):
    """All heads read the state and guess in one product; their guesses fill a tree of ranks."""

    def __init__(self, heads: MedusaHeads, model: Lean, choices: Sequence[Choice]) -> None:
        super().__init__(heads, model)
        heads = heads.to(model.dtype, model.device)
        self._depth = max(map(len, choices))
        # One product for all heads: apart, they cost as much as three layers of the model.
        weight, bias = heads.blocks[: self._depth], heads.biases[: self._depth]
        self._inner = Linear(weight.flatten(0, 1), bias.flatten())
        self._choices = choices
        self._ranks = 1 + max(max(choice) for choice in choices)

    def guess(self, hidden: torch.Tensor, turns: Sequence[Turn]) -> list[Proposal | None]:
        """As `Guessing.guess` says."""
        inner = self._inner(hidden).unflatten(1, (self._depth, -1))
        logits = self._readout((hidden[:, None] + silu(inner)).flatten(0, 1))
        found = self._ids(logits.topk(min(self._ranks, logits.shape[1]), dim=1).indices)
        guesses: list[list[list[int]]] = found.unflatten(0, (len(hidden), -1)).tolist()
        return [
            tree(self._choices, one, turn.room, turn.depth)
            for one, turn in zip(guesses, turns, strict=True)
        ]


class Chain(Guessing):
    """Each head continues the guesses of the one before it; the last is used again and again.

    `choices` fix the tree. Without them the `nodes` likeliest guesses are drafted, of those behind
    the WIDTH likeliest of each depth.
    """

    def __init__(
        self, heads: MedusaHeads, model: Lean, nodes: int, choices: Sequence[Choice] | None
    ) -> None:
        super().__init__(heads, model)
        heads = heads.to(model.dtype, model.device)
        assert heads.drawn is not None, "a chain reads tokens"
        self._model, self._nodes = model, nodes
        self._ranks = min(RANKS, self._readout.shape[0])
        self._fixed = None if choices is None else fixed(choices, self._ranks)
        self._depth = heads.depth if choices is None else max(map(len, choices))
        self._steps = [
            Linear(torch.cat([block, drawn], dim=1), bias)
            for block, drawn, bias in zip(heads.blocks, heads.drawn, heads.biases, strict=True)
        ]

    def guess(self, hidden: torch.Tensor, turns: Sequence[Turn]) -> list[Proposal | None]:
        """As `Guessing.guess` says."""
        state = hidden[:, None]
        token = torch.tensor([[turn.ids[-1]] for turn in turns], device=hidden.device)
        above = torch.zeros(len(turns), 1, device=hidden.device)
        levels: list[Level] = []
        for at in range(min(self._depth, max(turn.depth for turn in turns))):
            state = self._step(at, state, token)
            places, shares = self._best(state)
            value = (above[..., None] + shares).flatten(1)
            chosen = self._continued(at, value)
            levels.append(Level(self._ids(places).flatten(1), value, chosen))
            if self._done(levels):
                break
            above, token = value.gather(1, chosen), levels[-1].ids.gather(1, chosen)
            behind = (chosen // self._ranks)[..., None]
            state = state.gather(1, behind.expand(-1, -1, state.shape[-1]))
        rows = [[part.tolist() for part in level] for level in levels]
        return [self._draft(rows, at, turn) for at, turn in enumerate(turns)]

    def _step(self, at: int, state: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """States [turns, paths, hidden] for the guesses behind `token` [turns, paths]."""
        step = self._steps[min(at, len(self._steps) - 1)]
        read = unit(self._model.embed(token.flatten())).unflatten(0, token.shape)
        return state + silu(step(torch.cat([state, read], dim=-1)))

    def _best(self, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Columns of the readout and log shares [turns, paths, ranks], the likeliest first."""
        logits = self._readout(state.flatten(0, 1)).float().unflatten(0, state.shape[:2])
        best = logits.topk(self._ranks)
        return best.indices, best.values - logits.logsumexp(-1, keepdim=True)

    def _continued(self, at: int, value: torch.Tensor) -> torch.Tensor:
        """Which nodes [turns, paths] of a depth are continued."""
        if self._fixed is None:
            return value.topk(min(WIDTH, value.shape[1])).indices
        return torch.tensor([self._fixed.open[at]] * len(value), device=value.device).long()

    def _done(self, levels: Sequence[Level]) -> bool:
        """Whether no deeper node can be among the likeliest: none is likelier than its parent."""
        if self._fixed is not None:
            return False
        value = torch.cat([level.value for level in levels], dim=1)
        if value.shape[1] < self._nodes:
            return False
        last = levels[-1]
        worst = value.topk(self._nodes).values[:, -1]
        return bool((last.value.gather(1, last.open).amax(1) < worst).all())

    def _draft(self, rows: Sequence[Sequence[Any]], at: int, turn: Turn) -> Proposal | None:
        """The draft of turn `at`: nodes by their depth and their place in it."""
        reached = rows[: turn.depth]
        if self._fixed is None:
            nodes = [
                (-value, depth, place)
                for depth, (_, values, _) in enumerate(reached)
                for place, value in enumerate(values[at])
            ]
            chosen = [(depth, place) for _, depth, place in sorted(nodes)][: self._nodes]
        else:
            chosen = [one for one in self._fixed.order if one[0] < len(reached)]
        ids: list[int] = []
        parents: list[int] = []
        known: dict[tuple[int, int], int] = {}
        for depth, place in chosen[: turn.room]:
            behind = (depth - 1, rows[depth - 1][2][at][place // self._ranks]) if depth else None
            parents.append(-1 if behind is None else known[behind])
            known[depth, place] = len(ids)
            ids.append(rows[depth][0][at][place])
        return Proposal(Draft(tuple(ids), tuple(parents))) if ids else None


class Level(NamedTuple):
    """Nodes of one depth: their ids and the log shares of their paths, and which are continued.

    `ids` and `value` are [turns, nodes], RANKS of them behind each node that was continued, `open`
    [turns, paths] are places among these.
    """

    ids: torch.Tensor
    value: torch.Tensor
    open: torch.Tensor


class Fixed(NamedTuple):
    """A tree of ranks as `Chain` walks it: `open` places of each depth, nodes in `order`."""

    open: list[list[int]]
    order: list[tuple[int, int]]


def fixed(choices: Sequence[Choice], ranks: int) -> Fixed:
    """Places of `choices` where each continued node has `ranks` behind it."""
    parents = {one[:-1] for one in choices}
    depth = max(map(len, choices))
    inner = [[one for one in choices if len(one) == at and one in parents] for at in range(depth)]
    inner[0] = [()]
    slots = {one: slot for row in inner for slot, one in enumerate(row)}
    places = {one: slots[one[:-1]] * ranks + one[-1] for one in choices}
    opened = [[places[one] for one in row] for row in inner[1:]] + [[0]]
    return Fixed(opened, [(len(one) - 1, places[one]) for one in choices])


def tree(
    choices: Sequence[Choice], guesses: Sequence[Sequence[int]], room: int, depth: int
) -> Proposal | None:
    """The first `room` choices of at most `depth`, filled in from `guesses` [heads][ranks]."""
    kept = [one for one in choices if len(one) <= depth][:room]
    place = {choice: at for at, choice in enumerate(kept)}
    ids = tuple(guesses[len(one) - 1][one[-1]] for one in kept)
    parents = tuple(place.get(one[:-1], -1) for one in kept)
    return Proposal(Draft(ids, parents)) if kept else None
