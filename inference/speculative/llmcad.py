"""LLMCad: a smaller model writes a token tree until it is no longer sure of any branch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from inference.errors import DrafterInputError
from inference.speculative.base import MOST, Drafter, Proposer
from inference.speculative.pacing import Update

if TYPE_CHECKING:
    from inference.native.model import Model


class LLMCad(Drafter):
    """A token tree of a smaller model, verified when its confidence falls to a threshold.

    The likeliest token goes on along a branch, every other one above `branch` opens another; each
    pass writes one token on the branch that lacks most of its share of them, and the tree is
    verified when its best branch is no surer than `alpha`, which adapts to what was wrong. The
    small model is a checkpoint with the same tokenizer (`model`) or the first `layers` of the
    target with its norm and head, whose weights are shared; without either, half of the layers.

    Source: LLMCad, arXiv 2309.04255, sections 3.1 to 3.4; no official code was found. Confidences
    are of the unwarped distribution (temperature 1) whatever the request samples with. Deviations:
    one pass with a tree mask verifies, not a batch of branches; caps on nodes and depth and the
    bounds of alpha are ours, nodes and depth being smaller here than 32 and 16 because on two
    cores every drafted node costs; a tree ends too when its best branch reaches the greatest depth;
    equality with alpha ends it; rule `fixed` keeps alpha. Which tokens `prose` averages over is
    not verified: those behind the first wrong one, or that one if it is the last. Drafting during
    verification (section 3.4) hides the reading of the target's weights from storage; here weights
    are resident, there is nothing to hide, and it is off. An early exit reads keys and values of
    its own, and is not trained for it: expect few accepted tokens. Drafts are written without the
    request's adapters and grammar, which cost acceptance and never exactness.
    """

    source: ClassVar[str] = "LLMCad, arXiv 2309.04255"

    model: str | None = Field(None, description="name or path of a checkpoint with this tokenizer")
    layers: int | None = Field(None, ge=1, description="draft with the first layers of the target")
    branch: float = Field(
        0.3, ge=0.05, le=1, description="probability above which another token opens a branch"
    )
    alpha: float = Field(0.01, ge=0, le=1, description="first confidence at which to verify")
    decay: float = Field(0.5, gt=0, le=1, description="factor of alpha after a right branch")
    update: Update = Field("prose", description="how an error changes alpha")
    nodes: int = Field(16, ge=1, le=MOST, description="most tokens of a tree")
    depth: int = Field(8, ge=1, le=MOST, description="longest branch")
    cache_bytes: int = Field(
        2**28, ge=0, description="most memory for the small model's keys and values"
    )

    @model_validator(mode="after")
    def _one(self) -> LLMCad:
        if self.model is not None and self.layers is not None:
            raise ValueError("name both a model and layers; give one of them")
        return self

    def open(self, model: Model) -> Proposer:
        """Load the small model; DrafterInputError where it does not fit the target."""
        from inference.speculative.small import Second
        from inference.speculative.writing import Writing

        return Writing(self, Second(self._small(model), model, self.cache_bytes), model.stop_ids)

    def _small(self, target: Model) -> Model:
        if self.model is None:
            return _early(target, self.layers)
        from inference.models import resolve
        from inference.native.model import Model

        kind = str(target.network.dtype).removeprefix("torch.")
        return Model.load(resolve(self.model), self.model, kind, target.device.type)


def _early(target: Model, layers: int | None) -> Model:
    """The first layers of the target; DrafterInputError where it has none to leave out."""
    whole = int(target.config.num_hidden_layers)
    count = max(1, whole // 2) if layers is None else layers
    if target.lean is None:
        raise DrafterInputError(
            f"model {target.name!r} of type {target.config.model_type!r} has no early exit here; "
            "give drafter llmcad a model with the same tokenizer, as model=NAME",
            "layers",
        )
    if count > whole:
        raise DrafterInputError(
            f"drafter llmcad asks for the first {count} layers, and model {target.name!r} has "
            f"{whole}; use layers={whole - 1} or fewer",
            "layers",
        )
    return target.early(count)
