"""What watches a generation and says where in it to search, and for what: the contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from pydantic import BaseModel, ConfigDict, Field

from inference.watched import Watched


@dataclass(frozen=True, slots=True)
class Place:
    """A token at `position` of a watched generation, its probability and, of ATLAS, its MLAG."""

    position: int
    probability: float
    mlag: float | None = None


class Judge(Protocol):
    """Reads what a generation showed, for one model."""

    @property
    def query_tokens(self) -> int:
        """Longest query that the model writes from the words; 0: the words are the query."""
        ...

    def weights(self, layers: int) -> list[float]:
        """How the states [layers + 1] of a token are mixed that it wants to see."""
        ...

    def place(self, seen: Watched, first: int, end: int, kept: int) -> Place | None:
        """The first token from `first` on, before `end`, that asks for a search.

        `kept` tokens of the answer stand before the segment that was watched.
        """
        ...

    def words(self, seen: Watched, position: int) -> list[str]:
        """What the search at a token is for."""
        ...


class Trigger(BaseModel):
    """Watches a generation in segments of `window` tokens; at most `most` searches of `k` hits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: ClassVar[str] = ""
    """Paper and section the method is from."""

    window: int = Field(32, ge=8, le=256, description="tokens that are written before it judges")
    k: int = Field(3, ge=1, le=50, description="unseen passages that a search adds")
    most: int = Field(3, ge=1, le=50, description="searches of one answer")

    def watching(self, model: str, digest: str) -> Judge:
        """Who judges generations of the model with this digest.

        Raises InferenceInputError where it lacks what it must know of the model.
        """
        raise NotImplementedError(type(self).__name__)
