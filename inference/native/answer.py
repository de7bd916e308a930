"""One generation on its way: draws tokens from logits, emits chunks, then the output."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch

from inference.budget import Usage
from inference.errors import InferenceError
from inference.idealized import IdealizedRuntime
from inference.native.logprobs import token_logprob
from inference.native.model import Model
from inference.native.sampling import choose, require_sound
from inference.native.sequence import Sequence
from inference.native.task import Job
from inference.native.text import Detokenizer, StopFinder
from inference.requests import Chunk, FinishReason, Output, Stats, TokenLogprob


class Answer:
    """Task of one request; `emit` gets chunks, the last with the output, or the error."""

    def __init__(
        self,
        model: Model,
        job: Job,
        emit: Callable[[Chunk | Exception], object],
        token_bytes: int,
        salt: bytes = b"",
        runtime: IdealizedRuntime | None = None,
    ) -> None:
        self.job = job
        self._room = min(job.request.sampling.max_tokens, model.context_length - len(job.prompt))
        self.sequence = Sequence(list(job.prompt), len(job.prompt) + self._room, salt)
        self._stop_ids = model.stop_ids
        self._tokenizer = model.tokenizer
        self._emit = emit
        self._token_bytes = token_bytes
        self._runtime = runtime
        self._detokenizer = Detokenizer(model.decode)
        self._stops = StopFinder(job.request.sampling.stop)
        self._text = ""  # final so far
        self._emitted = (0, 0)  # how much of text and of produced went out in chunks
        self._logprobs: list[TokenLogprob] = []
        self._error: Exception | None = None
        self._forwards = 0
        self._peak = 0
        self._reused = 0
        self._started = self._read = 0.0

    @property
    def _produced(self) -> list[int]:
        return self.sequence.ids[len(self.job.prompt) :]

    def begin(self) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def stepped(self) -> None:
        """Count a forward pass, and the entries held after it."""
        self._forwards += 1
        self._peak = max(self._peak, self.sequence.cached)
        self._reused = self.sequence.reused

    def take(self, logits: torch.Tensor) -> FinishReason | None:
        """Draw the next token from logits [1, vocabulary]; the reason if it is the last.

        What goes wrong with one row is its request's alone, which then ends as failed.
        """
        try:
            return self._take(logits[-1])
        except Exception as error:
            self._error = error
            return FinishReason.FAILED

    def _take(self, logits: torch.Tensor) -> FinishReason | None:
        ids, request = self.sequence.ids, self.job.request
        if not self._read:
            self._read = time.monotonic()
        row, matcher = logits, self.job.matcher
        if matcher is not None:
            require_sound(row)  # the mask could hide it
            row = matcher.mask(row)
        token = choose(row, request.sampling, self.job.seed, len(ids), ids)
        if matcher is not None and not matcher.accept(token):
            raise AssertionError(f"token {token} was chosen against the mask")
        if request.logprobs is not None:
            self._logprobs.append(token_logprob(self._tokenizer, logits, token, request.logprobs))
        ids.append(token)
        if token in self._stop_ids:
            return FinishReason.STOP
        self._text += self._stops.push(self._detokenizer.push(token))
        if self._stops.found is not None:
            return FinishReason.STOP_STRING
        if len(ids) - len(self.job.prompt) == self._room:
            return FinishReason.LENGTH
        if len(self._text) > self._emitted[0]:
            self._emit(self._chunk())
        return None

    def end(self, reason: FinishReason) -> None:
        """Settle the text and emit the output."""
        try:
            self._text += self._stops.push(self._detokenizer.finish())
            if self._stops.found is None:
                self._text += self._stops.finish()
            elif reason in (FinishReason.LENGTH, FinishReason.STOP):
                reason = FinishReason.STOP_STRING
        except Exception as error:
            reason, self._error = FinishReason.FAILED, self._error or error
        self._emit(self._chunk(self._output(reason)))

    def fail(self, error: Exception) -> None:
        """Emit the error in place of an output."""
        self._emit(error)

    def _chunk(self, output: Output | None = None) -> Chunk:
        """Everything final that no chunk has carried yet."""
        text, tokens = self._emitted
        produced = self._produced
        self._emitted = (len(self._text), len(produced))
        return Chunk(self._text[text:], tuple(produced[tokens:]), output)

    def _output(self, reason: FinishReason) -> Output:
        job, produced = self.job, self._produced
        now = time.monotonic()
        seconds = now - self._started if self._started else 0.0
        return Output(
            id=job.request.id,
            text=self._text,
            token_ids=tuple(produced),
            finish_reason=reason,
            usage=Usage(
                prompt_tokens=len(job.prompt),
                cached_tokens=self._reused,
                completion_tokens=len(produced),
                model_calls=1,
                seconds=seconds,
            ),
            stats=Stats(
                forwards=self._forwards,
                peak_kv_bytes=self._peak * self._token_bytes,
                seconds=seconds,
                prefill_seconds=self._read - self._started if self._read else seconds,
                idealized_seconds=self._idealized(len(produced)),
                truncated_tokens=job.truncated,
            ),
            notes={
                **({"seed": job.seed} if job.request.sampling.temperature > 0 else {}),
                **({"grammar": job.matcher.note()} if job.matcher is not None else {}),
                **({"error": _told(self._error)} if self._error is not None else {}),
            },
            logprobs=tuple(self._logprobs),
        )

    def _idealized(self, produced: int) -> float | None:
        """Predicted seconds for the prompt tokens that were computed and the tokens produced."""
        if self._runtime is None:
            return None
        computed = min(self._peak, len(self.job.prompt)) - self._reused
        return self._runtime.seconds(computed, produced) if computed > 0 else 0.0


def _told(error: Exception) -> dict[str, str]:
    """Code and message of what stopped a request; a defect of ours also logs its traceback."""
    if isinstance(error, InferenceError):
        return {"code": error.code, "message": str(error)}
    logging.getLogger(__name__).error("a request failed by a defect", exc_info=error)
    return {"code": "defect", "message": f"{type(error).__name__}: {error}"}
