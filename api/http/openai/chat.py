"""POST /v1/chat/completions: a dialogue, answered by the engine or by a workflow."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

from starlette.responses import Response

from api.http.openai import replies, work, workflows
from api.http.openai.answering import streamed, whole
from api.http.openai.meter import Meter
from api.http.openai.models import ChatBody
from api.http.openai.refusals import require_supported
from api.http.openai.replies import Envelope
from api.http.openai.routing import AskDep, build
from api.http.openai.served import WORKFLOW, Ask, engine_for
from api.http.openai.translate import chat_requests
from inference import Engine, Output, Request

router = build("chat")
KIND = "chat.completion"


@router.post("/v1/chat/completions", response_model=None)
async def create_chat_completion(body: ChatBody, ask: AskDep) -> Response:
    """The next turn of a dialogue; `workflow/NAME` as model runs a workflow on the last question.

    With `stream` as server-sent events that end with [DONE]. A client that leaves stops the
    generation.
    """
    require_supported(body)
    ask = ask.within(body.ragwright.seconds)
    envelope = Envelope(f"chatcmpl-{ask.request_id}", body.model)
    if body.model.startswith(WORKFLOW):
        if body.stream:
            return streamed(partial(workflows.chunks, body, ask, envelope), ask.request_id)
        return whole(partial(workflows.answer, body, ask, envelope))
    if body.stream:
        return streamed(partial(_chunks, body, ask, envelope), ask.request_id)
    return whole(partial(_answer, body, ask, envelope))


async def _begin(body: ChatBody, ask: Ask) -> tuple[Engine, list[Request]]:
    engine = await engine_for(ask, body.model)
    return engine, chat_requests(body, ask.caller.tenant, engine.context_length)


async def _answer(body: ChatBody, ask: Ask, envelope: Envelope) -> dict[str, Any]:
    engine, requests = await _begin(body, ask)
    async with ask.enter(len(requests)) as visit:
        outputs = await work.generate(engine, requests, visit, ask)
    choices = [_choice(at, output, body) for at, output in enumerate(outputs)]
    return envelope.of(KIND, choices, usage=replies.usage(outputs, len(outputs)))


def _choice(at: int, output: Output, body: ChatBody) -> dict[str, Any]:
    return {
        "index": at,
        "message": {"role": "assistant", "content": output.text, "refusal": None},
        "logprobs": replies.chat_logprobs(output.logprobs) if body.logprobs else None,
        **replies.ending(output),
        **({"token_ids": output.token_ids} if body.return_token_ids else {}),
    }


async def _chunks(
    body: ChatBody, ask: Ask, envelope: Envelope
) -> AsyncGenerator[dict[str, Any], None]:
    """Each chunk of the engine as one of the protocol, then how it ended, then the usage."""
    engine, requests = await _begin(body, ask)
    async with ask.enter(len(requests)) as visit:
        meter = await Meter.begin(engine, requests, body)
        async for at, chunk in work.stream(engine, requests, visit, ask):
            if at not in meter.begun:
                opening = {"role": "assistant", "content": ""}
                yield _chunk(envelope, at, opening, meter)
            fresh = meter.take(at, chunk)
            if chunk.text or chunk.token_ids or fresh:
                more: dict[str, Any] = {}
                if body.logprobs:
                    more["logprobs"] = replies.chat_logprobs(fresh)
                if body.return_token_ids:
                    more["token_ids"] = chunk.token_ids
                yield _chunk(envelope, at, {"content": chunk.text}, meter, **more)
            if chunk.output is not None:
                yield _chunk(envelope, at, {}, meter, **replies.ending(chunk.output))
    if meter.include_usage:
        yield envelope.of(f"{KIND}.chunk", [], usage=meter.final(len(requests)))


def _chunk(
    envelope: Envelope, at: int, delta: dict[str, Any], meter: Meter, **more: Any
) -> dict[str, Any]:
    choice = {"index": at, "delta": delta, "logprobs": None, "finish_reason": None, **more}
    return envelope.of(f"{KIND}.chunk", [choice], **meter.usage())
