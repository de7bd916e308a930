"""What a vLLM in this process works on: answers to requests, and scores of continuations."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from inference.budget import Usage
from inference.grammar.matcher import Matcher
from inference.openai.offers import salt
from inference.requests import Chunk, FinishReason, Output, Request, Score, Stats, TokenLogprob


class Answer:
    """Task of one request; `emit` gets chunks, the last with the output, or the error."""

    def __init__(
        self,
        request: Request,
        ids: Sequence[int],
        truncated: int,
        room: int,
        matcher: Matcher | None,
        emit: Callable[[Chunk | Exception], object],
    ) -> None:
        self.request = request
        self.prompt = {"prompt_token_ids": list(ids), **salt(request.tenant)}
        self.matcher = matcher
        given = request.sampling.seed
        # vLLM's own choice would come from the random state of the whole process.
        self.seed = secrets.randbits(53) if given is None else given
        self.params = _sampling(request, min(request.sampling.max_tokens, room), self.seed)
        self._started = time.monotonic()
        self.deadline = None if request.seconds is None else self._started + request.seconds
        self._truncated = truncated
        self._emit = emit
        self._first = 0.0
        self._cached = 0
        self._text = ""
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []

    def take(self, output: Any) -> None:
        """Add a piece, and pass it on."""
        (piece,) = output.outputs
        ids = tuple(piece.token_ids)
        self._first = self._first or time.monotonic()
        self._cached = output.num_cached_tokens or self._cached
        self._text += piece.text
        self._ids += ids
        if self.request.logprobs is not None:
            for token_id, row in zip(ids, piece.logprobs or (), strict=True):
                self._logprobs.append(_logprob(token_id, row, self.request.logprobs))
        whole = self._output(_reason(piece), piece) if output.finished else None
        if piece.text or ids or whole is not None:
            self._emit(Chunk(piece.text, ids, whole))

    def end(self, reason: FinishReason) -> None:
        """Emit the output as far as it came."""
        self._emit(Chunk("", output=self._output(reason)))

    def fail(self, error: Exception) -> None:
        """Emit the error in place of an output."""
        self._emit(error)

    def _output(self, reason: FinishReason, piece: Any = None) -> Output:
        now = time.monotonic()
        sampled = {"seed": self.seed} if self.request.sampling.temperature > 0 else {}
        failed = reason is FinishReason.FAILED
        return Output(
            self.request.id,
            self._text,
            tuple(self._ids),
            reason,
            Usage(
                prompt_tokens=len(self.prompt["prompt_token_ids"]),
                cached_tokens=self._cached,
                completion_tokens=len(self._ids),
                model_calls=1,
                seconds=now - self._started,
            ),
            Stats(
                seconds=now - self._started,
                prefill_seconds=(self._first or now) - self._started,
                truncated_tokens=self._truncated,
            ),
            {**sampled, **({"error": f"vLLM ended it: {piece.finish_reason}"} if failed else {})},
            tuple(self._logprobs),
        )


class Scoring:
    """Task that reads a prompt and a continuation; `done` gets the score of the latter."""

    def __init__(
        self,
        request: Request,
        ids: Sequence[int],
        continuation: Sequence[int],
        done: Callable[[Score | Exception], object],
    ) -> None:
        from vllm import SamplingParams

        self.request = request
        self.deadline: float | None = None
        self.prompt = {"prompt_token_ids": [*ids, *continuation], **salt(request.tenant)}
        # It cannot be told to generate nothing.
        self.params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        self._continuation = tuple(continuation)
        self._done = done

    def take(self, output: Any) -> None:
        """Keep the log-probabilities of the continuation."""
        if output.finished:
            rows = output.prompt_logprobs[-len(self._continuation) :]
            pairs = zip(rows, self._continuation, strict=True)
            found = tuple(float(row[token_id].logprob) for row, token_id in pairs)
            self._done(Score(self._continuation, found))

    def end(self, reason: FinishReason) -> None:
        """Nobody waits for a score that was aborted."""

    def fail(self, error: Exception) -> None:
        """Report the error."""
        self._done(error)


def _sampling(request: Request, max_tokens: int, seed: int) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    given = request.sampling
    options: dict[str, Any] = {}
    if request.grammar is not None:
        key = {"json_schema": "json", "regex": "regex", "ebnf": "grammar"}[request.grammar.kind]
        options = {
            "structured_outputs": StructuredOutputsParams(**{key: request.grammar.lowered()})
        }
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=given.temperature,
        top_k=given.top_k or 0,
        top_p=given.top_p,
        min_p=given.min_p,
        repetition_penalty=given.repetition_penalty,
        seed=seed % 2**63,  # a signed number of 64 bits
        stop=list(given.stop),
        logprobs=request.logprobs,
        output_kind=RequestOutputKind.DELTA,
        **options,
    )


def _reason(piece: Any) -> FinishReason:
    if piece.finish_reason == "length":
        return FinishReason.LENGTH
    if piece.finish_reason == "abort":
        return FinishReason.ABORTED
    if piece.finish_reason != "stop":
        return FinishReason.FAILED
    stopped = isinstance(piece.stop_reason, str)
    return FinishReason.STOP_STRING if stopped else FinishReason.STOP


def _logprob(token_id: int, row: Mapping[int, Any], most: int) -> TokenLogprob:
    """`row` holds the most probable tokens, and the produced one."""
    ranked = sorted(row.values(), key=lambda one: -one.logprob)[:most]
    top = tuple((one.decoded_token or "", float(one.logprob)) for one in ranked)
    produced = row[token_id]
    return TokenLogprob(produced.decoded_token or "", float(produced.logprob), token_id, top)
