"""Drafters driven by hand: their real proposers and rules, with transformers as the target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import torch

from inference import SamplingParams
from inference.native.model import Model
from inference.native.sampling import process
from inference.native.sequence import Draft
from inference.speculative import Drafter, Proposal, Start, Turn
from inference.speculative.verify import Case
from tests.inference.tiny import network

CONTEXT = [20, 31, 7, 45, 99, 12, 64, 80, 33, 51, 17, 28, 90, 41, 63, 72]
EXCERPT = [45, 99, 12, 41, 63, 72]
GREEDY = SamplingParams()


@dataclass
class Talk:
    """A request as the engine drives it, with transformers alone as the target."""

    prompt: Sequence[int] = tuple(CONTEXT)
    draft_prompt: Sequence[int] | None = tuple(EXCERPT)
    sampling: SamplingParams = GREEDY
    seed: int = 0
    ids: list[int] = field(default_factory=list)
    kept: tuple[int, ...] = ()
    fresh: int = 0
    accepted: int = 0
    proposals: list[Proposal | None] = field(default_factory=list)
    rounds: list[list[int]] = field(default_factory=list)
    notes: dict[str, object] = field(default_factory=dict)

    @property
    def start(self) -> Start:
        own = self.draft_prompt is None
        prompt = self.prompt if self.draft_prompt is None else self.draft_prompt
        return Start(prompt, own, (), self.sampling, self.seed, "tenant")

    @property
    def drafted(self) -> int:
        return sum(len(one.draft.ids) for one in self.proposals if one is not None)

    def turn(self, state: Any) -> Turn:
        ids = [*self.prompt, *self.ids]
        return Turn(state, ids, len(self.prompt), self.fresh, self.kept, 64, 64)

    def take(self, said: Callable[..., torch.Tensor], drafter: Drafter, proposal: Any) -> None:
        """Verify a proposal and go on by what was accepted."""
        self.proposals.append(proposal)
        draft = Draft((), ()) if proposal is None else proposal.draft
        ids = (*self.prompt, *self.ids)

        def logits(node: int, path: Sequence[int]) -> torch.Tensor:
            line = (*ids, *(draft.ids[at] for at in path))
            return process(said(line), self.sampling, line)

        drawn = None if proposal is None else proposal.drawn
        greedy = self.sampling.temperature == 0
        verdict = drafter.rule.verify(Case(draft, logits, greedy, self.seed, len(ids), drawn))
        self.rounds.append([*(draft.ids[at] for at in verdict.path), verdict.token])
        self.ids += self.rounds[-1]
        self.kept, self.fresh = verdict.path, len(verdict.path) + 1
        self.accepted += len(verdict.path)


@lru_cache
def said_by(name: str) -> Callable[..., torch.Tensor]:
    """Logits behind some ids, as transformers computes them; each text once."""

    @cache
    def said(ids: tuple[int, ...]) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = network(name)(torch.tensor([ids])).logits[0, -1]
        return found

    return said


def talk(model: Model, drafter: Drafter, talks: Sequence[Talk], tokens: int) -> Sequence[Talk]:
    """Drive requests side by side until each has at least so many tokens."""
    proposer = drafter.open(model)
    states = [proposer.begin(one.start) for one in talks]
    while any(len(one.ids) < tokens for one in talks):
        going = [at for at, one in enumerate(talks) if len(one.ids) < tokens]
        turns = [talks[at].turn(states[at]) for at in going]
        for at, proposal in zip(going, proposer.propose(turns), strict=True):
            talks[at].take(said_by(model.name), drafter, proposal)
    for one, state in zip(talks, states, strict=True):
        one.notes = dict(proposer.notes(state))
        proposer.end(state)
    proposer.close()
    return talks


def greedily(model: Model, prompt: Sequence[int], tokens: int) -> list[int]:
    """The target alone."""
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(int(said_by(model.name)(tuple(ids)).argmax()))
    return ids[len(prompt) :]
