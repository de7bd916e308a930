"""Guidance: logits of one step from several contexts, combined before the next token is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from inference.errors import InferenceInputError
from inference.requests import Message, require_names

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Context:
    """Another beginning for the same continuation: exactly one of the three is given.

    It may carry adapters of its own.
    """

    prompt: str | None = None
    messages: Sequence[Message] | None = None
    token_ids: Sequence[int] | None = None
    adapters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        given = [n for n in ("prompt", "messages", "token_ids") if getattr(self, n)]
        if len(given) != 1:
            raise InferenceInputError(
                f"a guiding context gives {given or 'nothing'}; "
                "give exactly one of prompt, messages, token_ids, and not an empty one"
            )
        require_names("a guiding context", self.adapters)


class Guidance(Protocol):
    """A rule over the logits of a request and of further contexts of it."""

    @property
    def contexts(self) -> tuple[Context, ...]:
        """The further contexts; each costs a sequence of its own."""
        ...

    def combine(self, logits: Sequence[Tensor]) -> Tensor:
        """Logits [vocabulary] to choose from; `logits` are the request's, then the contexts'."""
        ...
