"""The decode loop: one prompt in, chunks of text out, one forward pass per token."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from inference.budget import Usage
from inference.native.model import Model, cache_bytes, entries
from inference.native.prefix import PrefixCache
from inference.native.sampling import choose
from inference.native.text import Detokenizer, StopFinder
from inference.requests import Chunk, FinishReason, Output, Request, Stats

if TYPE_CHECKING:
    from inference.grammar.matcher import Matcher

PREFILL_TOKENS = 512
"""Prompt tokens per forward pass, so that an abort or a deadline never waits for a long prompt."""


@dataclass(slots=True)
class Job:
    """A checked request with its prompt ids; `created` is on the monotonic clock."""

    request: Request
    prompt: list[int]
    truncated: int = 0
    matcher: Matcher | None = None
    created: float = field(default_factory=time.monotonic)
    cancelled: threading.Event = field(default_factory=threading.Event)
    seed: int = field(init=False)

    def __post_init__(self) -> None:
        given = self.request.sampling.seed
        # 53 bits survive any JSON reader, so a reported seed can be given back.
        self.seed = secrets.randbits(53) if given is None else given

    def interrupted(self) -> FinishReason | None:
        """Why to end before the next forward pass, if so."""
        if self.cancelled.is_set():
            return FinishReason.ABORTED
        seconds = self.request.seconds
        if seconds is not None and time.monotonic() - self.created >= seconds:
            return FinishReason.DEADLINE
        return None


class Interrupted(Exception):
    """The job was aborted, or its deadline passed, before its prompt was read."""

    def __init__(self, reason: FinishReason) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass(slots=True)
class Prefill:
    """A prompt in the cache: `logits` [vocabulary] after its last token."""

    logits: torch.Tensor
    cache: Any
    cached: int
    forwards: int


def prefill(model: Model, prefixes: PrefixCache, job: Job) -> Prefill:
    """Read the prompt, reusing the longest cached prefix; raises Interrupted between passes."""
    prompt = job.prompt
    # The last token is always computed: its logits are what decoding starts from.
    cached, layers = prefixes.longest(prompt[:-1]) if model.reusable else (0, ())
    cache = model.cache(layers)
    forwards = 0
    logits = None
    for start in range(cached, len(prompt), PREFILL_TOKENS):
        if reason := job.interrupted():
            raise Interrupted(reason)
        logits = model.forward(prompt[start : start + PREFILL_TOKENS], cache)
        forwards += 1
    assert logits is not None
    return Prefill(logits[-1], cache, cached, forwards)


class Decoder:
    """One job on its way: produces chunks, then the output."""

    def __init__(self, model: Model, prefixes: PrefixCache, job: Job) -> None:
        self._model = model
        self._prefixes = prefixes
        self._job = job
        self._produced: list[int] = []
        self._detokenizer = Detokenizer(model.decode)
        self._stops = StopFinder(job.request.sampling.stop)
        self._text = ""  # final so far
        self._emitted = (0, 0)  # how much of text and of produced went out in chunks
        self._state: Prefill | None = None
        self._forwards = 0

    def run(self) -> Iterator[Chunk]:
        """Chunks as they become final; the last one carries the output."""
        started = time.monotonic()
        read = started
        try:
            self._state = prefill(self._model, self._prefixes, self._job)
            read = time.monotonic()
            reason = yield from self._loop(self._state)
            self._publish(self._state)
        except Interrupted as interruption:
            read = time.monotonic()
            reason = interruption.reason
        self._text += self._stops.push(self._detokenizer.finish())
        if self._stops.found is None:
            self._text += self._stops.finish()
        elif reason in (FinishReason.LENGTH, FinishReason.STOP):
            reason = FinishReason.STOP_STRING
        output = self._output(reason, time.monotonic() - started, read - started)
        yield self._chunk(output)

    def _loop(self, state: Prefill) -> Generator[Chunk, None, FinishReason]:
        """Decode until something ends it; the value is the reason."""
        job, model = self._job, self._model
        params = job.request.sampling
        room = min(params.max_tokens, model.context_length - len(job.prompt))
        seen = list(job.prompt)
        logits = state.logits
        while True:
            if reason := job.interrupted():
                return reason
            if job.matcher is not None:
                logits = job.matcher.mask(logits)
            token = choose(logits, params, job.seed, len(seen), seen)
            if job.matcher is not None and not job.matcher.accept(token):
                raise AssertionError(f"token {token} was chosen against the mask")
            seen.append(token)
            self._produced.append(token)
            if token in model.stop_ids:
                return FinishReason.STOP
            self._text += self._stops.push(self._detokenizer.push(token))
            if self._stops.found is not None:
                return FinishReason.STOP_STRING
            if len(self._produced) == room:
                return FinishReason.LENGTH
            if len(self._text) > self._emitted[0]:
                yield self._chunk()
            logits = model.forward([token], state.cache)[-1]
            self._forwards += 1

    def _chunk(self, output: Output | None = None) -> Chunk:
        """Everything final that no chunk has carried yet."""
        text, tokens = self._emitted
        self._emitted = (len(self._text), len(self._produced))
        return Chunk(self._text[text:], tuple(self._produced[tokens:]), output)

    def _publish(self, state: Prefill) -> None:
        """Offer the key/value entries to later requests."""
        if not self._model.reusable:
            return
        layers = entries(state.cache)
        held = layers[0][0].shape[2]
        self._prefixes.store((self._job.prompt + self._produced)[:held], layers)

    def _output(self, reason: FinishReason, seconds: float, prefill_seconds: float) -> Output:
        job, state = self._job, self._state
        forwards = self._forwards + (state.forwards if state else 0)
        return Output(
            id=job.request.id,
            text=self._text,
            token_ids=tuple(self._produced),
            finish_reason=reason,
            usage=Usage(
                prompt_tokens=len(job.prompt),
                cached_tokens=state.cached if state else 0,
                completion_tokens=len(self._produced),
                model_calls=1,
                seconds=seconds,
            ),
            stats=Stats(
                forwards=forwards,
                # A cache of this loop only grows, so its size at the end is its peak.
                peak_kv_bytes=cache_bytes(state.cache) if state else 0,
                seconds=seconds,
                prefill_seconds=prefill_seconds,
                truncated_tokens=job.truncated,
            ),
            notes={
                **({"seed": job.seed} if job.request.sampling.temperature > 0 else {}),
                **({"grammar": job.matcher.note()} if job.matcher is not None else {}),
            },
        )
