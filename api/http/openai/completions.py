"""POST /v1/completions: prompts gone on with, and /tokenize, which counts them."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

from starlette.responses import Response

from api.http.errors import ApiError
from api.http.openai import replies, work
from api.http.openai.answering import streamed, whole
from api.http.openai.meter import Meter
from api.http.openai.models import MAX_SEQUENCES, CompletionBody, TokenizeBody
from api.http.openai.refusals import refused, require_supported
from api.http.openai.replies import Envelope
from api.http.openai.routing import AskDep, build
from api.http.openai.served import Ask, engine_for, too_late
from api.http.openai.translate import completion_requests, messages
from api.http.openai.work import in_thread, timed
from inference import Engine, InferenceError, Output, Request

router = build("completions")
KIND = "text_completion"


@runtime_checkable
class Encodes(Protocol):
    """An engine that tells its tokens, not only their number."""

    def encode(self, request: Request) -> list[int]:
        """Token ids of a prompt."""
        ...

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text alone."""
        ...


@router.post("/v1/completions", response_model=None)
async def create_completion(body: CompletionBody, ask: AskDep) -> Response:
    """What comes after each prompt: text or token ids, one or several.

    With `stream` as server-sent events that end with [DONE]. A client that leaves stops the
    generation.
    """
    require_supported(body)
    ask = ask.within(body.ragwright.seconds)
    envelope = Envelope(f"cmpl-{ask.request_id}", body.model)
    requests = completion_requests(body, ask.caller.tenant)
    if len(requests) > MAX_SEQUENCES:
        message = f"prompts times n is {len(requests)}; ask for at most {MAX_SEQUENCES} at once"
        raise refused("n", message)
    if body.stream:
        return streamed(partial(_chunks, body, requests, ask, envelope), ask.request_id)
    return whole(partial(_answer, body, requests, ask, envelope))


@router.post("/tokenize")
async def tokenize(body: TokenizeBody, ask: AskDep) -> dict[str, Any]:
    """Token ids of a prompt or of a dialogue under the chat template, as vLLM tells them."""
    if (body.prompt is None) == (body.messages is None):
        raise refused("prompt", "give exactly one of prompt and messages", "invalid_request")
    engine = await engine_for(ask, body.model)
    ids = await in_thread(partial(_encode, _encodes(engine), body))
    return {"count": len(ids), "max_model_len": engine.context_length, "tokens": ids}


def _encode(engine: Encodes, body: TokenizeBody) -> list[int]:
    if body.messages is not None:
        return engine.encode(Request(messages=messages(body.messages)))
    assert body.prompt is not None
    if not body.add_special_tokens:
        return engine.encode_text(body.prompt)
    return engine.encode(Request(prompt=body.prompt))


def _encodes(engine: Engine) -> Encodes:
    if not isinstance(engine, Encodes):
        message = "the engine of this server counts tokens and does not tell them"
        raise ApiError(404, "unsupported", message)
    return engine


async def _answer(
    body: CompletionBody, requests: Sequence[Request], ask: Ask, envelope: Envelope
) -> dict[str, Any]:
    engine = await engine_for(ask, body.model)
    async with ask.enter(len(requests)) as visit:
        outputs = await work.generate(engine, requests, visit, ask)
        choices = [_choice(at, output, body) for at, output in enumerate(outputs)]
        if body.prompt_logprobs is not None:
            for choice, request in zip(choices, requests, strict=True):
                choice["prompt_logprobs"] = await _scored(engine, request, ask)
    return envelope.of(KIND, choices, usage=replies.usage(outputs, body.n or 1))


def _choice(at: int, output: Output, body: CompletionBody) -> dict[str, Any]:
    asked = body.logprobs is not None
    return {
        "index": at,
        "text": output.text,
        "logprobs": replies.completion_logprobs(output.logprobs, 0) if asked else None,
        **replies.ending(output),
        **({"token_ids": output.token_ids} if body.return_token_ids else {}),
    }


async def _scored(engine: Engine, request: Request, ask: Ask) -> list[dict[str, Any] | None]:
    """Log-probability of each token of a prompt after those before it, as vLLM tells them."""
    ids = list(request.token_ids or ())
    ids = ids or await in_thread(partial(_encodes(engine).encode, request))
    plain = {"prompt": None, "messages": None, "grammar": None, "logprobs": None}
    name = f"{request.id}-prompt"
    first = timed(replace(request, **plain, id=name, token_ids=ids[:1]), ask.deadline)  # type: ignore[arg-type]
    if len(ids) == 1:
        return [None]
    score = partial(engine.score, first, [ids[1:]])
    try:
        (found,) = await in_thread(score, partial(engine.abort, name))
    except InferenceError:
        if time.monotonic() < ask.deadline:
            raise
        raise too_late() from None
    told = zip(found.token_ids, found.logprobs, strict=True)
    return [None, *({str(token): {"logprob": value}} for token, value in told)]


async def _chunks(
    body: CompletionBody, requests: Sequence[Request], ask: Ask, envelope: Envelope
) -> AsyncGenerator[dict[str, Any], None]:
    """Each chunk of the engine as one of the protocol, then how it ended, then the usage."""
    engine = await engine_for(ask, body.model)
    offsets = [0] * len(requests)
    async with ask.enter(len(requests)) as visit:
        meter = await Meter.begin(engine, requests, body)
        async for at, chunk in work.stream(engine, requests, visit, ask):
            fresh = meter.take(at, chunk)
            choice: dict[str, Any] = {
                "index": at,
                "text": chunk.text,
                "logprobs": None,
                "finish_reason": None,
            }
            if body.logprobs is not None:
                choice["logprobs"] = replies.completion_logprobs(fresh, offsets[at])
                offsets[at] += sum(len(row.text) for row in fresh)
            if body.return_token_ids:
                choice["token_ids"] = chunk.token_ids
            if chunk.output is not None:
                choice.update(replies.ending(chunk.output))
            yield envelope.of(KIND, [choice], **meter.usage())
    if meter.include_usage:
        yield envelope.of(KIND, [], usage=meter.final(body.n or 1))
