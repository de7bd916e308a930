"""Medusa: heads on the target's own final state guess the tokens behind the next one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from inference.errors import DrafterInputError
from inference.native.sequence import Draft
from inference.speculative.base import MOST, Drafter, Proposal, Proposer, Start, Turn
from inference.speculative.choices import Choice, read_choices, spell_choice
from inference.suggest import nearest

if TYPE_CHECKING:
    import torch

    from inference.native.lean import Lean
    from inference.native.model import Model
    from inference.speculative.medusa_heads import MedusaHeads
    from inference.speculative.verify import Rule

SHIPPED = Path(__file__).parents[1] / "weights"


class Medusa(Drafter):
    """Guesses with small heads on the state that the last token was drawn from, as a sparse tree.

    Head k guesses the token k + 1 places behind the last one; the target checks the tree in one
    pass. Source: Cai et al., Medusa (arXiv 2401.10774). Medusa-1: the model itself is unchanged.
    `accept: exact` keeps the target's outputs, greedy and seeded; `typical` is the paper's
    acceptance when sampling, which does not keep their distribution.
    Deviations: heads share the model's output matrix, and guess among the tokens they were
    trained with (`tokens` of their file); a guess outside them is never made. Those that come along
    read the drawn token beside the state, as Hydra's do (arXiv 2402.05109). Not verified: the
    paper's own figures, which are of models of 7B and more.
    """

    source: ClassVar[str] = "Medusa, arXiv 2401.10774, sections 2.1 to 2.3"

    heads: str = Field("medusa-default", min_length=1, description="shipped heads or a folder")
    nodes: int = Field(12, ge=1, le=MOST, description="most tokens of a draft")
    choices: str | None = Field(
        None, description="tree of ranks such as '0 1 0.0 0.0.0'; left out, the heads' own"
    )
    accept: Literal["exact", "typical"] = Field("exact", description="rule when sampling")
    epsilon: float | None = Field(
        None, gt=0, le=1, description="typical: probability that is always enough, 0.09"
    )
    delta: float | None = Field(None, gt=0, le=1, description="typical: share of exp(-H), 0.3")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.choices is not None:
            read_choices(self.choices)
        given = [name for name in ("epsilon", "delta") if getattr(self, name) is not None]
        if given and self.accept != "typical":
            raise ValueError(f"give {given[0]} with accept=typical, or leave it out")
        return self

    @property
    def rule(self) -> Rule:
        """Exact match, or typical acceptance where it was asked for."""
        from inference.speculative.verify import Match, Typical

        if self.accept == "exact":
            return Match()
        given = {"epsilon": self.epsilon, "delta": self.delta}
        return Typical(**{name: value for name, value in given.items() if value is not None})

    @property
    def opens(self) -> tuple[str, ...]:
        """Heads that do not come along are a folder of this machine."""
        return () if self.heads in _shipped() else ("heads",)

    def open(self, model: Model) -> Proposer:
        """Read the heads and those rows of the model's output matrix that they use."""
        from inference.speculative.medusa_heads import MedusaHeads

        if model.lean is None:
            raise DrafterInputError(
                f"drafter medusa reads the final states of model {model.name!r}, which only the "
                "lean forward pass shows; open the engine with forward 'auto' or 'lean'",
                "drafter",
            )
        folder = self._folder()
        heads = MedusaHeads.load(folder)
        width = int(model.config.hidden_size)
        if heads.blocks.shape[1] != width:
            raise DrafterInputError(
                f"heads {str(folder)!r} read states of {heads.blocks.shape[1]} numbers and those "
                f"of model {model.name!r} have {width}; train heads on this model",
                "heads",
            )
        if heads.base != model.weights_digest:
            raise DrafterInputError(
                f"heads {str(folder)!r} were trained on model {heads.model!r}, whose weights "
                f"are not those of {model.name!r}; train heads on this model "
                "(python -m inference.training.medusa)",
                "heads",
            )
        choices = heads.choices if self.choices is None else read_choices(self.choices)
        if (deepest := max(choices, key=len)) and len(deepest) > heads.count:
            raise DrafterInputError(
                f"choice {spell_choice(deepest)!r} is {len(deepest)} deep and "
                f"{str(folder)!r} holds {heads.count} heads; leave it out",
                "choices",
            )
        return _Guessing(heads, model.lean, choices[: self.nodes])

    def _folder(self) -> Path:
        if self.heads in _shipped():
            return SHIPPED / self.heads
        folder = Path(self.heads).expanduser()
        if not folder.is_dir():
            raise DrafterInputError(
                f"no heads {self.heads!r}: neither shipped nor a folder; "
                f"{nearest(self.heads, _shipped())}",
                "heads",
            )
        return folder


def _shipped() -> list[str]:
    return sorted(path.name for path in SHIPPED.glob("medusa-*"))


class _Guessing(Proposer):
    """No request has a state of its own: all there is to know is in the target's."""

    reads_hidden: ClassVar[bool] = True

    def __init__(self, heads: MedusaHeads, model: Lean, choices: Sequence[Choice]) -> None:
        from inference.native.linear import Linear

        heads = heads.to(model.dtype, model.device)
        self._depth = max(map(len, choices))
        # One product for all heads: apart, they cost as much as three layers of the model.
        self._inner = Linear(*heads.product(self._depth))
        self._model = model if heads.drawn is not None else None
        self._tokens = heads.tokens
        self._dtype = model.dtype
        self._readout = model.readout(heads.tokens)
        self._choices = choices
        self._ranks = 1 + max(max(choice) for choice in choices)

    def begin(self, start: Start) -> Any:
        """Nothing to prepare."""
        return None

    def propose(self, turns: Sequence[Turn]) -> Sequence[Proposal | None]:
        """A tree for each request, all guessed in one product."""
        import torch

        states = [turn.hidden for turn in turns if turn.hidden is not None]
        assert len(states) == len(turns), "a proposer that reads hidden states was given none"
        with torch.inference_mode():
            last = torch.tensor([turn.ids[-1] for turn in turns], device=states[0].device)
            guesses = self._guesses(torch.stack(states), last)
        return [
            tree(self._choices, found, turn.room, turn.depth)
            for found, turn in zip(guesses, turns, strict=True)
        ]

    def _guesses(self, hidden: torch.Tensor, last: torch.Tensor) -> list[list[list[int]]]:
        """Token ids [turns, heads, ranks], the likeliest first."""
        import torch
        from torch.nn.functional import silu

        from inference.speculative.medusa_heads import unit

        read = hidden = hidden.to(self._dtype)
        if self._model is not None:
            read = torch.cat([hidden, unit(self._model.embed(last))], dim=1)
        inner = self._inner(read).unflatten(1, (self._depth, -1))
        logits = self._readout((hidden[:, None] + silu(inner)).flatten(0, 1))
        found = logits.topk(min(self._ranks, logits.shape[1]), dim=1).indices
        if self._tokens is not None:
            found = self._tokens.to(found.device)[found]
        ids: list[list[list[int]]] = found.unflatten(0, (len(hidden), -1)).tolist()
        return ids


def tree(
    choices: Sequence[Choice], guesses: Sequence[Sequence[int]], room: int, depth: int
) -> Proposal | None:
    """The first `room` choices of at most `depth`, filled in from `guesses` [heads][ranks]."""
    kept = [one for one in choices if len(one) <= depth][:room]
    place = {choice: at for at, choice in enumerate(kept)}
    ids = tuple(guesses[len(one) - 1][one[-1]] for one in kept)
    parents = tuple(place.get(one[:-1], -1) for one in kept)
    return Proposal(Draft(ids, parents)) if kept else None
