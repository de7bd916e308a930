"""Log-probabilities of given continuations; the prompt they share is read once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from inference.native.sampling import require_sound
from inference.native.sequence import Sequence as Row
from inference.native.task import Job
from inference.requests import FinishReason, Score
from inference.taps import Tapped


class Reading:
    """Task that reads a prompt and then hands its row to `done`, before its blocks go back."""

    def __init__(
        self,
        job: Job,
        row: Row,
        done: Callable[[Row], object],
        failed: Callable[[FinishReason | Exception], object],
        door: str = "readings",
    ) -> None:
        self.job = job
        self.sequence = row
        self.rows: Sequence[Row] = (row,)
        self._done = done
        self._failed = failed
        self.door = door
        self.continued = 0

    def stepped(self, tapped: Sequence[Tapped]) -> None:
        """Nothing is counted; what a policy broke is raised."""
        if self.sequence.cache is not None and self.sequence.cache.error is not None:
            raise self.sequence.cache.error

    def take(self, row: Row, logits: torch.Tensor) -> FinishReason | None:
        """The prompt is read."""
        self._done(self.sequence)
        return FinishReason.LENGTH

    def end(self, reason: FinishReason) -> None:
        """Report an end that came early."""
        if reason is not FinishReason.LENGTH:
            self._failed(reason)

    def fail(self, error: Exception) -> None:
        """Report the error."""
        self._failed(error)


class Scoring:
    """Task that forks a prompt and collects the log-probability of each further token."""

    def __init__(
        self,
        job: Job,
        continuation: Sequence[int],
        prompt: Row,
        done: Callable[[Score | FinishReason | Exception], object],
    ) -> None:
        self.job = job
        self._first = len(job.prompt) - 1
        self._continuation = tuple(continuation)
        # The last token is never read: nothing after it is asked for.
        ids = [*job.prompt, *continuation[:-1]]
        self.sequence = Row(
            ids,
            len(ids),
            prompt.salt,
            prompt=len(job.prompt),
            wanted=self._first,
            adapters=prompt.adapters,
        )
        self.rows: Sequence[Row] = (self.sequence,)
        self._logprobs: list[float] = []
        self._done = done
        self.door = "scores"
        self.continued = len(self._continuation)

    def stepped(self, tapped: Sequence[Tapped]) -> None:
        """Nothing is counted."""

    def take(self, row: Row, logits: torch.Tensor) -> FinishReason | None:
        """Keep the log-probabilities of the tokens that follow these rows."""
        require_sound(logits)
        # After the step `cached` counts these rows; a preempted row starts over from its first.
        end = self.sequence.cached - self._first
        start = end - len(logits)
        wanted = torch.tensor(self._continuation[start:end], device=logits.device)[:, None]
        found = torch.log_softmax(logits, dim=-1).gather(1, wanted)[:, 0].tolist()
        self._logprobs[start:] = found
        return FinishReason.LENGTH if end == len(self._continuation) else None

    def end(self, reason: FinishReason) -> None:
        """Report the score, or why there is none."""
        whole = reason is FinishReason.LENGTH
        self._done(Score(self._continuation, tuple(self._logprobs)) if whole else reason)

    def fail(self, error: Exception) -> None:
        """Report the error."""
        self._done(error)
