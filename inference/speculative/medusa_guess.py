"""Drafts of Medusa's heads: all guesses at once, or one behind the other along the likeliest paths.

Heads that read the state alone fill a fixed tree of ranks. A chain knows how likely each of its
guesses is behind those before it, and so may also draft the likeliest nodes of each step.
Source of that: EAGLE-2 (arXiv 2406.16858), section 4.1, expansion and reranking.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import torch
from torch.nn.functional import silu

from inference.native.linear import Linear
from inference.native.sequence import Draft
from inference.speculative.base import Proposal, Proposer, Start, Turn
from inference.speculative.choices import RANKS, Choice
from inference.speculative.followers import ORDER, Followers
from inference.speculative.medusa_heads import unit

if TYPE_CHECKING:
    from inference.native.lean import Lean
    from inference.speculative.medusa_heads import MedusaHeads

WIDTH = 4
"""Guesses of a depth that are continued, the likeliest."""

SHARPNESS = 0.75
"""What logits are multiplied by where followers count: heads are too sure of their guesses."""

AGREES = 2.2
"""What each token of agreement adds to the logit of a follower, in nats."""

DEEPEST = 8
"""Tokens guessed ahead where followers count: what is repeated goes on for longer."""

WORTH = 0.08
"""Least share of a guess that is drafted where followers count: less is not worth its row."""

STAYS = 0.9
"""Share of its parent that a token is taken to have which is copied behind the likeliest path."""

FOLLOWS = 0.6
"""Share of its parent that a guess is taken to have at most, where going deeper costs a product."""


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

    @abstractmethod
    def guess(self, hidden: torch.Tensor, turns: Sequence[Turn]) -> list[Proposal | None]:
        """A tree for each request from its state, hidden [turns, hidden]."""

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

    `choices` fix the tree; without them it is that of the `nodes` likeliest guesses. With `context`
    what followed the same tokens before, in the text so far, is a guess too, and a likelier one,
    and the likeliest path goes on by up to `copies` tokens as the text did.
    """

    def __init__(
        self,
        heads: MedusaHeads,
        model: Lean,
        nodes: int,
        choices: Sequence[Choice] | None,
        *,
        context: bool,
        copies: int,
    ) -> None:
        super().__init__(heads, model)
        heads = heads.to(model.dtype, model.device)
        assert heads.drawn is not None, "a chain reads tokens"
        self._model = model
        self._context, self._copies = context, copies
        self._columns = _columns(self._tokens, model)
        self._ranks = min(RANKS, self._readout.shape[0])
        self._depth = max(heads.depth, DEEPEST if context else 0)
        if choices is not None:
            self._depth = max(map(len, choices))
        worth = WORTH if context else 0.0
        self._shape: Shape = (
            Likeliest(nodes, worth) if choices is None else Fixed(choices, self._ranks)
        )
        self._steps = [
            Linear(torch.cat([block, drawn], dim=1), bias)
            for block, drawn, bias in zip(heads.blocks, heads.drawn, heads.biases, strict=True)
        ]

    def begin(self, start: Start) -> Any:
        """What followed what in the text of this request, where that counts."""
        if not self._context:
            return None
        followers = Followers(start.references)
        if start.own:  # read here, and not while others wait for a step
            followers.read(start.prompt)
        return followers

    def guess(self, hidden: torch.Tensor, turns: Sequence[Turn]) -> list[Proposal | None]:
        """As `Guessing.guess` says."""
        for turn in turns:
            if turn.state is not None:
                turn.state.read(turn.ids)
        paths = [[tuple(turn.ids[-ORDER:])] for turn in turns]
        state = hidden[:, None]
        token = torch.tensor([[turn.ids[-1]] for turn in turns], device=hidden.device)
        above = torch.zeros(len(turns), 1, device=hidden.device)
        levels: list[Level] = []
        opened: list[list[list[int]]] = []
        depth = min(self._depth, max(turn.depth for turn in turns))
        for at in range(depth):
            state = self._step(at, state, token)
            ids, shares = self._best(state, turns, paths)
            value = (above[..., None] + shares).flatten(1)
            levels.append(Level(ids.flatten(1), value))
            if at + 1 == depth or self._shape.done(levels):
                break
            chosen = self._shape.continued(at, value)
            above, token = value.gather(1, chosen), levels[-1].ids.gather(1, chosen)
            behind = (chosen // self._ranks)[..., None]
            state = state.gather(1, behind.expand(-1, -1, state.shape[-1]))
            opened.append(chosen.tolist())
            paths = [
                [
                    (*old[place // self._ranks], last)[-ORDER:]
                    for place, last in zip(*new, strict=True)
                ]
                for old, *new in zip(paths, opened[-1], token.tolist(), strict=True)
            ]
        ids, values = ([level[part].tolist() for level in levels] for part in (0, 1))
        found: list[Proposal | None] = []
        for at, turn in enumerate(turns):
            shares = [row[at] for row in values[: turn.depth]]
            nodes = self._shape.nodes(shares)[: turn.room]
            draft = self._draft([row[at] for row in ids], [row[at] for row in opened], nodes)
            if draft is not None and turn.state is not None and self._copies:
                draft = self._going_on(draft, [shares[one][place] for one, place in nodes], turn)
            found.append(None if draft is None else Proposal(draft))
        return found

    def _step(self, at: int, state: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """States [turns, paths, hidden] for the guesses behind `token` [turns, paths]."""
        step = self._steps[min(at, len(self._steps) - 1)]
        read = unit(self._model.embed(token.flatten())).unflatten(0, token.shape)
        return state + silu(step(torch.cat([state, read], dim=-1)))

    def _best(
        self, state: torch.Tensor, turns: Sequence[Turn], paths: Sequence[Sequence[tuple[int, ...]]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and log shares [turns, paths, ranks], the likeliest first."""
        flat = state.flatten(0, 1)
        logits = self._readout(flat).float()
        followed = [
            turn.state.behind(path)
            for turn, own in zip(turns, paths, strict=True)
            if turn.state is not None
            for path in own
        ]
        if self._context:
            logits *= SHARPNESS
        if not any(followed):
            best = logits.topk(self._ranks)
            ids = self._ids(best.indices)
        else:
            columns = logits.shape[1]
            logits, others = self._with_followers(logits, flat, followed)
            best = logits.topk(self._ranks)
            ids = torch.where(
                best.indices < columns,
                self._ids(best.indices.clamp(max=columns - 1)),
                others.gather(1, (best.indices - columns).clamp(min=0)),
            )
        shares = best.values - logits.logsumexp(-1, keepdim=True)
        shape = state.shape[:2]
        return ids.unflatten(0, shape), shares.unflatten(0, shape)

    def _with_followers(
        self, logits: torch.Tensor, flat: torch.Tensor, followed: Sequence[Mapping[int, int]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits with columns of their own for followers, and the ids of these columns."""
        listed = [
            (row, slot, token, length)
            for row, behind in enumerate(followed)
            for slot, (token, length) in enumerate(behind.items())
        ]
        row, slot, token, length = torch.tensor(listed, device=flat.device).T
        rise = (flat[row].float() * self._model.outputs(token).float()).sum(-1)
        width = int(slot.max()) + 1
        own = logits.new_full((len(flat), width), -math.inf)
        own[row, slot] = SHARPNESS * rise + AGREES * length
        ids = torch.zeros((len(flat), width), dtype=torch.long, device=flat.device)
        ids[row, slot] = token
        column = self._columns[token]
        logits[row[column >= 0], column[column >= 0]] = -math.inf
        return torch.cat([logits, own], dim=1), ids

    def _draft(
        self, ids: Sequence[Sequence[int]], opened: Sequence[Sequence[int]], nodes: Sequence[Node]
    ) -> Draft | None:
        """The draft of `nodes`, whose ids stand by depth and place, each behind its parent."""
        at = {node: number for number, node in enumerate(nodes)}
        parents = tuple(
            at[depth - 1, opened[depth - 1][place // self._ranks]] if depth else -1
            for depth, place in nodes
        )
        drafted = tuple(ids[depth][place] for depth, place in nodes)
        return Draft(drafted, parents) if nodes else None

    def _going_on(self, draft: Draft, shares: Sequence[float], turn: Turn) -> Draft:
        """The likeliest path, of these log shares, goes on as long as a copy is worth its row."""
        path, at = [], -1
        while behind := [one for one, parent in enumerate(draft.parents) if parent == at]:
            at = max(behind, key=shares.__getitem__)
            path.append(draft.ids[at])
        worth = int((math.log(WORTH) - shares[at]) / math.log(STAYS))
        room = min(self._copies, worth, turn.room - len(draft.ids), turn.depth - len(path))
        copied = turn.state.copied((*turn.ids[-ORDER:], *path), room)
        parents = [at, *range(len(draft.ids), len(draft.ids) + len(copied) - 1)]
        return Draft((*draft.ids, *copied), (*draft.parents, *parents[: len(copied)]))


def _columns(tokens: torch.Tensor | None, model: Lean) -> torch.Tensor:
    """The column of the readout of each token id, -1 where there is none."""
    if tokens is None:
        return torch.arange(model.vocabulary, device=model.device)
    found = torch.full((model.vocabulary,), -1, device=model.device)
    found[tokens.to(model.device)] = torch.arange(len(tokens), device=model.device)
    return found


Node = tuple[int, int]
"""Depth, and place among the nodes there: RANKS of them behind each that is continued."""


class Level(NamedTuple):
    """Nodes of one depth: ids and log shares of their paths, both [turns, nodes]."""

    ids: torch.Tensor
    value: torch.Tensor


class Shape(Protocol):
    """Which guesses of a chain are continued, and which are drafted."""

    def continued(self, at: int, value: torch.Tensor) -> torch.Tensor:
        """Places [turns, paths] of depth `at` that are continued, of log shares [turns, nodes]."""
        ...

    def done(self, levels: Sequence[Level]) -> bool:
        """Whether no deeper node can be drafted."""
        ...

    def nodes(self, values: Sequence[Sequence[float]]) -> list[Node]:
        """What to draft for one request, parents first, by its log shares of each depth."""
        ...


class Likeliest:
    """The likeliest nodes of a step, among those behind the WIDTH likeliest of each depth.

    At most `count`, and none with a share of less than `worth`.
    """

    def __init__(self, count: int, worth: float = 0.0) -> None:
        self._count = count
        self._least = math.log(worth) if worth else -math.inf

    def continued(self, at: int, value: torch.Tensor) -> torch.Tensor:
        """The likeliest."""
        return value.topk(min(WIDTH, value.shape[1])).indices

    def done(self, levels: Sequence[Level]) -> bool:
        """Whether enough nodes are likelier than any child of the last depth is taken to be."""
        value = torch.cat([level.value for level in levels], dim=1)
        least = value.new_full((len(value),), self._least)
        if value.shape[1] >= self._count:
            least = value.topk(self._count).values[:, -1].clamp(min=self._least)
        return bool((levels[-1].value.amax(1) + math.log(FOLLOWS) < least).all())

    def nodes(self, values: Sequence[Sequence[float]]) -> list[Node]:
        """The likeliest of all; of equals the higher, so that none comes before its parent."""
        ordered = sorted(
            (-value, depth, place)
            for depth, row in enumerate(values)
            for place, value in enumerate(row)
            if value >= self._least
        )
        return [(depth, place) for _, depth, place in ordered[: self._count]]


class Fixed:
    """The same tree of ranks in every step, however likely."""

    def __init__(self, choices: Sequence[Choice], ranks: int) -> None:
        inner = {one[:-1] for one in choices} - {()}
        levels = [
            [one for one in choices if len(one) == depth and one in inner]
            for depth in range(1, max(map(len, choices)))
        ]
        slots = {one: slot for level in levels for slot, one in enumerate(level)} | {(): 0}
        places = {one: slots[one[:-1]] * ranks + one[-1] for one in choices}
        self._open = [[places[one] for one in level] for level in levels]
        self._nodes = [(len(one) - 1, places[one]) for one in choices]

    def continued(self, at: int, value: torch.Tensor) -> torch.Tensor:
        """Those with children in the tree."""
        return torch.tensor([self._open[at]] * len(value), device=value.device)

    def done(self, levels: Sequence[Level]) -> bool:
        """Never before its depth is reached."""
        return False

    def nodes(self, values: Sequence[Sequence[float]]) -> list[Node]:
        """All as deep as was guessed."""
        return [node for node in self._nodes if node[0] < len(values)]


def tree(
    choices: Sequence[Choice], guesses: Sequence[Sequence[int]], room: int, depth: int
) -> Proposal | None:
    """The first `room` choices of at most `depth`, filled in from `guesses` [heads][ranks]."""
    kept = [one for one in choices if len(one) <= depth][:room]
    place = {choice: at for at, choice in enumerate(kept)}
    ids = tuple(guesses[len(one) - 1][one[-1]] for one in kept)
    parents = tuple(place.get(one[:-1], -1) for one in kept)
    return Proposal(Draft(ids, parents)) if kept else None
