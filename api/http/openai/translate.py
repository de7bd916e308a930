"""Bodies of the protocol to requests of the engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from api.http.openai.models import (
    ChatBody,
    CompletionBody,
    Generation,
    ResponseFormat,
    StructuredOutputs,
    Turn,
)
from api.http.openai.refusals import refused, require_nothing
from inference import Grammar, Message, Request, SamplingParams
from inference.kv import parse as parse_kv
from inference.speculative import Drafter
from inference.speculative import parse as parse_drafter

COMPLETION_TOKENS = 16
"""Tokens of a completion that asks for no number, as the protocol has it."""


def chat_requests(body: ChatBody, tenant: str, context: int) -> list[Request]:
    """One request per candidate; raises ApiError and InferenceInputError."""
    if body.top_logprobs is not None and not body.logprobs:
        raise refused("top_logprobs", "needs logprobs=true; add it", "invalid_request")
    given = {"max_tokens": body.max_tokens, "max_completion_tokens": body.max_completion_tokens}
    if body.max_tokens and body.max_completion_tokens:
        raise refused("max_tokens", "max_completion_tokens says the same; give one of them")
    most = next((value for value in given.values() if value is not None), context)
    first = _request(
        body,
        Request(messages=messages(body.messages), sampling=_sampling(body, most)),
        tenant,
        (body.top_logprobs or 0) if body.logprobs else None,
    )
    return candidates(first, body.n or 1)


def completion_requests(body: CompletionBody, tenant: str) -> list[Request]:
    """One request per prompt and candidate, those of a prompt side by side."""
    requests = []
    for prompt in prompts(body.prompt):
        kind = "prompt" if isinstance(prompt, str) else "token_ids"
        sampling = _sampling(body, body.max_tokens or COMPLETION_TOKENS)
        bare = Request(**{kind: prompt}, sampling=sampling)  # type: ignore[arg-type]
        requests += candidates(_request(body, bare, tenant, body.logprobs), body.n or 1)
    return requests


def prompts(given: str | list[int] | list[str] | list[list[int]]) -> Sequence[str | list[int]]:
    """The prompts of a body in the four ways to write them."""
    if isinstance(given, str):
        return [given]
    if isinstance(given[0], int):
        return [given]
    return given


def messages(turns: Sequence[Turn], place: str = "messages") -> list[Message]:
    """A dialogue; raises ApiError for roles and contents that no template of ours holds."""
    return [_message(turn, f"{place}.{at}.") for at, turn in enumerate(turns)]


def candidates(request: Request, n: int) -> list[Request]:
    """The request `n` times, each with a seed of its own where there is one."""
    seed, copies = request.sampling.seed, [request]
    for at in range(1, n):
        own = None if seed is None else (seed + at) % 2**64
        sampling = replace(request.sampling, seed=own)
        copies.append(replace(request, id=f"{request.id}-{at}", sampling=sampling))
    return copies


def _message(turn: Turn, place: str) -> Message:
    require_nothing(turn, place)
    if turn.role in ("tool", "function"):
        raise refused(f"{place}role", f"{turn.role!r} needs tools, which this server has none of")
    if isinstance(turn.content, str):
        text = turn.content
    elif turn.content:
        pieces = []
        for at, part in enumerate(turn.content):
            here = f"{place}content.{at}."
            if part.type != "text" or part.text is None:
                raise refused(f"{here}type", f"{part.type!r} is not read; send parts of text")
            require_nothing(part, here)
            pieces.append(part.text)
        text = "".join(pieces)
    else:
        raise refused(f"{place}content", "there is none; give a text", "invalid_request")
    if turn.role == "developer" or turn.role == "system":
        return Message("system", text)
    return Message("user" if turn.role == "user" else "assistant", text)


def _sampling(body: Generation, max_tokens: int) -> SamplingParams:
    """What is left out is what the protocol says: temperature 1, all tokens."""
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=body.top_k if body.top_k and body.top_k > 0 else None,
        top_p=1.0 if body.top_p is None else body.top_p,
        min_p=body.min_p or 0.0,
        repetition_penalty=body.repetition_penalty or 1.0,
        seed=None if body.seed is None else body.seed % 2**64,
        stop=stop,
    )


def _request(body: Generation, bare: Request, tenant: str, logprobs: int | None) -> Request:
    """A request with everything that chat and completions ask for alike."""
    extras = body.ragwright
    for name in ("inputs", "index", "graph"):
        if getattr(extras, name):
            message = "is for a workflow; name one in model, as workflow/NAME"
            raise refused(f"ragwright.{name}", message)
    if extras.seed is not None:
        raise refused("ragwright.seed", "is for a workflow; give seed")
    return replace(
        bare,
        truncate=extras.truncate,
        grammar=grammar(body.response_format, body.structured_outputs),
        adapters=tuple(extras.adapters),
        # A salt keeps what a caller caches for its own users apart; tenants are apart anyhow.
        tenant=f"{tenant}/{body.cache_salt}" if body.cache_salt else tenant,
        logprobs=logprobs,
        kv=None if extras.kv is None else parse_kv(extras.kv),
        drafter=None if extras.drafter is None else _drafter(extras.drafter),
        references=tuple(extras.references),
    )


def _drafter(text: str) -> Drafter:
    """A drafter that opens nothing the caller names: models and files are the operator's."""
    found = parse_drafter(text)
    if found.opens:
        message = f"{found.opens[0]} names a model or file of the server; leave it out"
        raise refused("ragwright.drafter", message)
    return found


def grammar(form: ResponseFormat | None, outputs: StructuredOutputs | None) -> Grammar | None:
    """The grammar that a body asks for, in OpenAI's way or vLLM's."""
    given = [name for name, value in (outputs or ()) if value is not None]
    if form is not None and form.type != "text" and given:
        raise refused("structured_outputs", "response_format says it too; give one of them")
    if form is not None and form.type == "json_object":
        return Grammar.json_schema({"type": "object"})
    if form is not None and form.type == "json_schema":
        if form.json_schema is None or form.json_schema.schema_ is None:
            message = "there is no schema; give one"
            raise refused("response_format.json_schema", message, "invalid_request")
        return Grammar.json_schema(form.json_schema.schema_)
    if outputs is None:
        return None
    if len(given) != 1:
        message = "give exactly one of json, regex and grammar"
        raise refused("structured_outputs", message, "invalid_request")
    if outputs.regex is not None:
        return Grammar.regex(outputs.regex)
    if outputs.grammar is not None:
        return Grammar.ebnf(outputs.grammar)
    schema = outputs.json_
    return Grammar("json_schema", schema if isinstance(schema, str) else json.dumps(schema))
