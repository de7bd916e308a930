"""Triggers: what watches a generation and says where to search, by name and options."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agents.atlas import Form, LrpConfig, MlagConfig
from agents.atlas_calibration import find
from agents.errors import TriggerInputError
from inference.named import Methods


class Trigger(BaseModel):
    """Watches a generation in segments of `window` tokens; at most `most` searches of `k` hits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: ClassVar[str] = ""
    """Paper and section the method is from."""

    window: int = Field(32, ge=8, le=256, description="tokens that are written before it judges")
    k: int = Field(3, ge=1, le=50, description="unseen passages that a search adds")
    most: int = Field(3, ge=1, le=50, description="searches of one answer")
    query_tokens: int = Field(24, ge=1, description="longest query that the model writes")

    def watching(self, model: str, digest: str) -> Any:
        """What is needed to judge generations of the model with this digest.

        Raises InferenceInputError where it lacks what it must know of the model.
        """
        raise NotImplementedError(type(self).__name__)


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

    @model_validator(mode="after")
    def _together(self) -> Self:
        if (self.max_probability is None) != (self.threshold is None):
            raise ValueError("max_probability and threshold belong together; give both or neither")
        return self

    def watching(self, model: str, digest: str) -> tuple[MlagConfig, LrpConfig]:
        """The constants of MLAG and LRP for a model."""
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
        return when, LrpConfig(share, 1 - share, query_tokens=self.words)


TRIGGERS: dict[str, type[Trigger]] = {"atlas": Atlas}
METHODS: Methods[Trigger] = Methods("trigger", TRIGGERS, TriggerInputError)
