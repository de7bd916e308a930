"""Triggers: what watches a generation and says where to search, by name and options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from pydantic import Field, model_validator

from agents.atlas import (
    Form,
    LrpConfig,
    MlagConfig,
    first_trigger,
    query_words,
    state_weights,
)
from agents.atlas_calibration import find
from agents.errors import TriggerInputError
from agents.ralm import Ralm
from agents.watching import Judge, Place, Trigger
from inference.named import Methods
from inference.watched import Watched


@dataclass(frozen=True, slots=True)
class Doubts:
    """MLAG says where, LRP for which words."""

    when: MlagConfig
    what: LrpConfig
    query_tokens: int

    def weights(self, layers: int) -> list[float]:
        """delta of LRP's states."""
        return list(state_weights(layers, self.what.layer_temperature))

    def place(self, seen: Watched, first: int, end: int, kept: int) -> Place | None:
        """The first token whose MLAG is over theta."""
        return first_trigger(seen, first, end, self.when)

    def words(self, seen: Watched, position: int) -> list[str]:
        """The words that are most relevant to the token."""
        return query_words(seen, position, self.what)


class Atlas(Trigger):
    """ATLAS: retrieves where attention and probability say that the model does not know.

    MLAG decides when, LRP which words the query is written from (`agents.atlas` has both, with the
    repairs and deviations that the paper's text needs). `max_probability` and `threshold` belong
    together and to one model; left out, they are those that were calibrated for its weights.
    Source: Srinivas et al., arXiv 2504.01281.
    """

    source: ClassVar[str] = "ATLAS, arXiv 2504.01281"

    form: Form = Field("lookahead", description="repair: attention received later, or row i's own")
    max_probability: float | None = Field(None, gt=0, description="tau_p; left out, calibrated")
    threshold: float | None = Field(None, ge=0, description="theta; left out, calibrated")
    scale: float = Field(0.8, gt=0, description="alpha_0")
    scale_decay: float = Field(4.0, ge=0, description="lambda: how fast a full context stops it")
    memory_limit: float = Field(0.85, gt=0, le=1, description="C_max as a part of the context")
    words: int = Field(6, ge=1, le=64, description="tokens that the query is written from")
    attention_weight: float = Field(0.7, ge=0, le=1, description="share of attention in LRP")
    query_tokens: int = Field(24, ge=1, description="longest query that the model writes")

    @model_validator(mode="after")
    def _together(self) -> Self:
        if (self.max_probability is None) != (self.threshold is None):
            raise ValueError("max_probability and threshold belong together; give both or neither")
        return self

    def watching(self, model: str, digest: str) -> Judge:
        """MLAG and LRP with the constants of a model."""
        gate, theta = self.max_probability, self.threshold
        if gate is None or theta is None:
            found = find(model, digest, self.form, self.window)
            gate, theta = found.max_probability, found.threshold
        when = MlagConfig(
            gate,
            theta,
            self.form,
            self.window,
            self.scale,
            self.scale_decay,
            self.memory_limit,
        )
        share = self.attention_weight
        what = LrpConfig(share, 1 - share, query_tokens=self.words)
        return Doubts(when, what, self.query_tokens)


TRIGGERS: dict[str, type[Trigger]] = {"atlas": Atlas, "ralm": Ralm}
METHODS: Methods[Trigger] = Methods("trigger", TRIGGERS, TriggerInputError)
