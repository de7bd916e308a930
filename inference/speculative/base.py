"""What a drafter is: what it is told, what it may propose, and by which rule that is accepted.

Configurations are light pydantic models; tensors reach a proposer only while requests run. A
drafter never accepts: `inference.speculative.verify` does, for all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from inference.native.sequence import Draft

if TYPE_CHECKING:
    import torch

    from inference.native.model import Model
    from inference.requests import SamplingParams
    from inference.speculative.verify import Rule

MOST = 64
"""Most tokens of one draft, whatever the drafter."""


class Drafter(BaseModel):
    """Proposes tokens below the last one of a request; an option of the request or its node."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: ClassVar[str] = ""
    """Paper and section the method is from."""

    reaches: ClassVar[bool] = False
    """Whether drafts are as long as those before were accepted (`reach`), where it is adaptive."""

    adaptive: bool = Field(
        True, description="pause while drafting loses time on this request, draft what is accepted"
    )

    @property
    def opens(self) -> tuple[str, ...]:
        """Options that name a model or a file of this machine, as far as they are given."""
        return ()

    @property
    def rule(self) -> Rule:
        """How what it proposes is accepted; exact match with what the target draws by default."""
        from inference.speculative.verify import Match

        return Match()

    def open(self, model: Model) -> Proposer:
        """What proposes for `model`: once per engine and options, outside the step thread.

        Raises DrafterInputError where the two do not fit together.
        """
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True, slots=True)
class Start:
    """A request as a proposer meets it.

    `references` are token ids of each text given along with the request to copy from; `prompt` are
    those of the prompt the drafter reads, which is the request's own unless it gave another
    (`own` says which). `tenant` keeps what is remembered apart.
    """

    prompt: Sequence[int]
    own: bool
    references: Sequence[Sequence[int]]
    sampling: SamplingParams
    seed: int
    tenant: str
    adapters: tuple[str, ...] = ()


@dataclass(slots=True)
class Turn:
    """What a proposer is told about one request before it proposes.

    `state` is what `begin` gave. `ids` are all tokens of the request, the prompt's first `prompt`
    among them; the last one is not in the target's cache yet. `fresh` were appended since the last
    turn, of which the first `len(kept)` are the nodes `kept` of the last proposal. `room` is the
    most tokens that may be proposed and `depth` the longest chain, both over 0. `hidden` [hidden]
    is the target's final state that the last token was drawn from, for proposers that ask for it.
    """

    state: Any
    ids: Sequence[int]
    prompt: int
    fresh: int
    kept: Sequence[int]
    room: int
    depth: int
    hidden: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Proposal:
    """A draft; `drawn` [tokens, vocabulary], float64, is what each token was drawn from.

    A row of `drawn` is the distribution of that one draw: for a sibling that was drawn without
    replacement, what was left after those before it. None where tokens were not drawn at random.
    `notes` go into the result, under `notes["drafter"]`.
    """

    draft: Draft
    drawn: torch.Tensor | None = None
    notes: dict[str, object] = field(default_factory=dict)


class Proposer(ABC):
    """A drafter at work for one engine; everything but `begin` happens in the step thread."""

    reads_hidden: ClassVar[bool] = False
    """Whether turns carry the target's final hidden state."""

    @abstractmethod
    def begin(self, start: Start) -> Any:
        """State of a request, made when it is admitted; raises DrafterInputError."""

    @abstractmethod
    def propose(self, turns: Sequence[Turn]) -> Sequence[Proposal | None]:
        """A proposal, or None, for each of the requests of a step that go on."""

    def end(self, state: Any) -> None:  # noqa: B027  nothing to do for most
        """A request left; whatever was its alone goes."""

    def notes(self, state: Any) -> dict[str, object]:
        """What the result of a request says about its drafter."""
        return {}

    def close(self) -> None:  # noqa: B027  nothing to do for most
        """Free what was opened."""
