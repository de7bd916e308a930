"""RAPID: a drafter that reads retrieved passages where the target reads the whole context."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from inference.errors import DrafterInputError
from inference.native.sequence import Draft
from inference.speculative.base import MOST, Drafter, Proposal, Proposer, Start, Turn
from inference.speculative.prompt_lookup import Index

if TYPE_CHECKING:
    import torch

    from inference.native.model import Model
    from inference.speculative.small import Line, Second
    from inference.speculative.verify import Rule

SAME_SIZE_ETA = 20.0
"""Largest shift towards a drafter of the target's own size: beyond it, unrelated passages cost
accuracy (arXiv 2502.20330, robustness to retrieval quality)."""
GAMMA, GAMMA_CPU = 10, 4
"""Draft lengths on an accelerator, which is the paper's, and on a processor, which is ours."""
READING = 4
"""A line that lacks more tokens than these is still reading its prompt."""
NGRAM, LEAST = 4, 2
"""Longest and shortest suffix by which the drafter looks its own tokens up."""


class Rapid(Drafter):
    """Drafts from a short prompt (`Request.draft_prompt`) for a target that reads a long one.

    `mode` decides how drafts are accepted: `lossless` keeps the target's distribution (`eta` is
    0); `tilted-exact` follows the target's, shifted towards the drafter's by `eta`; `paper` is the
    rule as printed, which follows neither. In greedy decoding the lossy modes accept what is the
    most probable after the shift, by the probabilities at temperature 1: our definition, the paper
    has none. Drafts are single chains of `gamma` tokens, drawn with the request's temperature and
    filters; a grammar is heeded by the target only, so that what it forbids is drafted and refused.

    Source: Chen et al., arXiv 2502.20330 (ICML 2025), section 3, algorithm 1.
    Deviations: the token behind an accepted draft follows the target in every mode, since no
    drafter row exists there (as in algorithm 1). The drafter runs without the request's adapters.
    `gamma` is smaller on a processor. `confidence` is from the released code, where it may cut
    before the unsure token; here that token stays, because a draft from which unlikely tokens are
    taken out is no sample of the drafter's distribution any more. The drafter is itself sped up by
    prompt lookup in what it reads (`lookup`): what it guesses it draws as it would have anyway.
    Not verified: the paper's quality and speed, which are of models of 7B to 72B at 8K to 128K.
    """

    source: ClassVar[str] = "RAPID, arXiv 2502.20330, section 3"

    gamma: int | None = Field(
        None, ge=1, le=MOST, description="draft length; left out, 10 on a GPU and 4 on a processor"
    )
    mode: Literal["lossless", "tilted-exact", "paper"] = Field(
        "lossless", description="rule of acceptance; all but lossless change what is generated"
    )
    eta: float = Field(
        0.0, ge=0, le=50, description="shift towards the drafter, over 0 in the lossy modes"
    )
    tail: Literal["paper", "repo"] = Field(
        "paper", description="which improbable tokens are not shifted: by the paper or its code"
    )
    tail_factor: float = Field(
        0.1, ge=0, lt=1, description="improbable: under this part of the top"
    )
    model: str | None = Field(
        None,
        min_length=1,
        description="drafting model with the target's tokenizer; left out, the target itself",
    )
    confidence: float = Field(
        0.0, ge=0, lt=1, description="a draft ends behind a token less probable than this"
    )
    kv_mib: int = Field(512, ge=1, description="most MiB of the drafter's own key/value entries")
    lookup: int = Field(
        8,
        ge=0,
        le=MOST,
        description="tokens that the drafter guesses from what it read and checks in one pass; "
        "they make its drafts come sooner and change none, and all that draft share them",
    )

    @model_validator(mode="after")
    def _mode_and_eta(self) -> Self:
        if self.mode == "lossless" and self.eta:
            raise ValueError(
                f"eta={self.eta:g} changes what is generated, and mode 'lossless' promises that "
                "nothing does; leave eta out, or use mode 'tilted-exact' or 'paper'"
            )
        if self.mode != "lossless" and not self.eta:
            raise ValueError(f"mode {self.mode!r} needs eta over 0, such as 5 or 10")
        if self.model is None and self.eta > SAME_SIZE_ETA:
            raise ValueError(
                f"eta={self.eta:g} is over {SAME_SIZE_ETA:g}, the most for a drafter of the "
                "target's own size; lower it, or name a larger model"
            )
        return self

    @property
    def opens(self) -> tuple[str, ...]:
        """The drafting model, where another one is named."""
        return () if self.model is None else ("model",)

    @property
    def rule(self) -> Rule:
        """Rejection where nothing may change, else one of the two shifted rules."""
        from inference.speculative.verify import RapidPaper, Rejection, Tilted

        if self.mode == "lossless":
            return Rejection()
        kind = Tilted if self.mode == "tilted-exact" else RapidPaper
        return kind(self.eta, self.tail, self.tail_factor)

    def open(self, model: Model) -> Proposer:
        """A second runner over the target's weights or over a model of its own.

        Raises DrafterInputError where that has another vocabulary.
        """
        from inference.speculative.small import Second

        drafting = model
        if self.model is not None:
            from inference.models import resolve
            from inference.native.model import Model as Loaded

            dtype = str(model.network.dtype).removeprefix("torch.")
            drafting = Loaded.load(resolve(self.model), self.model, dtype, model.device.type)
        return _Drafting(self, model, Second(drafting, model, self.kv_mib * 2**20))


@dataclass(slots=True, eq=False)
class _State:
    """One request's drafter: what it reads, and what that has cost, in seconds and tokens.

    `left` is when the last proposal was handed out; until the next turn the target works.
    """

    start: Start
    prompt: Sequence[int]
    texts: Index = field(default_factory=lambda: Index(NGRAM))
    line: Line | None = None
    fallback: str | None = None
    draft_seconds: float = 0.0
    target_seconds: float = 0.0
    drafted: int = 0
    passes: int = 0
    rounds: int = 0
    left: float | None = None


@dataclass(slots=True)
class _Chain:
    """A draft as it grows; `rows` are what its tokens were drawn from.

    `node` is that of its last token in the line, -1 where it has none yet; `guess` are the nodes
    of tokens that may come next.
    """

    turn: Turn
    line: Line
    length: int
    ids: list[int] = field(default_factory=list)
    rows: list[torch.Tensor] = field(default_factory=list)
    node: int = -1
    guess: list[int] = field(default_factory=list)


class _Drafting(Proposer):
    """Chains of a second model, for all requests of a step side by side."""

    def __init__(self, options: Rapid, target: Model, second: Second) -> None:
        self._options = options
        self._second = second
        self._width = target.width
        self._stops = target.stop_ids
        self._gamma = options.gamma or (GAMMA_CPU if target.device.type == "cpu" else GAMMA)

    def begin(self, start: Start) -> Any:
        """Check that the drafter can read its prompt; it is read in the step thread."""
        drafting = self._second.model
        if not start.own and len(start.prompt) >= drafting.context_length:
            raise DrafterInputError(
                f"the draft prompt has {len(start.prompt)} tokens, and drafting model "
                f"{drafting.name!r} reads {drafting.context_length}; retrieve less for it",
                "model",
            )
        fallback = "no draft prompt was given: the drafter reads the request's own"
        return _State(start, start.prompt, fallback=fallback if start.own else None)

    def propose(self, turns: Sequence[Turn]) -> Sequence[Proposal | None]:
        """A chain for each request; its draft prompt is read before the first one."""
        began = time.perf_counter()
        for turn in turns:
            state: _State = turn.state
            if state.left is not None:
                state.target_seconds += began - state.left
        chains = [self._chain(turn) for turn in turns]
        growing = [chain for chain in chains if chain is not None]
        while growing:
            for chain in growing:
                self._guess(chain, self._options.lookup // len(growing))
            rows = [1 + len(chain.guess) for chain in growing]
            found = self._second.check([chain.line for chain in growing], rows)
            # A draft prompt longer than a pass has no logits at first; it is read to its end here,
            # so that what a seed gives does not depend on who else drafts.
            growing = [
                chain
                for chain, logits in zip(growing, found, strict=True)
                if (chain.line.lost is None if logits is None else self._extend(chain, logits))
            ]
        proposals = [None if chain is None else self._proposal(chain) for chain in chains]
        ended = time.perf_counter()
        for turn in turns:
            turn.state.draft_seconds += (ended - began) / len(turns)
            turn.state.left = ended
        return proposals

    def end(self, state: Any) -> None:
        """Free what the drafter remembers of a request."""
        if state.line is not None:
            self._second.free(state.line)

    def notes(self, state: Any) -> dict[str, object]:
        """What the drafter read, and the measures that the break-even is computed from."""
        found: dict[str, object] = {
            "model": self._second.model.name,
            "gamma": self._gamma,
            "draft_prompt_tokens": len(state.prompt),
            "draft_rounds": state.rounds,
            "draft_tokens": state.drafted,
            "draft_passes": state.passes,
            "draft_seconds": round(state.draft_seconds, 6),
            "target_seconds": round(state.target_seconds, 6),
        }
        fallback = state.fallback
        if state.line is not None and state.line.lost is not None:
            lost = f"the drafter stopped for want of {state.line.lost}"
            fallback = f"{fallback}; {lost}" if fallback else lost
        return found if fallback is None else {**found, "fallback": fallback}

    def close(self) -> None:
        """Forget the drafter's prompts."""
        self._second.close()

    def _chain(self, turn: Turn) -> _Chain | None:
        """An empty chain below the tokens that target and drafter share; None if it is lost."""
        state: _State = turn.state
        if state.line is None:
            if not state.start.own and len(state.prompt) > turn.prompt:
                state.fallback = (
                    f"the draft prompt of {len(state.prompt)} tokens is longer than the request's "
                    f"of {turn.prompt}: the drafter reads the request's own"
                )
                state.prompt = list(turn.ids[: turn.prompt])
            state.line = self._second.admit(state.prompt, tenant=state.start.tenant)
            state.texts.extend(state.prompt)
        state.texts.extend(turn.ids[len(turn.ids) - turn.fresh :])
        self._second.sync(state.line, [*state.prompt, *turn.ids[turn.prompt :]])
        if state.line.lost is not None:
            return None
        return _Chain(turn, state.line, min(self._gamma, turn.room, turn.depth))

    def _guess(self, chain: _Chain, most: int) -> None:
        """Put tokens that what was read suggests below the last one of a chain, to be checked."""
        state: _State = chain.turn.state
        if chain.guess or chain.line.waiting > READING:
            return
        most = min(most, chain.length - len(chain.ids) - 1)
        node = chain.node
        for token in state.texts.after(most, chain.ids, LEAST):
            if token >= self._second.words:  # the target alone knows it
                break
            node = chain.line.push(token, node)
            chain.guess.append(node)

    def _extend(self, chain: _Chain, logits: torch.Tensor) -> bool:
        """Draw the next tokens of a chain from `logits` [1 + guess, words]; whether to go on.

        Each is drawn as it would be without a guess: a guess that equals it saves a pass.
        """
        line = chain.line
        chain.turn.state.passes += 1
        for at, row in enumerate(logits):
            if self._draw(chain, row):
                return False
            token = chain.ids[-1]
            if at == len(chain.guess) or line.ids[line.trunk + chain.guess[at]] != token:
                break
            chain.node = chain.guess[at]
        chain.node = line.push(token, chain.node)
        chain.guess = []
        return True

    def _draw(self, chain: _Chain, logits: torch.Tensor) -> bool:
        """Draw the next token of a chain from `logits` [words]; whether the draft ends with it."""
        from inference.native.sampling import draw, most_probable, process, require_sound, uniform
        from inference.speculative.verify import DRAFTING

        turn, sampling = chain.turn, chain.turn.state.start.sampling
        require_sound(logits)
        row = process(logits, sampling, [*turn.ids, *chain.ids])
        probabilities = row.double().softmax(0)
        if sampling.temperature == 0.0:
            token = most_probable(row)
        else:
            place = len(turn.ids) + len(chain.ids)
            token = draw(probabilities, uniform(turn.state.start.seed, place, DRAFTING))
        chain.ids.append(token)
        chain.rows.append(probabilities)
        return (
            len(chain.ids) == chain.length
            or token in self._stops
            or bool(probabilities[token] < self._options.confidence)
        )

    def _proposal(self, chain: _Chain) -> Proposal | None:
        """The chain, with whole rows where its rule compares with them."""
        import torch

        if not chain.ids:
            return None
        state: _State = chain.turn.state
        state.rounds += 1
        state.drafted += len(chain.ids)
        draft = Draft(tuple(chain.ids), tuple(range(-1, len(chain.ids) - 1)))
        if state.start.sampling.temperature == 0.0 and self._options.mode == "lossless":
            return Proposal(draft)
        drawn = torch.stack(chain.rows)
        missing = self._width - drawn.shape[1]  # padding that only the target's logits have
        return Proposal(draft, torch.nn.functional.pad(drawn, (0, max(missing, 0))))


def gain(
    tokens: float, plain: float, verify: float, draft: float, length: float, once: float = 0.0
) -> float:
    """How many times faster than plain decoding; over 1 where drafting pays.

    `tokens` are generated a round, `plain`, `verify` and `draft` the seconds of a plain step, of a
    step over a draft of `length` and of one draft token, `once` the seconds a round bears of what
    is done once: retrieval and the second prefill. Source: the sheet's break-even of RAPID.
    """
    return tokens * plain / (length * draft + verify + once)
