"""What a stream has told so far: tokens, log-probabilities, usage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from api.http.openai import replies
from api.http.openai.models import Generation
from api.http.openai.work import in_thread
from inference import Chunk, Engine, Output, Request
from inference.requests import TokenLogprob


class Meter:
    """Counts over the chunks of one answer; `prompt` tokens are known if usage is continuous."""

    def __init__(self, include_usage: bool, prompt: int | None) -> None:
        self.include_usage = include_usage
        self.begun: set[int] = set()
        self._prompt = prompt
        self._tokens = 0
        self._told: Counter[int] = Counter()
        self._outputs: dict[int, Output] = {}

    @classmethod
    async def begin(cls, engine: Engine, requests: Sequence[Request], body: Generation) -> Meter:
        """A meter for a body; where usage shall come with every chunk, the prompts are counted."""
        options, prompt = body.stream_options, None
        if options is not None and options.continuous_usage_stats:
            firsts = requests[:: body.n or 1]
            prompt = await in_thread(lambda: sum(map(engine.count_tokens, firsts)))
        return cls(bool(options and options.include_usage), prompt)

    def take(self, at: int, chunk: Chunk) -> Sequence[TokenLogprob]:
        """Count a chunk; the log-probabilities that come with it.

        An engine that gives none along tells them with its output.
        """
        self.begun.add(at)
        self._tokens += len(chunk.token_ids)
        fresh = chunk.logprobs
        if chunk.output is not None:
            self._outputs[at] = chunk.output
            fresh = chunk.output.logprobs[self._told[at] :]
        self._told[at] += len(fresh)
        return fresh

    def usage(self) -> dict[str, Any]:
        """The part of a chunk that tells the usage so far, where it was asked for."""
        if self._prompt is None:
            return {"usage": None} if self.include_usage else {}
        return {"usage": replies.tokens_used(self._prompt, self._tokens)}

    def final(self, candidates: int) -> dict[str, Any]:
        """The usage of the whole answer."""
        return replies.usage([self._outputs[at] for at in sorted(self._outputs)], candidates)
