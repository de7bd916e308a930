"""Medusa: heads on the target's own final state guess the tokens behind the next one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from inference.errors import DrafterInputError
from inference.speculative.base import MOST, Drafter, Proposer
from inference.speculative.choices import read_choices, spell_choice
from inference.suggest import nearest

if TYPE_CHECKING:
    from inference.native.model import Model
    from inference.speculative.verify import Rule

SHIPPED = Path(__file__).parents[1] / "weights"

NODES = 4
"""Tokens of a draft: on two cores a pass over five rows takes hardly longer than one over one."""

COPIED = 8
"""The same where followers count: most drafts are shorter, and what is repeated fills them."""

COPIES = 16
"""Tokens copied behind the likeliest path: a long passage that is repeated takes few steps."""


class Medusa(Drafter):
    """Guesses with small heads on the state that the last token was drawn from, as a sparse tree.

    Head k guesses the token k + 1 places behind the last one; the target checks the tree in one
    pass. Source: Cai et al., Medusa (arXiv 2401.10774). Medusa-1: the model itself is unchanged.
    `accept: exact` keeps the target's outputs, greedy and seeded; `typical` is the paper's
    acceptance when sampling, which does not keep their distribution.
    Deviations: heads share the model's output matrix, and guess among the tokens they were
    trained with (`tokens` of their file); a guess outside them is never made. Those that come along
    are a chain, each reading the guess before its own, as Hydra's do (arXiv 2402.05109), whose
    drafts are the likeliest nodes of each step rather than a fixed tree (EAGLE-2, arXiv
    2406.16858); it goes deeper only where a guess with a share of FOLLOWS behind the best of the
    last depth would be among them, so that a likelier one is missed. With `context` such a chain
    also guesses what followed the same one, two or three tokens before in the text so far and in
    texts given along, and takes it for likelier the more tokens agree, and its likeliest path goes
    on, without heads, as the text did behind the same three tokens; the paper's heads see the state
    alone, and so do these with `context: false`. Not verified: the paper's own figures, which
    are of models of 7B and more.
    """

    source: ClassVar[str] = "Medusa, arXiv 2401.10774, sections 2.1 to 2.3"
    reaches: ClassVar[bool] = True

    heads: str = Field("medusa-default", min_length=1, description="shipped heads or a folder")
    nodes: int | None = Field(
        None,
        ge=1,
        le=MOST,
        description="most tokens that heads guess: 8, 4 without `context`, or all of `choices`",
    )
    choices: str | None = Field(
        None,
        description="fixed tree of ranks such as '0 1 0.0 0.0.0'; left out, a chain of heads "
        "drafts the likeliest guesses, and heads that guess side by side fill their own",
    )
    context: bool | None = Field(
        None,
        description="guess too what followed the same tokens before in this text, yes where heads "
        "are a chain, which it needs; false leaves guessing to the heads alone",
    )
    copies: int | None = Field(
        None,
        ge=0,
        le=MOST,
        description="most tokens copied from the text behind the likeliest path: 16, and none "
        "without `context` or with `choices`",
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
        if self.copies and (self.context is False or self.choices is not None):
            raise ValueError("copies go with `context` and without `choices`; leave them out")
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
        from inference.speculative.medusa_guess import Chain, Parallel
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
        choices = None if self.choices is None else read_choices(self.choices)
        if choices and len(deepest := max(choices, key=len)) > heads.depth:
            raise DrafterInputError(
                f"choice {spell_choice(deepest)!r} is {len(deepest)} deep and "
                f"the heads of {str(folder)!r} guess {heads.depth} tokens; leave it out",
                "choices",
            )
        context = heads.drawn is not None and self.context is not False
        nodes = self.nodes or (len(choices) if choices else COPIED if context else NODES)
        if heads.drawn is None:
            if self.context:
                raise DrafterInputError(
                    f"heads {str(folder)!r} guess side by side, so that no guess knows what it "
                    "follows; leave context out, or train a chain",
                    "context",
                )
            return Parallel(heads, model.lean, (choices or heads.choices)[:nodes])
        fixed = choices and choices[:nodes]
        copies = 0 if fixed or not context else COPIES if self.copies is None else self.copies
        return Chain(heads, model.lean, nodes, fixed, context=context, copies=copies)

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
