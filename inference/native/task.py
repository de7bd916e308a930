"""What the step loop knows about a piece of work: its row, when to end it, whom to tell."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch

from inference.native.sequence import Sequence as Row
from inference.requests import FinishReason, Request
from inference.taps import Tapped

if TYPE_CHECKING:
    from inference.adapters.lora import Adapter
    from inference.grammar.matcher import Matcher
    from inference.native.speculation import Speculation


@dataclass(slots=True)
class Job:
    """A checked request with its prompt ids; `created` is on the monotonic clock.

    `contexts` are ids and adapters of its guiding contexts, `speculation` drafts for it. `began`
    and `left` are when the step loop first computed something for it and when it let go of it, 0
    before; `resumed` is how many of its produced tokens were taken over from the request.
    """

    request: Request
    prompt: list[int]
    truncated: int = 0
    matcher: Matcher | None = None
    adapters: tuple[Adapter, ...] = ()
    contexts: Sequence[tuple[Sequence[int], tuple[Adapter, ...]]] = ()
    speculation: Speculation | None = None
    created: float = field(default_factory=time.monotonic)
    cancelled: threading.Event = field(default_factory=threading.Event)
    began: float = 0.0
    left: float = 0.0
    resumed: int = 0
    seed: int = field(init=False)

    def __post_init__(self) -> None:
        given = self.request.sampling.seed
        # 53 bits survive any JSON reader, so a reported seed can be given back.
        self.seed = secrets.randbits(53) if given is None else given

    @property
    def seconds(self) -> float:
        """Time in the step loop."""
        return self.left - self.began if self.began else 0.0

    def interrupted(self) -> FinishReason | None:
        """Why to end before the next forward pass, if so."""
        if self.cancelled.is_set():
            return FinishReason.ABORTED
        seconds = self.request.seconds
        if seconds is not None and time.monotonic() - self.created >= seconds:
            return FinishReason.DEADLINE
        return None


class Task(Protocol):
    """Work on one or more sequences; every method is called by the step loop, in its thread."""

    job: Job
    rows: Sequence[Row]
    door: str
    """Under what its cost is counted: a field of `inference.native.totals.Totals`."""
    continued: int
    """Tokens behind the prompt of another task, which counts the request; 0 for a request."""

    def stepped(self, tapped: Sequence[Tapped]) -> FinishReason | None:
        """A forward pass computed some of its tokens, and showed what was asked for.

        A reason ends the task.
        """
        ...

    def take(self, row: Row, logits: torch.Tensor) -> FinishReason | None:
        """Use the wanted rows [rows, vocabulary] of one sequence; a reason ends the task."""
        ...

    def end(self, reason: FinishReason) -> None:
        """It left the loop; its blocks are free."""
        ...

    def fail(self, error: Exception) -> None:
        """It left the loop without a result."""
        ...


@runtime_checkable
class Drafts(Protocol):
    """A task that gives its rows drafts."""

    @property
    def left(self) -> int:
        """Tokens it may still produce."""
        ...

    def verify(self, row: Row, logits: torch.Tensor) -> Sequence[int]:
        """Append the accepted tokens to `row.ids`; the path they form in `row.draft`.

        `logits` [1 + draft, vocabulary] begin with the row of the sequence's last token. What
        follows the last accepted token is then asked of `take`.
        """
        ...
