"""A request as the body of a call, and the pieces of an answer as they arrive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from inference.budget import Usage
from inference.engine import Capability
from inference.errors import NoChatTemplate, PromptTooLong, Unsupported
from inference.openai.offers import CHAT, COMPLETIONS, constraint, logprobs, salt
from inference.openai.server import Profile
from inference.openai.tokens import prompt_ids, turns
from inference.requests import Chunk, FinishReason, Output, Request, Stats, TokenLogprob

if TYPE_CHECKING:
    from inference.grammar.matcher import Matcher


@dataclass
class Job:
    """A request on its way, and what has come back so far.

    `sent_ids` replace the request's prompt where it had to be truncated; `matcher` will read the
    answer to a request with a grammar.
    """

    request: Request
    matcher: Matcher | None = None
    emit: Callable[[Chunk], None] | None = None
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    started: float = field(default_factory=time.perf_counter)
    max_tokens: int = 0
    prompt_tokens: int | None = None
    sent_ids: list[int] | None = None
    truncated: int = 0
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish: str | None = None
    stop_reason: object = None
    usage: dict[str, Any] = field(default_factory=dict)
    first: float | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    def take(self, chunk: dict[str, Any]) -> None:
        """Add one object of the stream."""
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            text = str(choice.get("text") or delta.get("content") or "")
            ids = tuple(choice.get("token_ids") or ())
            self.text += text
            self.token_ids += ids
            told: list[TokenLogprob] = []
            if self.request.logprobs is not None:
                told = logprobs(choice, ids, self.request.logprobs)
            self.logprobs += told
            self.finish = choice.get("finish_reason") or self.finish
            self.stop_reason = choice.get("stop_reason") or self.stop_reason
            if text or ids:
                self.first = self.first or time.perf_counter()
                if self.emit is not None:
                    self.emit(Chunk(text, ids, logprobs=tuple(told)))

    def judge(self) -> None:
        """Note whether the text belongs to the request's grammar; may take long."""
        if self.matcher is not None:
            from inference.grammar.judge import verdict

            self.notes["grammar"] = verdict(self.matcher, self.text)

    def output(self, reason: FinishReason) -> Output:
        """What came back, with the server's account of it where it gave one."""
        now = time.perf_counter()
        details = self.usage.get("prompt_tokens_details") or {}
        prompt = self.usage.get("prompt_tokens", self.prompt_tokens)
        generated = self.usage.get("completion_tokens", len(self.token_ids) or None)
        notes = dict(self.notes)
        if prompt is None or (generated is None and self.text):
            notes["usage"] = "not reported by the server"
        if self.text and not self.token_ids:
            notes["token_ids"] = "not reported by the server"
        if self.finish not in (None, "stop", "length"):
            notes["finish_reason"] = self.finish
        return Output(
            self.request.id,
            self.text,
            tuple(self.token_ids),
            reason,
            Usage(
                prompt_tokens=prompt or 0,
                cached_tokens=details.get("cached_tokens") or 0,
                completion_tokens=len(self.token_ids) or generated or 0,
                model_calls=1,
                seconds=now - self.started,
            ),
            Stats(
                seconds=now - self.started,
                prefill_seconds=(self.first or now) - self.started,
                truncated_tokens=self.truncated,
            ),
            notes,
            tuple(self.logprobs),
        )

    @property
    def reason(self) -> FinishReason:
        """Why the server ended; without vLLM's additions a stop string is like the model's end."""
        if self.finish == "length":
            return FinishReason.LENGTH
        if isinstance(self.stop_reason, str):
            return FinishReason.STOP_STRING
        return FinishReason.STOP


def check(profile: Profile, api: str, request: Request, place: str) -> None:
    """Refuse what this server cannot do, before anything is sent."""
    sampling = request.sampling
    extras = {"top_k": None, "min_p": 0.0, "repetition_penalty": 1.0}
    asked = {name: getattr(sampling, name) for name in extras}
    for name, value in asked.items():
        if not profile.extended and value != extras[name]:
            raise Unsupported(
                f"request {request.id!r} sets {name}={value!r}, which is not part of the OpenAI "
                f"protocol, and {place} is not known to accept it; leave it out"
            )
    if request.messages is not None and Capability.CHAT not in profile.capabilities:
        raise NoChatTemplate(
            f"request {request.id!r} gives messages, and model {profile.model!r} at {place} takes "
            "none (option api, or no chat template); give a plain prompt"
        )
    if request.messages is None and api == "chat":
        raise Unsupported(
            f"request {request.id!r} gives a plain prompt, and the option api: chat allows "
            "messages only; give messages, or set api to auto"
        )
    profile.offers.check(request, endpoint(request), place)


def endpoint(request: Request, sent_ids: list[int] | None = None) -> str:
    """Where a request goes: a dialogue that was cut travels as the ids that are left of it."""
    return CHAT if request.messages is not None and sent_ids is None else COMPLETIONS


async def fit(profile: Profile, api: str, job: Job, place: str) -> None:
    """Count the prompt where that is possible, and cut or refuse one that is too long."""
    request, context = job.request, profile.context_length
    job.max_tokens = request.sampling.max_tokens
    if profile.tokens is None:
        if request.truncate == "left":
            raise Unsupported(
                f"request {request.id!r} asks for truncate='left', and {place} does not count "
                "tokens; name its tokenizer in the option tokenizer"
            )
        return
    ids = await prompt_ids(profile.tokens, request)
    if len(ids) >= context and request.truncate == "left" and api != "chat":
        keep = max(context - job.max_tokens, context // 2)
        job.truncated, job.sent_ids = len(ids) - keep, ids[-keep:]
        ids = job.sent_ids
        profile.offers.check(request, COMPLETIONS, place)
    if len(ids) >= context:
        raise PromptTooLong(
            f"request {request.id!r} has a prompt of {len(ids)} tokens and model "
            f"{profile.model!r} at {place} a context of {context}, which must also hold what is "
            f"generated; shorten the prompt to at most {context - 1} tokens, or set truncate to "
            "'left' to drop its oldest tokens (not with the option api: chat)"
        )
    job.prompt_tokens = len(ids)
    job.max_tokens = min(job.max_tokens, context - len(ids))


def call(profile: Profile, job: Job) -> tuple[str, dict[str, Any]]:
    """Endpoint and body of a call; `extra` holds what only some servers know."""
    request, sampling = job.request, job.request.sampling
    body: dict[str, Any] = {
        "model": profile.model,
        "max_tokens": job.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "stream_options": {"include_usage": True},
    }
    if sampling.seed is not None:
        body["seed"] = sampling.seed % 2**63  # servers read a signed number of 64 bits
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    path = endpoint(request, job.sent_ids)
    if request.logprobs is not None and path == CHAT:
        body.update(logprobs=True, top_logprobs=request.logprobs)
    elif request.logprobs is not None:
        body["logprobs"] = request.logprobs
    extra = salt(request.tenant)
    if request.grammar is not None:
        extra.update(constraint(request.grammar))
    if profile.extended:
        # Sent always: left out, the model's own generation_config would decide.
        extra.update(
            top_k=sampling.top_k or -1,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            return_token_ids=True,
        )
        body["stream_options"]["continuous_usage_stats"] = True
    body["extra"] = extra
    if path == CHAT:
        assert request.messages is not None, "the chat endpoint is for dialogues"
        return path, {**body, "messages": turns(request.messages)}
    ids = job.sent_ids if job.sent_ids is not None else request.token_ids
    return path, {**body, "prompt": request.prompt if ids is None else list(ids)}
